"""Labels and lost digits, which mean the same in all formats of own data."""

import dataclasses
from decimal import Decimal

import numpy as np
import pytest
from tiny_files import COLUMNS, TABLE, TS, X

from elstm.config.data_options import TableConfig
from elstm.data import checks
from elstm.data.labelled import LabelledSet, class_names, label_text, with_classes
from elstm.data.load import load_data
from elstm.data.readers.arrays import read_arrays
from elstm.data.readers.table import read_table
from elstm.data.readers.ts import read_ts
from elstm.data.unseen import load_series
from elstm.errors import UserError

ESCAPE = "\x1b[2J\n."  # clears a terminal


def test_labels_are_numbers_or_text():
    assert [label_text(v) for v in (3, 3.0, "3", " 3 ", np.int8(3), True, b"3", "3.0")] == (
        ["3", "3", "3", "3", "3", "1", "3", "3"]
    )
    assert label_text(2.5) == label_text("2.5") == "2.5"
    numbers = [Decimal(text) for text in ("3", "3.00", "2.50")]  # as databases have them
    assert [label_text(v) for v in numbers] == ["3", "3", "2.5"]
    for wrong in (float("nan"), "NaN", "", None, 1j, Decimal("nan")):
        with pytest.raises(ValueError, match="label"):
            label_text(wrong)
    long = ("9007199254740993", "9007199254740992", "-9007199254740993", "+7", "007")
    assert [label_text(v) for v in long] == [*long]
    texts = ["1_1", "1e2", "inf", "01", "1.10", "1.1", "-3", "NA"]
    assert [label_text(v) for v in texts] == texts
    assert [label_text(v, required=False) for v in (None, " ", float("nan"), 0)] == [
        "",
        "",
        "",
        "0",
    ]
    assert class_names(["10", "9", "9", "1"]) == ("1", "9", "10")
    same = ("+1", "001", "01", "1", "1.0", "1.00")  # as names of folders
    assert class_names(same) == same
    assert class_names(["2", "nan", "10", "1", "3"]) == ("1", "10", "2", "3", "nan")
    assert class_names(["10", "9", "cat"]) == ("10", "9", "cat")


def test_labels_mean_the_same_in_all_formats():
    def spelled(labels, names):
        part = LabelledSet(np.zeros((len(labels), 1, 1)), np.ones(len(labels)), labels, labels, ())
        return with_classes(part, names).labels

    assert spelled(("1", "100", "0.1"), ("01", "1e2", "0.10")) == ("01", "1e2", "0.10")
    assert spelled(("1",), ("01", "+1")) == ("1",)  # it may be either
    short, long = "caf\u00e9", "cafe\u0301"  # an accent may be a character of its own in a name
    assert spelled((long, "b"), (short, "b")) == (short, "b")
    assert spelled((short, long), (short, long)) == (short, long)


def test_classes_that_may_be_none_are_reported(caplog):
    checks.warn_of_class_names(("NA", "a", "none"), ["a", "NA", "none", "NA"])
    checks.warn_of_class_names(("01", "1", "1.0.1", "2"), ["01"])
    checks.warn_of_class_names(("caf\u00e9", "cafe\u0301", "a"), [])
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "2 sequences have the class NA",
        "1 sequences have the class none",
        "the classes 01 and 1 are one number, but differ as text, so they are different classes",
        "2 classes look like caf\u00e9, but differ in how accents are stored, so they are "
        "different classes",
    ]


def test_no_name_in_a_file_controls_the_terminal(csv, caplog):
    caplog.set_level("INFO")
    labels = ["a"] * 22 + [f'"b{ESCAPE}"'] * 2
    rows = "".join(f"{row // 2},{label},{row}\n" for row, label in enumerate(labels))
    path = csv(f'id,kind,"row{ESCAPE}"\n{rows}')
    load_data(TableConfig(name="x", path=str(path), id="id", label="kind", batch_size=2))
    for phrase in ("feature row?[2J?. only rises", "holds no sequence of class b?[2J?."):
        assert phrase in caplog.text
    values = np.zeros((2, 2, 1), np.float32)
    train = LabelledSet(values, np.full(2, 2), ("a", "b"), ("0", "1"), (), (f"row{ESCAPE}",))
    test = dataclasses.replace(train, values=values + 1)
    checks.warn_of_unlearned_features({"train": train, "val": train, "test": test})
    checks.warn_of_class_names((f"e\u0301{ESCAPE}", f"\u00e9{ESCAPE}"), [])
    assert len(caplog.messages) > 6
    assert all(message.isprintable() for message in caplog.messages)


def test_changes_that_32_bits_do_not_have_are_reported(npz, csv):
    times = 1_700_000_000 + np.arange(8).reshape(2, 4)
    stamps = np.stack([times, times - 1_700_000_000], axis=2)
    found = read_arrays(npz(X=stamps, y=[0, 1]))["all"]
    assert found.notes[0].startswith("feature 0: 6 of 6 changes from step to step are lost")
    assert len(found.notes) == 1
    assert read_arrays(npz(X=stamps.astype(np.float32), y=[0, 1]))["all"].notes == ()
    rows = "".join(f"{i},c,{a},{b}\n" for i, part in enumerate(stamps) for a, b in part)
    table = read_table(csv(f"id,kind,unix,b\n{rows}"), COLUMNS)["all"]
    assert [note[:21] for note in table.notes] == ["feature unix: 6 of 6 "]


def test_labels_that_only_some_sequences_have(csv, npz, tmp_path):
    """Checks that labels may be missing for a prediction, in each format."""
    path = csv(TABLE.replace("dog", ""))
    assert read_table(path, COLUMNS, labelled=False)["all"].labels == ("cat", "")
    arrays = npz(X=X, y=[1.0, np.nan])
    assert read_arrays(arrays, labelled=False)["all"].labels == ("1", "")
    with pytest.raises(UserError, match="a label is missing"):
        read_arrays(arrays)
    facts = {"class_names": ["cat", "dog"], "input_size": 2, "mean": [0, 0], "std": [1, 1]}
    options = TableConfig(path=str(path), id="id", label="kind", time="t")
    path = csv(TABLE.replace("dog", "NA"))  # as R writes a missing label
    assert load_series(options, facts, str(path))[1].labels == ("cat", "")
    for missing in ("", "?"):
        (tmp_path / "Own.ts").write_text(TS.replace("NaN:dog", f"NaN:{missing}"))
        assert read_ts(tmp_path / "Own.ts", labelled=False)["all"].labels == ("cat", "")
        with pytest.raises(UserError, match="line 11: "):
            read_ts(tmp_path / "Own.ts")


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (("0", "1"), ("True", "FALSE", "1"), ("1", "0", "1")),
        (("False", "True"), ("1", "0"), ("True", "False")),
        (("0", "1", "2"), ("True", "1"), ("True", "1")),  # no truth values
        (("0.1", "0.5"), (str(float(np.float32(0.1))), "0.5"), ("0.1", "0.5")),
        ((str(float(np.float16(0.1))), "2"), ("0.1", "2"), (str(float(np.float16(0.1))), "2")),
        (("16777216", "5"), ("16777217", ""), ("16777217", "")),
    ],
)
def test_labels_mean_the_same_class_in_all_formats(classes, labels, expected):
    part = LabelledSet(np.zeros((len(labels), 1, 1)), np.ones(1), labels, labels, ())
    assert with_classes(part, classes).labels == expected
