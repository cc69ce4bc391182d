"""Splits and folds that keep groups of sequences together."""

import dataclasses

import numpy as np
import pytest

from elstm.config.data_options import TableConfig
from elstm.data import checks, preparing
from elstm.data.labelled import LabelledSet
from elstm.data.load import load_data, raw_series
from elstm.data.preparing import SplitOptions, split
from elstm.data.unseen import load_unseen
from elstm.errors import UserError


def persons(count=40, seed=0):
    """Returns sequences of persons, 1 to 20 of each, mixed in the file; the class b is rare."""
    draw = np.random.default_rng(seed)
    names = [f"p{number}" for number in range(count)]
    groups = draw.permutation(np.repeat(names, draw.integers(1, 21, count)))
    labels = tuple(draw.choice(["a", "b"], len(groups), p=[0.8, 0.2]).tolist())
    values = np.arange(len(groups), dtype=np.float32).reshape(-1, 1, 1)
    ids = tuple(map(str, range(len(groups))))
    lengths = np.ones(len(groups), np.int64)
    return LabelledSet(values, lengths, labels, ids, (), groups=tuple(groups.tolist()))


def test_no_draw_cuts_a_group():
    whole, notes = persons(), []
    options = SplitOptions(0.2, 0.2, split_seed=1, group="who")
    parts = split({"all": whole}, options, lambda *args: notes.append(args[0] % args[1:]))
    found = [set(part.groups) for part in parts.values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 40
    assert sorted(sum((part.ids for part in parts.values()), ())) == sorted(whole.ids)
    for label in "ab":  # the shares of each class are about those that were requested
        total = whole.labels.count(label)
        assert parts["test"].labels.count(label) / total == pytest.approx(0.2, abs=0.05)
        assert parts["val"].labels.count(label) / total == pytest.approx(0.16, abs=0.05)
    assert notes[0] == (
        f"test split: {len(parts['test'])} of {len(whole)} sequences, drawn class by class with "
        f"data.split_seed=1, in {len(found[2])} of 40 groups (data.group=who)"
    )
    again, other = (
        split({"all": whole}, dataclasses.replace(options, split_seed=seed)) for seed in (1, 2)
    )
    assert again["test"].ids == parts["test"].ids != other["test"].ids


def test_every_group_is_in_one_test_fold():
    whole, tested = persons(), []
    for fold in range(5):
        parts = split({"train": whole}, SplitOptions(folds=5, fold=fold, group="who"))
        found = [set(part.groups) for part in parts.values()]
        assert sum(map(len, found)) == len(set.union(*found)) == 40
        for label in "ab":
            share = parts["test"].labels.count(label) / whole.labels.count(label)
            assert share == pytest.approx(0.2, abs=0.05)
        tested += parts["test"].ids
    assert sorted(tested, key=int) == list(whole.ids)


def test_the_splits_of_a_table_keep_groups_together(tmp_path, caplog):
    lines = [f"{i},{'ab'[i < 40]},p{i % 7},{t},{i % 5}" for i in range(70) for t in (1, 2)]
    (tmp_path / "set.csv").write_text("\n".join(["id,kind,who,t,x", *lines]))
    options = TableConfig(
        name="x", path=str(tmp_path / "set.csv"), id="id", label="kind", time="t", group="who"
    )
    data = load_data(options)
    found = [{int(name) % 7 for name in data.split(each).ids} for each in ("train", "val", "test")]
    assert sum(map(len, found)) == len(set.union(*found)) == 7
    assert raw_series(options, "test").ids == data.test.ids  # as exports are checked
    other = dataclasses.replace(options, group=None, features="x")
    assert load_data(other).fingerprint != data.fingerprint
    with pytest.raises(UserError, match="holds the run's own data, training sequences too"):
        load_unseen(options, data.facts(), options.path, "test")
    more = tmp_path / "more.csv"  # without groups, which only the splits of a run need
    more.write_text("id,kind,t,x\n1,a,1,2\n2,b,1,3\n")
    assert len(load_unseen(options, data.facts(), str(more), "test")[0].test) == 2

    for name, rows in (("train", lines), ("val", lines[-30:]), ("test", lines[:30])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,kind,who,t,x", *rows]))
    caplog.clear()
    load_data(dataclasses.replace(options, path=str(tmp_path)))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text for text in said if "holds no" in text] == [
        "the validation split holds no sequence of class b",
        "the test split holds no sequence of class a",
    ]
    assert sum("groups (data.group) of the" in text for text in said) == 2


def test_each_part_needs_a_group():
    few = preparing.select_rows(persons(), range(30))
    few = dataclasses.replace(few, groups=("x",) * 28 + ("y", "z"))
    parts = split({"all": few}, SplitOptions())
    assert sorted(len(part) for part in parts.values()) == [1, 1, 28]
    with pytest.raises(UserError, match=r"30 sequences of 3 groups \(data.group\) .* 4 groups"):
        split({"all": few}, SplitOptions(folds=4, fold=0))
    four = dataclasses.replace(few, groups=("x",) * 27 + ("w", "y", "z"))
    for fold in (0, 1):
        assert all(split({"all": four}, SplitOptions(folds=2, fold=fold)).values())
    one = dataclasses.replace(few, groups=("x",) * 30)
    with pytest.raises(
        UserError, match=r"of 1 group \(data.group\) are too few .* so 3 groups are"
    ):
        split({"all": one}, SplitOptions())
    prints = [preparing.fingerprint({"all": part}) for part in (one, few)]
    assert prints[0] != prints[1]  # because the drawn splits differ


def test_groups_that_the_files_cut_are_reported(caplog):
    parts = {"train": persons(9), "val": persons(0), "test": persons(3)}
    checks.warn_of_shared_groups(parts)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(
        "3 of 3 groups (data.group) of the test split are in the training split"
    )
