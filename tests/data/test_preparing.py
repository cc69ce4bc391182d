"""Splits, folds, missing values and standardising of own data."""

import dataclasses

import numpy as np
import pytest
import torch

from elstm.data import checks, preparing
from elstm.data.labelled import LabelledSet
from elstm.data.preparing import SplitOptions, split
from elstm.data.series import SeriesData, SeriesSplit
from elstm.errors import UserError


def make(labels, values=None, lengths=None, steps=3, features=2):
    count = len(labels)
    if values is None:
        values = np.arange(count * steps * features, dtype=np.float32)
        values = values.reshape(count, steps, features)
    lengths = np.full(count, values.shape[1]) if lengths is None else np.array(lengths)
    ids = tuple(f"s{row}" for row in range(count))
    return LabelledSet(values, lengths, tuple(labels), ids, ())


LABELS = ["a"] * 60 + ["b"] * 30 + ["c"] * 10


def test_splits_are_drawn_class_by_class(caplog):
    with caplog.at_level("INFO"):
        parts = split({"all": make(LABELS)}, SplitOptions(0.2, 0.1, split_seed=3))
    ids = [set(part.ids) for part in parts.values()]
    assert sum(map(len, ids)) == 100
    assert set.union(*ids) == {f"s{row}" for row in range(100)}

    def counts(part):
        return [part.labels.count(label) for label in "abc"]

    assert counts(parts["test"]) == [6, 3, 1]
    assert counts(parts["val"]) == [11, 5, 2]  # a fifth of 54, 27 and 9
    assert "test split: 10 of 100 sequences, drawn class by class with data.split_seed=3" in (
        caplog.text
    )
    again = split({"all": make(LABELS)}, SplitOptions(0.2, 0.1, split_seed=3))
    other = split({"all": make(LABELS)}, SplitOptions(0.2, 0.1, split_seed=4))
    assert again["val"].ids == parts["val"].ids != other["val"].ids


def test_splits_of_the_files_are_kept():
    train, test = make(LABELS), make(["a", "b", "c"])
    parts = split({"train": train, "test": test}, SplitOptions())
    assert parts["test"] is test
    assert len(parts["val"]) + len(parts["train"]) == 100
    val = make(["c"])
    parts = split({"train": train, "val": val, "test": test}, SplitOptions())
    assert parts == {"train": train, "val": val, "test": test}


def test_data_without_a_training_split():
    with pytest.raises(UserError, match="no training split, but only test: give that too"):
        split({"test": make("ab" * 5)}, SplitOptions())


def test_small_classes():
    parts = split({"all": make(["a"] * 3 + ["b"] * 2 + ["c"] * 4)}, SplitOptions())
    assert parts["train"].labels.count("b") == 2  # a class of two is left for training
    with pytest.raises(UserError, match="too few to draw a split from"):
        split({"all": make(["a", "b"])}, SplitOptions())


def test_every_sequence_is_in_one_test_fold():
    found = []
    for fold in range(5):
        parts = split({"all": make(LABELS)}, SplitOptions(folds=5, fold=fold))
        assert len(parts["test"]) == 20
        assert [parts["test"].labels.count(label) for label in "abc"] == [12, 6, 2]
        assert not set(parts["val"].ids) & set(parts["test"].ids)
        assert not set(parts["train"].ids) & set(parts["test"].ids)
        found += parts["test"].ids
    assert sorted(found) == sorted(f"s{row}" for row in range(100))
    notes = []
    files = {"train": make(LABELS), "val": make(["y"]), "test": make(["z"])}
    given = split(files, SplitOptions(folds=5, fold=0), lambda *args: notes.append(args))
    assert "z" not in given["test"].labels  # folds are cut from the training data
    assert "y" not in given["val"].labels
    said = "; no sequence of the files' val and test split is used"
    assert notes[0][-1] == said
    for folds, fold in ((5, None), (5, 5), (101, 0)):
        with pytest.raises(UserError, match=r"data\.folds"):
            split({"all": make(LABELS)}, SplitOptions(folds=folds, fold=fold))


def test_classes(caplog):
    parts = {"train": make(["2", "2"]), "val": make(["10"]), "test": make(["3"])}
    names = preparing.classes(parts)
    assert names == ("2", "3", "10")
    present = {"training": parts["train"].labels, "validation": parts["val"].labels}
    checks.warn_of_missing_classes(names, present)
    assert "the training split holds no sequence of classes 3, 10" in caplog.text
    assert "the validation split holds no sequence of classes 2, 3" in caplog.text
    with pytest.raises(UserError, match="all sequences have the label 'a'"):
        preparing.classes({name: make(["a"]) for name in ("train", "val", "test")})


def test_copies_in_two_splits_are_reported(caplog):
    """Checks that values past a sequence's end make no difference."""
    longer = np.zeros((2, 5, 2), np.float32)
    longer[0, :3], longer[1] = make("ab").values[1], 7
    parts = {"train": make("ab"), "val": make("a", longer[1:]), "test": make("bc", longer, [3, 5])}
    checks.warn_of_copies(parts)
    assert [record.getMessage()[:50] for record in caplog.records] == [
        "1 of 2 test sequences are equal to training sequen"
    ]


def test_sequences_of_one_step_are_reported(caplog):
    """As of a wide table, or of arrays (N, 1, T) that are read as (N, T, F)."""
    single = make("ab", steps=1)
    checks.warn_of_single_steps({"train": single, "val": make(""), "test": single})
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("every sequence has one step of 2 features")
    checks.warn_of_single_steps({"train": single, "val": make(""), "test": make("ab")})
    assert len(caplog.records) == 1


def test_features_that_are_the_class_are_reported(caplog):
    train = make("aabb" * 3, lengths=[2, 3] * 6)
    train.values[:, :, 1] = np.array([7.0, 7.0, 5.0, 5.0] * 3)[:, None]
    train.values[::2, 2] = 0  # past the end
    checks.warn_of_known_classes(train)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("feature 1 has one value for each class in all training steps")
    train.values[0, 1, 1] = 6
    checks.warn_of_known_classes(train)
    assert len(caplog.records) == 1


def test_missing_values_are_counted_and_placed():
    values = np.zeros((2, 3, 2), np.float32)
    values[1, 2, 0] = values[1, 1, 1] = np.nan
    parts = {"train": make("ab", values)}
    with pytest.raises(UserError) as caught:
        preparing.fill_missing(parts, "error")
    assert str(caught.value) == (
        "2 values of train are missing (NaN), in 1 of 2 sequences; the first is in s1, step 1, "
        "feature 1; data.missing=zero or forward fills them"
    )
    values[0, 0, 0] = np.inf
    for how in preparing.MISSING:
        with pytest.raises(
            UserError, match=r"1 values of train are infinite, in 1 of 2.* beyond 3\.4e\+38"
        ):
            preparing.fill_missing(parts, how)


def test_values_that_only_fill_up_sequences_are_named_so():
    values = np.zeros((2, 4, 2), np.float32)
    values[0, 2:] = np.nan
    for lengths, at_ends in (([4, 4], True), ([3, 4], True), ([4, 4], False)):
        if not at_ends:
            values[1, 1] = np.nan
        part = make("ab", values.copy(), lengths)
        part.values[0, lengths[0] :] = 0  # as readers have it
        with pytest.raises(UserError) as caught:
            preparing.fill_missing({"train": part}, "error")
        assert ("; all are at the ends of sequences, so if they" in str(caught.value)) == at_ends


def test_missing_values_are_filled():
    values = np.array([[[np.nan], [2], [np.nan], [4], [np.nan]]], np.float32)
    part = make("a", values, lengths=[5])
    forward = preparing.fill_missing({"train": part}, "forward")["train"]
    np.testing.assert_array_equal(forward.values[0, 1:, 0], [2, 2, 4, 4])
    mean, std = preparing.moments(part)  # of the values that are there
    assert (mean, std) == (3, 1)
    zero = preparing.fill_missing({"train": part}, "zero")["train"]
    found = preparing.standardized(zero, mean, std)
    assert found[0, :, 0].tolist() == [0, -1, 0, 1, 0]


def test_moments_are_of_active_steps():
    values = np.array([[[1, 5], [3, 5], [99, 99]], [[5, 5], [99, 99], [99, 99]]], np.float32)
    part = make("ab", values, lengths=[2, 1])
    mean, std = preparing.moments(part)
    np.testing.assert_allclose(mean, [3, 5])
    np.testing.assert_allclose(std, [np.sqrt(8 / 3), 1])  # constant: 1
    found = preparing.standardized(part, mean, std)
    assert found[1, 1:].abs().max() == 0
    assert found[:, :, 1].abs().max() == 0


@pytest.mark.parametrize("unit", [1e-13, 1, 1e13])
def test_features_of_any_unit_are_scaled(unit):
    """Magnetic fields of the brain are some 1e-13 tesla."""
    values = np.array([[[1, 5], [3, 5]], [[5, 5], [3, 5]]]) * unit
    part = make("ab", values.astype(np.float32))
    mean, std = preparing.moments(part)
    np.testing.assert_allclose(std[0], unit * np.sqrt(2), rtol=1e-6)
    assert std[1] == 1
    found = preparing.standardized(part, mean, std)
    assert found[0, :, 0].tolist() == pytest.approx([-np.sqrt(2), 0], abs=1e-6)
    assert found[:, :, 1].abs().max() < 1e-2 * unit


def test_the_fingerprint_follows_the_content():
    source = {"all": make("ab")}
    same = preparing.fingerprint({"all": make("ab")})
    assert preparing.fingerprint(source) == same
    changed = [{"all": make("ba")}, {"train": make("ab")}, {"all": make("ab", lengths=[3, 2])}]
    values = make("ab").values.copy()
    values[1, 2, 1] += 1
    changed.append({"all": make("ab", values)})
    assert len({preparing.fingerprint(other) for other in changed} | {same}) == 5


def test_what_was_read_is_said():
    parts = {"train": make("ab" * 600, lengths=[2] * 1200), "val": make("a"), "test": make("b")}
    assert preparing.describe(parts, ("a", "b")) == (
        "1,200 training, 1 validation, 1 test sequences of 2 to 3 steps x 2 features, 2 classes, "
        "from "
    )
    assert preparing.rare_steps(np.array([2] * 10 + [5] * 9)) == 3


def test_buckets_leave_out_no_sequence_for_ever():
    """The incomplete last batch of an epoch is a random one, and not the longest sequences."""
    lengths = torch.arange(1, 11)
    part = SeriesSplit(
        torch.zeros(10, 10, 1), lengths, torch.zeros(10, dtype=torch.long), ("",) * 10
    )
    data = SeriesData(
        "own", ("a", "b"), torch.zeros(1), torch.ones(1), 4, part, part, part, "", "", bucket=True
    )
    batches = [rows.tolist() for epoch in range(20) for rows in data.train_rows(0, epoch)]
    assert {row for rows in batches for row in rows} == set(range(10))
    assert all(rows == sorted(rows) for rows in batches)


def test_splits_of_other_spellings_and_orders_are_alike(caplog):
    """As of train.csv and test.parquet; copies are found whatever the order of the columns."""
    train = dataclasses.replace(make(["True", "False"]), features=("a", "b"))
    values = train.values[:, :, ::-1]
    test = dataclasses.replace(make(["1", "0"], values), features=("b", "a"))
    parts = preparing.alike({"train": train, "val": make([]), "test": test}, "x")
    assert parts["test"].labels == train.labels
    np.testing.assert_array_equal(parts["test"].values, train.values)
    more = dataclasses.replace(test, values=np.zeros((2, 1, 3)), features=("a", "b", "c"))
    for other, phrase in (
        (more, "the test split of x has the features a, b, c, and the training data have a, b"),
        (dataclasses.replace(more, features=()), "numbers of features: 2 in train, 3 in test"),
    ):
        with pytest.raises(UserError, match=phrase):
            preparing.alike({"train": train, "test": other}, "x")
    with caplog.at_level("INFO"):
        checks.warn_of_copies(parts)
        checks.note_same_ids(parts)
    assert "2 of 2 test sequences are equal" in caplog.text
    assert "2 of 2 ids of the test split occur in the training split too, such as s0" in caplog.text


@pytest.mark.parametrize(("value", "phrase"), [(np.nan, "is missing"), (3.0, "is the same")])
def test_features_that_only_other_splits_have_are_reported(value, phrase, caplog):
    train = make("ab")
    train.values[:, :, 1] = value
    checks.warn_of_unlearned_features({"train": train, "val": train, "test": make("ab")})
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(
        f"feature 1 {phrase} in all training steps, and has other values in the test split, of"
    )
