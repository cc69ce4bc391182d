"""scripts/study.py: trains, chooses, reports and checks a study."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from fake_training import FakeTraining

from elstm.commands import report
from elstm.config.compose import Composer
from elstm.config.removed import REMOVED
from elstm.config.schema import settings_without_effect
from elstm.config.study import read_study
from elstm.files.bounded import Config, flatten
from elstm.records.archive import Archive
from elstm.reporting.runs import load_runs

ROOT = Path(__file__).parents[2]
# A plan is committed before its runs, so a file here may have no archive yet.
STUDIES = [
    path
    for path in sorted((ROOT / "conf" / "study").glob("*.yaml"))
    if (ROOT / "outputs" / "paper" / path.stem / "archive.yaml").exists()
]
PLANNED = sorted(set((ROOT / "conf" / "study").glob("*.yaml")) - set(STUDIES))
PAPER = ROOT / "outputs" / "paper"

spec = importlib.util.spec_from_file_location("study_script", ROOT / "scripts" / "study.py")
assert spec is not None
assert spec.loader is not None
study = importlib.util.module_from_spec(spec)
sys.modules["study_script"] = study
spec.loader.exec_module(study)

TEXTS = dict.fromkeys(("question", "hypothesis", "tuned", "tests", "cost"), "text")
TINY = {
    "data": "digits", "data.train_size": 64, "model.hidden_size": 4, "trainer.max_epochs": 1,
    "trainer.threads": 1,
}  # fmt: skip


def write(path: Path, **fields: object) -> str:
    path.write_text(yaml.safe_dump({**TEXTS, "settings": TINY, **fields}))
    return str(path)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A study that tunes, and one that takes what it chose."""
    monkeypatch.chdir(tmp_path)
    tuning = write(
        Path("tuning.yaml"), models=["lstm"], seeds=[9], grid={"optimizer.lr": [1e-5, 0.05]},
        tables={"settings.md": "."},
    )  # fmt: skip
    final = write(
        Path("final.yaml"), models=["lstm", "gru"], seeds=[0, 1],
        choose=[{"from": "tuning", "model": "lstm"}], parts=[{}, {"seeds": [2], "quick": False}],
        quick={"seeds": 1, "settings": {"data.train_size": 32}},
        report={"title": "Mine", "with": ["tuning/*/ls*"], "figures": []},
    )  # fmt: skip
    return final, tuning


@pytest.mark.slow
def test_a_study_of_ones_own(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.main([*files, "--quick"]) == 0
    out = capsys.readouterr().out
    assert "model=lstm,gru" not in out  # one sweep for each model where settings are chosen
    text = Path("outputs-quick/final/report.md").read_text()
    assert "# Mine" in text
    assert "4 runs in 4 groups" in text
    assert "| lstm | **lr=0.05** |" in Path("outputs-quick/tuning/settings.md").read_text()
    assert study.main([files[1], "--quick"]) == 0
    assert "already done" in capsys.readouterr().out
    runs, _ = load_runs([Path("outputs-quick/final")])
    assert {(run.model, run.seed) for run in runs} == {("lstm", 0), ("gru", 0)}
    assert {run.config["optimizer.lr"] for run in runs} == {0.05}
    assert {run.config["data.train_size"] for run in runs} == {32}

    # Its archive is checked: the same runs again are the same, and a changed value is found.
    for name in ("final", "tuning"):
        assert report.main(["--pack", f"outputs-quick/{name}"]) == 0
    shutil.rmtree("outputs-quick/final/digits")
    capsys.readouterr()
    assert study.main([files[0], "--quick", "--check"]) == 0
    assert capsys.readouterr().out.count(": identical\n") == 2
    curves = Path("outputs-quick/final/curves.csv")
    lines = curves.read_text().splitlines()
    column = lines[0].split(",").index("train_loss")
    cells = lines[1].split(",")
    cells[column] = "3"
    curves.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    assert study.main([files[0], "--quick", "--check"]) == 1
    out = capsys.readouterr().out
    assert "train_loss 3 before, " in out
    assert "classified otherwise" not in out

    images = Path("outputs-quick/final/test_correct.csv")
    header, row, *others = images.read_text().splitlines()
    number, count, bits = row.split(",")
    flipped = ",".join([number, count, f"{int(bits[0], 16) ^ 8:x}{bits[1:]}"])
    images.write_text("\n".join([header, flipped, *others]) + "\n")
    assert study.main([files[0], "--quick", "--check"]) == 1
    assert "1 test image classified otherwise" in capsys.readouterr().out


def test_reports_alone_train_nothing(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.train, "main", lambda words: pytest.fail("trained"))
    assert study.main([*files, "--report"]) == 0
    assert "final: no runs in outputs/final" in capsys.readouterr().out


def test_a_sweep_that_is_stopped_stops_the_study(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(study.train, "main", lambda words: calls.append(words) or 130)
    with pytest.raises(SystemExit) as end:
        study.main([*files])
    assert (end.value.code, len(calls)) == (130, 1)


def test_what_cannot_be_chosen_yet(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.main([files[0]]) == 1
    assert capsys.readouterr().err == "study.py: error: outputs/tuning is not a folder: give run " \
        "folders or folders that hold them\n"  # fmt: skip


# --- the kept studies


def told_apart(config: Config) -> Config:
    """What makes a run, as far as a config of an earlier version has it."""
    left_out = settings_without_effect()
    return {
        key: value
        for key, value in config.items()
        if key not in REMOVED and not any(f"{key}.".startswith(f"{name}.") for name in left_out)
    }


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_kept_studys_file_asks_for_the_runs_in_its_archive(path: Path) -> None:
    """The first and last run of each sweep have the very settings that the archive has."""
    found = read_study(path)
    kept = [told_apart(run.config()) for run in Archive(PAPER / found.name).runs]
    compose = Composer().many()
    planned = 0
    for words in study.Runner(PAPER, quick=False, jobs=1).sweeps(found):
        values = [
            [f"{word.partition('=')[0]}={value}" for value in word.partition("=")[2].split(",")]
            for word in words
            if not word.startswith("hydra.")
        ]
        runs = list(itertools.product(*values))
        planned += len(runs)
        for run in {runs[0], runs[-1]}:
            config = told_apart(flatten(asdict(compose(run)), ""))
            assert any(each.items() <= config.items() for each in kept), run
    assert planned == len(kept)


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_a_planned_study_composes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "best_overrides", lambda folders, model: ("optimizer.lr=0.01",))
    compose = Composer().many()
    for words in study.Runner(PAPER, quick=False, jobs=1).sweeps(read_study(path)):
        values = [(key, text.split(",")) for key, _, text in (w.partition("=") for w in words)]
        for end in (0, -1):
            compose([f"{key}={each[end]}" for key, each in values if not key.startswith("hydra.")])


def test_the_runs_of_a_kept_study_are_finished(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tuning", "tuning-196", "full-196"):
        shutil.copytree(PAPER / name, tmp_path / name)
    path = ROOT / "conf" / "study" / "full-196.yaml"
    assert study.main([str(path), "--out", str(tmp_path)]) == 0
    assert training.calls == []
    assert capsys.readouterr().out.count(": already done") == 15


@pytest.mark.parametrize("name", ["full-196", "gamma-pixels"])
def test_a_kept_page_is_what_its_archive_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PAPER / name, tmp_path / name)
    (tmp_path / name / "report.md").unlink()
    path = ROOT / "conf" / "study" / f"{name}.yaml"
    assert study.main([str(path), "--report", "--out", str(tmp_path)]) == 0
    assert (tmp_path / name / "report.md").read_bytes() == (PAPER / name / "report.md").read_bytes()


def test_the_kept_evidence_names_no_folder_of_a_machine() -> None:
    folder = re.compile(r"(?<![\w.:/-])/(home|root|work|tmp|Users|mnt)/")
    for path in PAPER.rglob("*"):
        if path.suffix in (".md", ".yaml") or path.name == "runs.csv":
            assert folder.search(path.read_text("utf-8")) is None, path


def test_the_kept_evidence_stays_small() -> None:
    files = [path for path in PAPER.rglob("*") if path.is_file()]
    kept = [p for p in files if p.name not in ("results.csv", "summary.csv", "report.html")]
    kept = [path for path in kept if path.suffix != ".svg"]
    assert len(kept) <= 150
    assert sum(path.stat().st_size for path in kept) < 8_000_000
