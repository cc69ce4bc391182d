"""Each reader of own data: what it reads, and one clear message for each thing that is wrong."""

import io
import pickle
import time
import zipfile
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from PIL import Image

from elstm.config.data_options import TableConfig, TsConfig
from elstm.data import labelled
from elstm.data.labelled import LabelledSet, class_names, label_text, with_classes
from elstm.data.load import read_user_data
from elstm.data.placement import read_image
from elstm.data.readers.arrays import read_arrays
from elstm.data.readers.image_folders import read_image_folders
from elstm.data.readers.table import Columns, read_table
from elstm.data.readers.ts import read_ts
from elstm.data.unseen import load_series, load_unseen
from elstm.errors import UserError

COLUMNS = Columns(id="id", label="kind")


def test_labels_are_numbers_or_text():
    assert [label_text(v) for v in (3, 3.0, "3", " 3 ", np.int8(3), True, b"3", "3.0")] == (
        ["3", "3", "3", "3", "3", "1", "3", "3"]
    )
    assert label_text(2.5) == label_text("2.5") == "2.5"
    for wrong in (float("nan"), "NaN", "", None, 1j):
        with pytest.raises(ValueError, match="label"):
            label_text(wrong)
    long = ("9007199254740993", "9007199254740992", "-9007199254740993", "+7", "007")
    assert [label_text(v) for v in long] == [*long[:3], "7", "7"]
    assert [label_text(v) for v in ("1_1", "1e2", "inf")] == ["1_1", "100", "inf"]
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


# --- arrays


@pytest.fixture
def npz(tmp_path):
    def save(**arrays):
        path = tmp_path / "set.npz"
        np.savez(path, **arrays)
        return path

    return save


X = np.arange(24.0).reshape(2, 4, 3)


def test_the_layout_says_what_the_axes_are(npz):
    y = np.array(["a", "b"])
    plain = read_arrays(npz(X=X, y=y))["all"]
    np.testing.assert_array_equal(plain.values, X)
    assert plain.values.dtype == np.float32
    assert plain.labels == ("a", "b")
    assert plain.lengths.tolist() == [4, 4]
    turned = read_arrays(npz(X=X.transpose(0, 2, 1), y=y), "nct")["all"]
    np.testing.assert_array_equal(turned.values, X)
    flat = read_arrays(npz(X=X[:, :, 0], y=y), "nt")["all"]
    np.testing.assert_array_equal(flat.values, X[:, :, :1])


def test_splits_and_lengths_of_arrays(npz):
    y = np.array([1, 2])
    path = npz(X_train=X, y_train=y, X_test=X + 1, y_test=y, lengths_train=np.array([2, 4]))
    source = read_arrays(path)
    assert set(source) == {"train", "test"}
    assert source["train"].lengths.tolist() == [2, 4]
    assert not source["train"].values[0, 2:].any()  # what lies beyond the length is zero
    np.testing.assert_array_equal(source["train"].values[1], X[1])
    np.testing.assert_array_equal(source["test"].values, X + 1)


@pytest.mark.parametrize(
    ("arrays", "layout", "phrase"),
    [
        ({"X": X}, "ntc", "X but not y"),
        ({"x": X, "y": np.zeros(2)}, "ntc", "needed are X and y"),
        ({"X_valid": X, "y_valid": np.zeros(2)}, "ntc", "or X_train and y_train"),
        ({"X": X, "X_train": X, "y": np.zeros(2)}, "ntc", "both X and X_train"),
        ({"X": X[:, :, 0], "y": np.zeros(2)}, "ntc", "data.layout=nt fits"),
        ({"X": X, "y": np.zeros(2)}, "nt", "data.layout=ntc or nct fits"),
        ({"X": X, "y": np.zeros(4)}, "ntc", "has to count the sequences"),
        ({"X": X, "y": np.zeros((2, 2))}, "ntc", "one label for each"),
        ({"X": X, "y": np.array([1.0, np.nan])}, "ntc", "a label is missing"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([4, 5])}, "ntc", "lengths[1] is 5, and X"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([0, 4])}, "ntc", "from 1 to 4"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([4.0, 4.0])}, "ntc", "2 integers"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([4])}, "ntc", "one for each sequence"),
        ({"X": X[:0], "y": np.zeros(0)}, "ntc", "is empty"),
        ({"X": X.astype("U9"), "y": np.zeros(2)}, "ntc", "not real numbers"),
        (
            {"X": np.array([[1, "a"], [2, None]], object), "y": np.zeros(2)},
            "nt",
            "not real numbers",
        ),
        ({"X": X, "y": np.array(["a", None], object)}, "ntc", "Python objects, which are never"),
    ],
)
def test_arrays_that_do_not_fit(npz, arrays, layout, phrase):
    with pytest.raises(UserError) as caught:
        read_arrays(npz(**arrays), layout)
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_no_pickle_is_loaded(tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", pickle.dumps(Trap()))
        archive.writestr("y.npy", pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file"):
        read_arrays(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file"):
        read_arrays(path)
    single = tmp_path / "one.npy"
    np.save(single, X)
    with pytest.raises(UserError, match="one array"):
        read_arrays(single)
    with pytest.raises(UserError, match="No such file"):
        read_arrays(tmp_path / "gone.npz")


def test_the_size_is_known_before_anything_is_loaded(tmp_path):
    """The header promises 4 TB; the file has 80 bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 1000, 1000)}
    )
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", header.getvalue())
        labels = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            labels, {"descr": "<i8", "fortran_order": False, "shape": (1_000_000,)}
        )
        archive.writestr("y.npy", labels.getvalue())
    with pytest.raises(UserError, match=r"needs about 12,000\.0 GB of memory"):
        read_arrays(path)


@pytest.mark.parametrize(
    "name",
    ["lengths", "lengths_test", "X_valid", "X_dev", "X_Test", "x_test", "Xval", "LENGTHS_val"],
)
def test_arrays_that_would_not_be_used(npz, name):
    arrays = {"X_train": X, "y_train": [0, 1], "lengths_train": [4, 2], name: [1, 2]}
    with pytest.raises(UserError, match=f"set.npz holds {name}, which would not be used"):
        read_arrays(npz(**arrays, note=[1]))


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


def test_groups_of_arrays(npz):
    y, who = np.array([1, 2]), np.array([[3.0], [4.0]])
    path = npz(X_train=X, y_train=y, who_train=who, X_test=X, y_test=y, who_test=["a", "b"])
    source = read_arrays(path, group="who")
    assert [source[split].groups for split in ("train", "test")] == [("3", "4"), ("a", "b")]
    assert read_arrays(path)["train"].groups == ()
    for group, arrays, phrase in (
        ("who", {}, "and who is none; the file holds X, y"),
        ("y", {}, "and y is none"),
        ("who", {"who": [1, 2, 3]}, "who (data.group) has to hold 2 groups, .* and is 3"),
        ("who", {"who": [1, np.nan]}, "who (data.group): a group is missing"),
    ):
        with pytest.raises(UserError, match=phrase.replace("(", r"\(").replace(")", r"\)")):
            read_arrays(npz(X=X, y=y, **arrays), group=group)


# --- tables


@pytest.fixture
def csv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "set.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


TABLE = "id,kind,t,a,b\nx,cat,2,3,4\nx,cat,1,1,2\ny,dog,1,5,6\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_rows_become_sequences(csv, encoding, newline):
    path = csv(TABLE.replace("\n", newline), encoding)
    read = read_table(path, Columns("id", "kind", time="t"))["all"]
    np.testing.assert_array_equal(read.values, [[[1, 2], [3, 4]], [[5, 6], [0, 0]]])
    assert read.lengths.tolist() == [2, 1]
    assert read.labels == ("cat", "dog")
    assert read.ids == ("x", "y")
    assert read.features == ("a", "b")
    unsorted = read_table(path, COLUMNS)["all"]  # the time is a feature as others are
    np.testing.assert_array_equal(unsorted.values[0], [[2, 3, 4], [1, 1, 2]])
    chosen = read_table(path, Columns("id", "kind", "t", features=("b",)))["all"]
    np.testing.assert_array_equal(chosen.values[:, 0, 0], [2, 6])


def test_missing_cells_are_nan(csv):
    read = read_table(csv("id,kind,a\nx,cat,\nx,cat,?\ny,dog,NA\n"), COLUMNS)["all"]
    assert np.isnan(read.values[0]).all()


def test_a_folder_holds_a_table_for_each_split(csv, tmp_path):
    csv(TABLE).rename(tmp_path / "train.csv")
    csv(TABLE).rename(tmp_path / "TEST.CSV")
    assert set(read_table(tmp_path, COLUMNS)) == {"train", "test"}
    (tmp_path / "val.csv.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds val\.csv\.gz, which would not be used"):
        read_table(tmp_path, COLUMNS)
    csv(TABLE).rename(tmp_path / "Validation.csv")
    with pytest.raises(UserError, match=r"holds Validation\.csv, which would not be used"):
        read_table(tmp_path, COLUMNS)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (TABLE.replace("kind", "type"), "no column 'kind' (data.label); it has id, type, t, a, b"),
        (TABLE.replace(",", ";"), "apart by semicolons: set 'data.separator=\";\"'"),
        (TABLE.replace(",", "\t"), "apart by tabs"),
        (TABLE + "y,dog,2,5\n", "line 5: 4 cells, and the header has 5"),
        (TABLE + "y,cat,2,5,6\n", "the label 'cat', and 'dog' in line 4"),
        (TABLE + "x,cat,3,5,6\n", "two sequences have the same id"),
        (TABLE + "y,dog,2,five,6\n", "column 'a' holds 'five', which is no number"),
        (
            TABLE + 'y,dog,2,"0,5",6\n',
            "holds '0,5', which is no number; numbers are read as 0.5, and",
        ),
        (TABLE + "y,dog,2,1_2,6\n", "column 'a' holds '1_2', which is no number"),
        (TABLE + ",dog,2,5,6\n", "the column 'id' is empty"),
        (TABLE + "z,,2,5,6\n", "kind: a label is empty"),
        ("id,kind,a,a\nx,cat,1,2\n", "two columns named 'a'"),
        (TABLE + "z,nan,2,5,6\n", "kind: a label is missing"),
        (",id,kind,a\n0,x,cat,1\n", "a column without a name (''), which may be the row numbers"),
        ("id,kind\nx,cat\n", "no column beside id, label"),
        ("id,kind,a\n", "no row below its header"),
        ("", "is empty"),
        ('id,kind,a\nx,"cat,1\n', "is not a CSV file"),
    ],
)
def test_tables_that_do_not_fit(csv, text, phrase):
    with pytest.raises(UserError) as caught:
        read_table(csv(text), COLUMNS)
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unnamed_column_is_no_feature_unless_it_is_chosen(csv):
    read = read_table(csv(",id,kind,a\n0,x,cat,1\n"), Columns("id", "kind", features=("a",)))["all"]
    assert read.values.tolist() == [[[1.0]]]


def test_groups_of_a_table(csv, tmp_path):
    path = csv(TABLE.replace("kind,t", "kind,who").replace("cat,2", "cat,1.0"))
    options = TableConfig(path=str(path), id="id", label="kind", group="who")
    read = read_user_data(options)["all"]
    assert read.groups == ("1", "1")
    assert read.features == ("a", "b")
    facts = {"class_names": ["cat", "dog"], "input_size": 2, "mean": [0, 0], "std": [1, 1]}
    path.write_text("id,kind,a,b\nx,cat,3,4\n")  # nothing is drawn from other files
    assert len(load_series(options, {**facts, "features": ["a", "b"]}, str(path))[1]) == 1
    (tmp_path / "splits").mkdir()
    for split in ("train", "test"):
        (tmp_path / "splits" / f"{split}.csv").write_text(path.read_text())
    both = load_series(options, {**facts, "features": ["a", "b"]}, str(tmp_path / "splits"))[1]
    assert both.ids == ("train: x", "test: x")  # so that each row of predictions can be told
    for text, phrase in (
        (TABLE, "id=x has the group '1', and '2' in line 2: a sequence has one group"),
        (
            TABLE.replace("dog,1", "dog,").replace("cat,1", "cat,2"),
            "line 4: the column 't' (data.group) is empty",
        ),
    ):
        with pytest.raises(UserError) as caught:
            read_table(csv(text), Columns("id", "kind", group="t"))
        assert phrase in str(caught.value)


def test_a_feature_that_rises_in_each_row_is_reported(csv):
    """Row numbers tell where in a sorted file a sequence stands, and with it the class."""
    rows = "".join(f"{row // 3},cat,{7 + 2 * row},{row % 3}\n" for row in range(12))
    path = csv(f"id,kind,row,t\n{rows}")
    (note,) = read_table(path, COLUMNS)["all"].notes
    assert note.startswith("feature row only rises in ")
    assert read_table(path, Columns("id", "kind", features=("row",)))["all"].notes == ()
    walks = [(i, t) for i in range(24) for t in (1, 2)]  # a number of the sequence does so too
    csv("id,kind,walk,age\n" + "".join(f"{i},cat,{i},{i // 2}\n" for i, _ in walks))
    assert [note[:13] for note in read_table(path, COLUMNS)["all"].notes] == ["feature walk "]


def test_quotes_after_blanks_and_lines_of_blanks(csv):
    text = 'id, "kind", a\nx, "cat, small", 1\n  \ny, dog, 2\n\n'
    read = read_table(csv(text), COLUMNS)["all"]
    assert (read.labels, read.features) == (("cat, small", "dog"), ("a",))


def test_decimals_after_a_comma(csv):
    text = TABLE.replace(",", ";").replace("3;4", "0,5;-4,25").replace("cat;1", "cat;1,5")
    columns = Columns("id", "kind", "t", separator=";", decimal=",")
    read = read_table(csv(text), columns)["all"]
    np.testing.assert_array_equal(read.values[0], [[1, 2], [0.5, -4.25]])
    with pytest.raises(
        UserError, match=r"holds '1\.250', .* as 0,5, and with 'data.decimal=\"\.\"'"
    ):
        read_table(csv(text.replace("5;6", "1.250;6")), columns)  # it may be 1250


@pytest.mark.parametrize(
    ("start", "phrase"), [(b"PK\x03\x04\xff", "an Excel file"), (b"\x1f\x8b\xff", "by gzip")]
)
def test_files_that_hold_no_text(tmp_path, start, phrase):
    (tmp_path / "set.csv").write_bytes(start)
    with pytest.raises(UserError, match=f"{phrase}: unpack it, or save the table as CSV"):
        read_table(tmp_path / "set.csv", COLUMNS)


def test_one_column_for_two_things(csv):
    with pytest.raises(UserError, match=r"data\.id and data\.time name the same column"):
        read_table(csv(TABLE), Columns("t", "kind", time="t"))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_text_that_is_not_utf_8(csv, encoding):
    with pytest.raises(UserError, match=r"not UTF-8 text \(.*\): save it as UTF-8"):
        read_table(csv(TABLE.replace("cat", "Käfer"), encoding), COLUMNS)


def test_two_rows_of_one_time(csv):
    text = TABLE.replace("x,cat,1,", "x,cat,2,")
    with pytest.raises(UserError, match="id=x has two rows with t=2"):
        read_table(csv(text), Columns("id", "kind", time="t"))


def test_times_are_sorted_exactly(csv, tmp_path, monkeypatch):
    """Nanoseconds need 61 bits; dates follow from no time zone, in which clocks go forward."""
    text = TABLE.replace("cat,2,", "cat,1700000000000000002,").replace(
        "cat,1,", "cat,1700000000000000001,"
    )
    columns = Columns("id", "kind", time="t")
    np.testing.assert_array_equal(read_table(csv(text), columns)["all"].values[0], [[1, 2], [3, 4]])
    with pytest.raises(UserError, match=r"'t' \(data.time\) holds '1 May', .* as a time stamp"):
        read_table(csv(text.replace("dog,1,", "dog,1 May,")), columns)
    with pytest.raises(UserError, match="line 4: the column 't' is empty"):
        read_table(csv(text.replace("dog,1,", "dog,nan,")), columns)
    days = TABLE.replace("cat,2,", "cat,2024-05-10 09:00:00,").replace("cat,1,", "cat,2024-05-09,")
    np.testing.assert_array_equal(read_table(csv(days), columns)["all"].values[0], [[1, 2], [3, 4]])
    zones = days.replace("10 09:00:00", "08T23:00:00-02:00").replace("05-09", "05-09T00:00:00Z")
    np.testing.assert_array_equal(
        read_table(csv(zones), columns)["all"].values[0], [[1, 2], [3, 4]]
    )
    for mixed in (days.replace("2024-05-09", "7"), days.replace(":00,", ":00Z,")):
        with pytest.raises(UserError, match=r"id=x has values of t \(data.time\) that cannot be"):
            read_table(csv(mixed), columns)

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setenv("TZ", "Europe/Berlin")
    getattr(time, "tzset", int)()  # Windows has none
    try:
        night = datetime(2024, 3, 31)
        hours = [night + timedelta(hours=hour) for hour in (1.5, 2.75, 3.25)]
        rows = {"id": [1, 1, 1], "kind": ["a"] * 3, "t": hours, "a": [0.0, 1.0, 2.0]}
        parquet.write_table(pyarrow.table(rows), tmp_path / "set.parquet")
        found = read_table(tmp_path / "set.parquet", columns)["all"]
        assert found.values.ravel().tolist() == [0, 1, 2]
        stamps = read_table(tmp_path / "set.parquet", Columns("id", "kind", features=("t",)))["all"]
        assert stamps.values[0, :, 0] == pytest.approx(
            [1711848600, 1711853100, 1711854900], abs=128
        )
    finally:
        monkeypatch.undo()
        getattr(time, "tzset", int)()
    days = {**rows, "t": [date(2024, 5, 3), date(2024, 5, 1), date(2024, 5, 2)]}
    parquet.write_table(pyarrow.table(days), tmp_path / "set.parquet")
    assert read_table(tmp_path / "set.parquet", columns)["all"].values.ravel().tolist() == [1, 2, 0]
    days["t"] = pyarrow.array([1, 2, 3], pyarrow.timestamp("ns"))
    parquet.write_table(pyarrow.table(days), tmp_path / "set.parquet")
    with suppress(UserError):  # it needs pandas
        assert len(read_table(tmp_path / "set.parquet", columns)["all"]) == 1


def test_labels_that_only_some_sequences_have(csv, npz, tmp_path):
    """Checks that labels may be missing for a prediction, in each format."""
    path = csv(TABLE.replace("dog", ""))
    assert read_table(path, COLUMNS, labelled=False)["all"].labels == ("cat", "")
    arrays = npz(X=X, y=[1.0, np.nan])
    assert read_arrays(arrays, labelled=False)["all"].labels == ("1", "")
    with pytest.raises(UserError, match="a label is missing"):
        read_arrays(arrays)
    for missing in ("", "?"):
        (tmp_path / "Own.ts").write_text(TS.replace("NaN:dog", f"NaN:{missing}"))
        assert read_ts(tmp_path / "Own.ts", labelled=False)["all"].labels == ("cat", "")
        with pytest.raises(UserError, match="line 11: "):
            read_ts(tmp_path / "Own.ts")


def test_parquet_without_pyarrow_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "set.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'elstm\[parquet\]'"):
        read_table(tmp_path / "set.parquet", COLUMNS)


def test_parquet_is_read_as_csv_is(csv, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    path = csv(TABLE)
    parquet.write_table(arrow_csv.read_csv(path), tmp_path / "set.parquet")
    columns = Columns("id", "kind", time="t")
    a, b = (read_table(p, columns)["all"] for p in (path, tmp_path / "set.parquet"))
    np.testing.assert_array_equal(a.values, b.values)
    assert (a.labels, a.ids) == (b.labels, b.ids)
    table = parquet.read_table(tmp_path / "set.parquet").to_pydict()
    decimals = pyarrow.array([Decimal("1.5")] * 3)  # as databases have them
    parquet.write_table(pyarrow.table({**table, "a": decimals}), tmp_path / "decimals.parquet")
    found = read_table(tmp_path / "decimals.parquet", columns)["all"]
    assert found.values[1, 0].tolist() == [1.5, 6]
    for name, phrase in (("id", "column 'id' is empty"), ("kind", "kind: a label is missing")):
        changed = {**table, name: [None, *table[name][1:]]}
        parquet.write_table(pyarrow.table(changed), tmp_path / "null.PARQUET")
        with pytest.raises(UserError, match=phrase):
            read_table(tmp_path / "null.PARQUET", columns)


# --- .ts

TS = """# a comment
@problemName Two
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true cat dog
@data
1,2,3:4,5,6:cat
7,?:8,NaN:dog
"""


def test_labels_that_are_missing_in_a_header(tmp_path):
    path = tmp_path / "Own.ts"
    path.write_text(TS.replace("cat dog", "cat NaN"))
    with pytest.raises(UserError, match="line 8: @classLabel: a label is missing"):
        read_ts(path)


def test_ts_files_with_dimensions_missing_values_and_unequal_lengths(tmp_path):
    (tmp_path / "Two_TRAIN.ts").write_text(TS)
    (tmp_path / "Two_TEST.ts").write_text(TS.replace("7,?:8,NaN:dog\n", ""))
    for path in (tmp_path, tmp_path / "Two_TEST.ts"):
        source = read_ts(path)
        assert [len(source[split]) for split in ("train", "test")] == [2, 1]
        train = source["train"]
        np.testing.assert_array_equal(
            train.values, [[[1, 4], [2, 5], [3, 6]], [[7, 8], [np.nan, np.nan], [0, 0]]]
        )
        assert train.lengths.tolist() == [3, 2]
        assert train.labels == ("cat", "dog")
    (tmp_path / "Own.ts").write_text(TS)
    assert set(read_ts(tmp_path / "Own.ts")) == {"all"}


@pytest.mark.parametrize(
    ("old", "new", "phrase"),
    [
        ("@timeStamps false", "@timeStamps true", "time stamps (@timeStamps true) cannot"),
        ("@classLabel true cat dog", "@classLabel false", "has no class labels"),
        ("@classLabel true cat dog", "@targetLabel true", "a set for regression"),
        ("@classLabel true cat dog\n", "", "has no class labels"),
        ("dog\n@data", "dog", "'1,2,3:4,5,6:cat' is no line of a .ts header"),
        (":cat", ":bird", "line 10: the class label is 'bird', and @classLabel names cat, dog"),
        ("4,5,6", "4,5", "its dimensions have 2 to 3 values"),
        ("7,?:8,NaN:dog", "7,?:dog", "line 11: 1 dimensions, and 2 in the first"),
        ("1,2,3", "1,two,3", "dimension 1 holds 'two', which is no number"),
        ("1,2,3", "", "dimension 1 is empty"),
        ("1,2,3:4,5,6:cat", "1", "there is no class label after a colon"),
        ("1,2,3:4,5,6:cat\n7,?:8,NaN:dog\n", "", "holds no sequence after @data"),
    ],
)
def test_ts_files_that_do_not_fit(tmp_path, old, new, phrase):
    assert old in TS
    path = tmp_path / "Own.ts"
    path.write_text(TS.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_ts(path)
    assert phrase in str(caught.value)


def test_a_file_that_is_named_alone(tmp_path):
    """Its partner is found in upper and lower case, and trains; other data are the file itself."""
    (tmp_path / "Two_train.ts").write_text(TS)
    (tmp_path / "Two_test.ts").write_text(TS.replace("7,?:8,NaN:dog\n", ""))
    for end in ("train", "test"):
        path = tmp_path / f"Two_{end}.ts"
        assert [len(part) for part in read_ts(path).values()] == [2, 1]
        options = TsConfig(path=str(tmp_path), missing="zero")
        facts = {"class_names": ["cat", "dog"], "input_size": 2, "mean": [0, 0], "std": [1, 1]}
        _, part = load_series(options, facts, str(path))
        assert part.ids == tuple(f"Two_{end}:{line}" for line in (10, 11)[: len(part)])
        assert len(part) == (2 if end == "train" else 1)
        assert len(load_unseen(options, facts, str(path), end).test) == len(part)
        other = "test" if end == "train" else "train"
        with pytest.raises(UserError, match=f"is the {end} split of two files.* --split {end}"):
            load_unseen(options, facts, str(path), other)
    assert len(load_series(options, facts, str(tmp_path))[1]) == 3
    options.missing = "error"
    with pytest.raises(
        UserError, match=r"values of .*Two_train\.ts are .* with data.missing=error"
    ):
        load_series(options, facts, str(tmp_path / "Two_train.ts"))
    (tmp_path / "Other_test.ts").write_text(TS)
    assert set(read_ts(tmp_path / "Other_test.ts")) == {"all"}


def test_a_folder_with_two_sets(tmp_path):
    for name in ("A_TRAIN", "B_TRAIN"):
        (tmp_path / f"{name}.ts").write_text(TS)
    with pytest.raises(UserError, match=r"holds A_TRAIN\.ts, B_TRAIN\.ts: give the file itself"):
        read_ts(tmp_path)


def test_a_folder_with_two_sets_of_which_one_has_its_name(tmp_path):
    """aeon has JapaneseVowels and JapaneseVowels_eq in one folder."""
    folder = tmp_path / "Waves"
    folder.mkdir()
    for name in ("Waves_TRAIN", "Waves_eq_TRAIN", "Waves_eq_TEST"):
        (folder / f"{name}.ts").write_text(TS)
    assert {split: part.files[0].name for split, part in read_ts(folder).items()} == {
        "train": "Waves_TRAIN.ts"
    }


# --- pictures


def picture(path, level, size=(3, 2), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level).save(path)


def test_class_folders_with_and_without_splits(tmp_path):
    plain, split = tmp_path / "plain", tmp_path / "split"
    picture(plain / "cat" / "b.png", 7)
    picture(plain / "cat" / "a.PNG", 8)
    picture(plain / "dog" / "sub" / "c.bmp", 9)
    picture(plain / "dog" / ".hidden.png", 1)
    (plain / "dog" / "notes.txt").write_text("no picture")
    (plain / ".git").mkdir()
    read = read_image_folders(plain)["all"]
    assert read.values.shape == (3, 6, 1)
    assert read.image_size == (2, 3)
    assert read.values[:, 0, 0].tolist() == [8, 7, 9]
    assert read.labels == ("cat", "cat", "dog")
    assert read.ids == ("cat/a.PNG", "cat/b.png", "dog/sub/c.bmp")
    for part, level in (("train", 1), ("test", 2)):
        picture(split / part / "cat" / "a.png", level)
    source = read_image_folders(split)
    assert {name: part.values.max() for name, part in source.items()} == {"train": 1, "test": 2}


def test_colours_and_sizes(tmp_path):
    picture(tmp_path / "cat" / "a.png", (10, 20, 30), mode="RGB")
    picture(tmp_path / "cat" / "b.png", 5, size=(6, 4))
    with pytest.raises(UserError, match=r"b\.png is 4 x 6 and others are 2 x 3.*data\.image_size"):
        read_image_folders(tmp_path)
    read = read_image_folders(tmp_path, channels=3, image_size=(4, 4))["all"]
    assert read.values.shape == (2, 16, 3)
    assert read.values[0, 0].tolist() == [10, 20, 30]
    assert read.values[1, 0].tolist() == [5, 5, 5]


def test_a_picture_is_upright(tmp_path):
    image = Image.new("L", (3, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / "a.png", exif=exif)
    read = read_image_folders(tmp_path)["all"]
    assert read.values[0, :, 0].tolist() == [0, 0, 0, 0, 0, 255]


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="holds no folder"):
        read_image_folders(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_image_folders(tmp_path / "gone")
    picture(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="dog holds no picture"):
        read_image_folders(tmp_path)
    (tmp_path / "dog" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png cannot be read as a picture"):
        read_image_folders(tmp_path)
    Image.new("I;16", (3, 2), 200).save(tmp_path / "dog" / "a.png")
    with pytest.raises(UserError, match="grey levels of 16 bits"):
        read_image_folders(tmp_path)
    picture(tmp_path / "dog" / "a.png", 1)
    picture(tmp_path / "train" / "cat" / "a.png", 1)
    with pytest.raises(UserError, match=r"cat, dog, which are neither splits nor classes"):
        read_image_folders(tmp_path)


def test_links_are_followed_once_and_other_files_are_named(tmp_path):
    picture(tmp_path / "else" / "a.png", 1)
    folder = tmp_path / "set"
    picture(folder / "cat" / "b.png", 2)
    (folder / "cat" / "more").symlink_to(tmp_path / "else")
    (folder / "cat" / "loop").symlink_to(folder / "cat")
    (folder / "dog").symlink_to(tmp_path / "else")
    (folder / "cat" / "x.heic").write_bytes(b"")
    (folder / "cat" / "y.txt").write_bytes(b"")
    read = read_image_folders(folder)["all"]
    assert read.ids == ("cat/b.png", "cat/more/a.png", "dog/a.png")
    note = "cat/x.heic (and 1 more) was skipped: its name does not end like a picture's"
    assert read.notes == (note,)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "validation"), ("train", "dev")])
def test_folders_that_only_look_like_splits(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "cat" / "a.png", 1)
    with pytest.raises(UserError, match="the folders are train, val and test"):
        read_image_folders(tmp_path)


def test_transparent_palette_and_cmyk_pictures_are_what_a_prediction_sees(tmp_path):
    """A picture has the same pixels in a training set as for elstm-predict."""
    draw = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    image = Image.fromarray(draw)  # RGBA
    folder = tmp_path / "cat"
    folder.mkdir()
    image.save(folder / "alpha.png")
    image.convert("RGB").convert("P").save(folder / "palette.png", transparency=0)
    image.convert("CMYK").save(folder / "cmyk.tif")
    for channels in (1, 3):
        read = read_image_folders(tmp_path, channels, (4, 3))["all"]
        for name, values in zip(read.ids, read.values, strict=True):
            seen = read_image(tmp_path / name, 4, 3, channels=channels, exact=True)
            np.testing.assert_array_equal(values, seen.reshape(12, channels))


def test_pictures_that_do_not_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "free_memory", lambda: 1)
    picture(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(UserError, match="GB of memory"):
        read_image_folders(tmp_path)


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
