"""Tables in CSV and Parquet files: what is read, and one clear message for each fault."""

import time
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from tiny_files import COLUMNS, TABLE

from elstm.config.data_options import TableConfig
from elstm.data.load import read_user_data
from elstm.data.readers.cells import number_cell, time_cell
from elstm.data.readers.table import Columns, read_table
from elstm.data.unseen import load_series
from elstm.errors import UserError


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
            "holds '0,5', which is no number; numbers are read as 0.5, with",
        ),
        (TABLE + "y,dog,2,1_2,6\n", "column 'a' holds '1_2', which is no number"),
        (TABLE + ",dog,2,5,6\n", "the column 'id' is empty"),
        (TABLE + "NA,dog,2,5,6\n", "the column 'id' holds 'NA', which stands for a missing value"),
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
            "line 4: the column 't' (data.group): a group is missing",
        ),
        (
            TABLE.replace("dog,1", "dog,NA").replace("cat,1", "cat,2"),
            "line 4: the column 't' (data.group): 'NA' stands for a missing value",
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
    with pytest.raises(UserError, match=r"holds '1\.250', .* as 0,5, with 'data.decimal=\"\.\"'"):
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
    plain = pyarrow.table({**table, "id": [b"x", b"x", b"y"]})  # text without a type
    parquet.write_table(plain, tmp_path / "bytes.parquet")
    assert read_table(tmp_path / "bytes.parquet", columns)["all"].ids == a.ids
    half = np.float16(0.5)  # older pyarrow returns such numbers
    assert number_cell("", "a", half) == time_cell("", "t", half) == 0.5
    for name, phrase in (("id", "column 'id' is empty"), ("kind", "kind: a label is missing")):
        changed = {**table, name: [None, *table[name][1:]]}
        parquet.write_table(pyarrow.table(changed), tmp_path / "null.PARQUET")
        with pytest.raises(UserError, match=phrase):
            read_table(tmp_path / "null.PARQUET", columns)
