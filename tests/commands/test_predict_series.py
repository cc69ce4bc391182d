"""elstm-predict with runs on own sequences: labelled and unlabelled files of each format."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from own_data import QUICK, sequences, the_run, write_arrays
from training_runs import rows as metrics

from elstm import train
from elstm.commands import evaluate, predict, prediction_rows

pytestmark = pytest.mark.usefixtures("no_pictures")
TABLE = ("data=table", "data.path=t.csv", "data.id=i", "data.label=c", "data.time=t")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predicted(
    capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[list[str], list[dict[str, str]]]:
    capsys.readouterr()
    assert predict.main([str(the_run()), *words]) == 0
    reader = csv.DictReader(io.StringIO(capsys.readouterr().out))
    return list(reader.fieldnames or ()), list(reader)


def test_arrays_with_and_without_labels(capsys: pytest.CaptureFixture[str]) -> None:
    write_arrays(Path("waves.npz"))
    assert train.main(["data=arrays", "data.path=waves.npz", *QUICK]) == 0
    columns, rows = predicted(capsys, "waves.npz")
    assert columns == ["id", "label", "predicted", "probability", "p(0)", "p(1)", "p(2)"]
    assert [row["id"] for row in rows[:2]] == ["X[0]", "X[1]"]
    assert [row["label"] for row in rows] == [str(label) for label in sequences()["y"]]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert evaluate.main([str(the_run()), "--data", "waves.npz"]) == 1
    err = capsys.readouterr().err
    assert "waves.npz holds the run's own data, training sequences too: leave --data out" in err
    assert evaluate.main([str(the_run()), "--data", "x.npz", "--data-root", "waves.npz"]) == 1
    np.savez("turned.npz", **{name: values[::-1] for name, values in sequences().items()})
    assert evaluate.main([str(the_run()), "--data", "turned.npz"]) == 0
    out = capsys.readouterr().out
    assert f"on turned.npz, all {len(rows)} sequences\n" in out
    assert f"({right} right)" in out

    arrays = sequences()
    np.savez("new.npz", X=arrays["X"], lengths=arrays["lengths"])
    _, unlabelled = predicted(capsys, "new.npz")
    assert [{**row, "label": ""} for row in rows] == unlabelled
    _, both = predicted(capsys, "new.npz", "waves.npz")
    assert len(both) == 120
    assert both[60]["id"] == "waves.npz: X[0]"


def test_parquet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet has the columns and rows of the CSV, through groups of rows; texts as they are."""
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(prediction_rows, "GROUP", 25)
    write_arrays(Path("waves.npz"))
    assert train.main(["data=arrays", "data.path=waves.npz", *QUICK, "trainer.max_steps=1"]) == 0
    columns, rows = predicted(capsys, "waves.npz")
    assert predict.main([str(the_run()), "waves.npz", "-o", "out.parquet"]) == 0
    table = parquet.read_table("out.parquet")
    assert table.column_names == columns
    for row, found in zip(rows, table.to_pylist(), strict=True):
        for name, value in found.items():
            assert row[name] == (value if isinstance(value, str) else f"{value:.6f}")
    arrays = sequences()
    np.savez("=new.npz", X=arrays["X"][:2], lengths=arrays["lengths"][:2])
    before = Path("out.parquet").read_bytes()
    assert predict.main([str(the_run()), "=new.npz", "waves.npz", "-o", "out.parquet"]) == 0
    new = parquet.read_table("out.parquet").to_pylist()[:2]
    assert [(row["id"], row["label"]) for row in new] == [
        ("=new.npz: X[0]", None), ("=new.npz: X[1]", None),
    ]  # fmt: skip

    Path("out.parquet").write_bytes(before)
    assert predict.main([str(the_run()), "missing.npz", "-o", "out.parquet"]) == 1
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert predict.main([str(the_run()), "waves.npz", "-o", "out.parquet"]) == 1
    assert "Parquet files need pyarrow: pip install 'elstm[parquet]'" in capsys.readouterr().err
    assert Path("out.parquet").read_bytes() == before


def write_table(path: str, columns: str) -> None:
    arrays = sequences(unequal=False)
    lines = [columns]
    for i, values in enumerate(arrays["X"]):
        for t, (a, b) in enumerate(values):
            cells = {"i": i, "c": f"c{arrays['y'][i]}", "t": t, "a": a, "b": 10 + 5 * b}
            cells |= {"unit": "m", "b2": 0}
            lines.append(",".join(str(cells[name]) for name in columns.split(",")))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_columns_of_a_table_go_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    write_table("t.csv", "i,c,t,a,b")
    assert train.main([*TABLE, *QUICK]) == 0
    _, expected = predicted(capsys, "t.csv")
    write_table("new.csv", "b,t,a,i")
    _, rows = predicted(capsys, "new.csv")
    assert [{**row, "label": ""} for row in expected] == rows
    write_table("more.csv", "b,t,a,i,unit,b2")  # columns that the training data had not
    assert predicted(capsys, "more.csv")[1] == rows
    write_table("other.csv", "i,t,a")
    assert predict.main([str(the_run()), "other.csv"]) == 1
    assert "other.csv has the features a, and the training data have a, b" in (
        capsys.readouterr().err
    )


def test_the_splits_of_a_table_go_by_their_names() -> None:
    Path("t.csv").mkdir()
    write_table("t.csv/train.csv", "i,c,t,a,b")
    write_table("t.csv/test.csv", "b,a,t,c,i")
    assert train.main([*TABLE, *QUICK, "trainer.max_epochs=4"]) == 0
    assert float(metrics(the_run())[-1]["test_accuracy"]) > 0.8


def test_ts_files_without_class_labels(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = sequences(48, unequal=False)
    header = ["@problemName W", "@timeStamps false"]
    values = [":".join(",".join(map(str, column)) for column in x.T) for x in arrays["X"]]
    labels = [f":{'abc'[y]}" for y in arrays["y"]]
    lines = [*header, "@classLabel true a b c", "@data"]
    lines += [text + label for text, label in zip(values, labels, strict=True)]
    Path("W.ts").write_text("\n".join(lines), encoding="utf-8")
    lines = [*header, "@classLabel false", "@data", *values]
    Path("new.ts").write_text("\n".join(lines), encoding="utf-8")
    assert train.main(["data=ts", "data.path=W.ts", *QUICK]) == 0
    _, expected = predicted(capsys, "W.ts")
    _, rows = predicted(capsys, "new.ts")
    assert [row["p(b)"] for row in rows] == [row["p(b)"] for row in expected]
    assert train.main(["data=ts", "data.path=new.ts", *QUICK]) == 1
    assert "new.ts has no class labels" in capsys.readouterr().err


def test_options_for_pictures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_arrays(Path("waves.npz"))
    assert train.main(["data=arrays", "data.path=waves.npz", *QUICK, "trainer.max_steps=1"]) == 0
    assert predict.main([str(the_run()), "waves.npz", "--fit"]) == 1
    assert "--fit is for pictures" in capsys.readouterr().err
    assert predict.main([str(the_run()), "nothing.npz"]) == 1
    assert "nothing.npz: there is no such file" in capsys.readouterr().err


def test_no_cell_is_a_formula() -> None:
    out = io.StringIO()
    rows = prediction_rows.CsvRows(out)
    classes = ["=cmd()", "-1", "-cmd()"]
    rows.start(["id", "label"], classes, prediction_rows.shown_text)
    for best in range(3):
        rows.add(["\t=x", classes[best]], [float(place == best) for place in range(3)])
    found = list(csv.reader(io.StringIO(out.getvalue())))[1:]
    assert [row[:3] for row in found] == [
        ["'\t=x", text, text] for text in ("'=cmd()", "-1", "'-cmd()")
    ]
