"""Untrusted run folders: links are not followed, pipes are not waited for, text is escaped."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from synthetic_runs import write_run
from untrusted_runs import WORDS, refused_by_all

from elstm import train
from elstm.commands import evaluate, predict, report
from elstm.commands.prediction_rows import CsvRows
from elstm.files.atomic import read_json, write_atomic

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_the_run_itself_works(run: Path, image: Path) -> None:
    assert predict.main([str(run), str(image)]) == 0
    assert evaluate.main([str(run)]) == 0
    assert train.main([f"trainer.resume={run}"]) == 0


def test_names_of_classes_run_nothing() -> None:
    """Neither in a terminal nor in a spreadsheet."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    names = ["=cmd()", "\x1b[31m"]
    for out in (io.StringIO(), Terminal()):
        rows = CsvRows(out)
        rows.start(["file"], names, lambda text, terminal: text)
        rows.add(["a"], [0.75, 0.25])
        header, row = out.getvalue().splitlines()
        assert row == "a,'=cmd(),0.750000,0.750000,0.250000"
        assert ("\x1b" in header) == (not out.isatty())
    assert "\x1b" not in evaluate._table(torch.eye(2, dtype=torch.int64), names, "images")


@pytest.mark.parametrize("name", ["train.log", "metrics.csv", "checkpoints", "norms.csv"])
def test_a_resume_writes_through_no_link_and_waits_for_no_pipe(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, elsewhere = run / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    before = elsewhere.read_bytes() if elsewhere.is_file() else None
    path.symlink_to(elsewhere)
    assert train.main([f"trainer.resume={run}"]) == 1
    assert "is a link" in capsys.readouterr().err
    path.unlink()
    os.mkfifo(path)
    assert train.main([f"trainer.resume={run}"]) == 1
    assert "not a plain file" in capsys.readouterr().err
    assert before is None or elsewhere.read_bytes() == before


def test_a_file_in_the_place_of_the_checkpoints(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("x")
    before = (run / "metrics.csv").read_bytes()
    assert train.main([f"trainer.resume={run}"]) == 1
    assert "checkpoints is a file and has to be a folder" in capsys.readouterr().err
    assert (run / "metrics.csv").read_bytes() == before


def test_checkpoints_that_are_links_are_not_read(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("best.pt", "last.pt"):
        path = run / "checkpoints" / name
        path.rename(f"{name}-elsewhere")
        path.symlink_to(Path(f"{name}-elsewhere").absolute())
    refused_by_all(run, image, capsys, "is a link")


def test_a_new_file_is_not_written_through_a_link_that_waits_for_it(run: Path) -> None:
    victim = Path("victim").absolute()
    victim.write_text("mine")
    (run / f".status.json.{os.getpid()}.tmp").symlink_to(victim)
    write_atomic(run / "status.json", b"{}")
    assert victim.read_text() == "mine"
    assert (run / "status.json").read_text() == "{}"


@pytest.mark.parametrize(
    "content", ["[" * 500_000, '{"a":' * 200_000, "1" * 500_000, '{"x": "' + "y" * 1_000_000 + '"}']
)
def test_a_status_of_any_kind_is_passed_over(run: Path, content: str) -> None:
    path = run / "status.json"
    path.write_text(content)
    assert read_json(path) is None
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10**9)
    assert read_json(path) is None
    path.unlink()
    os.mkfifo(path)
    assert read_json(path) is None
    assert train.main([f"trainer.resume={run}"]) == 0


def test_a_sweep_passes_over_links_and_shows_no_escapes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Path("outputs/digits/bn_lstm")
    group.mkdir(parents=True)
    shutil.copytree(run, group / "2000-run")
    path = group / "2000-run" / "status.json"
    status = json.loads(path.read_text())
    path.write_text(
        json.dumps({**status, "state": "done", "error": "=cmd()\x1b[31m", "wall_seconds": 10**400})
    )
    assert train.main(["-m", *WORDS]) == 0
    captured = capsys.readouterr()
    assert "already done" in captured.out
    assert "\x1b[31m" not in captured.out + captured.err
    (table,) = Path("outputs/sweeps").glob("*/sweep.csv")
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert row["error"] == "'=cmd()?[31m"

    shutil.rmtree("outputs")
    group.mkdir(parents=True)
    (group / "2000-run").symlink_to(run)
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    assert train.main(["-m", *WORDS, "trainer.max_steps=1"]) == 0
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


INJECTION = "=cmd|'/C calc'!A0<script>alert(1)</script>[x](javascript:alert(1))\x1b[31m"


def test_a_report_of_an_untrusted_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "runs" / "=a<b>", "lstm", epochs=2)
    write_run(tmp_path / "runs" / "b", "lstm", epochs=2, seed=1)
    path = folder / "status.json"
    status = json.loads(path.read_text())
    path.write_text(
        json.dumps({**status, "error": INJECTION, "device": INJECTION, "backend": "@x"})
    )
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text() + f"\nextra: {json.dumps(INJECTION)}\n")
    (folder / "norms.csv").write_text(f'epoch,norm,gamma_mean\n1,"{INJECTION}",2\n' + "x," * 10**6)
    (folder / "events.out.tfevents.1.elstm").write_bytes(b"\xff" * 100)
    report.main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err
    for name in ("results.csv", "summary.csv"):
        for row in csv.reader((tmp_path / "report" / name).read_text().splitlines()):
            for cell in row:
                assert cell[:1] not in ("=", "+", "@")
                assert cell.isprintable()
    html = (tmp_path / "report" / "report.html").read_text()
    assert html.count("<script") == 1  # the page's own, allowed by its checksum alone
    assert "script-src 'sha256-" in html
    assert "default-src 'none'" in html
    assert "](javascript" not in (tmp_path / "report" / "report.md").read_text().replace("\\]", "")
