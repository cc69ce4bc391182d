"""Sweeps whose runs are in an archive: they are finished, without their folders."""

import csv
import shutil
from pathlib import Path

from elstm.files.atomic import write_together
from elstm.records.archive import pack
from elstm.records.find import find_runs
from elstm.train import main

ROOT = Path("outputs")
SWEEP = ["-m", "model=lstm,elstm_bn", "seed=0,1", "optimizer.lr=0.1"]


def archive():
    """Packs all runs under outputs/ and deletes their folders."""
    runs, _ = find_runs([ROOT])
    folders = [run.folder.relative_to(ROOT.resolve()).as_posix() for run in runs]
    write_together(ROOT, pack(runs, folders, []))
    shutil.rmtree(ROOT / "digits")


def trained(training):
    return [(c.config.model.name, c.config.seed) for c in training.calls]


def test_archived_runs_are_finished(training, capsys):
    training.accuracy = lambda config: 0.25 + config.seed / 4
    assert main(SWEEP) == 0
    archive()
    training.calls.clear()
    capsys.readouterr()
    assert main([*SWEEP, "seed=0,1,2", "trainer.progress=false"]) == 0
    assert trained(training) == [("lstm", 2), ("elstm_bn", 2)]
    out = capsys.readouterr().out
    assert "[2/6] model=lstm seed=1: already done" in out
    assert "validation 50.00%, test 50.00%, 1.5 s, outputs/digits/lstm/" in out
    with (max((ROOT / "sweeps").iterdir()) / "sweep.csv").open() as file:
        rows = {(row["model"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert rows["lstm", "1"]["best_val_accuracy"] == "0.5"
    assert len(list(ROOT.glob("digits/*/*/*/status.json"))) == 2  # of the new ones


def test_only_finished_runs_of_an_archive_count(training):
    training.answer = lambda config: "interrupted" if config.seed else "done"
    assert main(SWEEP) > 1  # the second run ends it
    training.answer = lambda config: "done"
    archive()
    training.calls.clear()
    assert main(SWEEP) == 0
    assert trained(training) == [("lstm", 1), ("elstm_bn", 0), ("elstm_bn", 1)]
    assert not any(call.resume for call in training.calls)


def test_an_archived_run_with_a_removed_setting_is_another_run(training):
    assert main(SWEEP) == 0
    values = {"lstm": "stop", "elstm_bn": "skip"}
    for path in ROOT.glob("digits/*/*/*/.hydra/config.yaml"):
        value = values[path.parts[2]]
        text = path.read_text()
        path.write_text(text.replace("trainer:\n", f"trainer:\n  on_nonfinite: {value}\n"))
    archive()
    training.calls.clear()
    assert main(SWEEP) == 0
    assert trained(training) == [("elstm_bn", 0), ("elstm_bn", 1)]


def test_a_finished_run_in_the_archive_comes_before_a_failed_one_in_a_folder(training):
    assert main(SWEEP) == 0
    archive()
    training.answer = lambda config: RuntimeError("broken")
    assert main([*SWEEP, "sweep.rerun=true"]) == 1
    training.calls.clear()
    assert main(SWEEP) == 0
    assert training.calls == []


def test_sweep_rerun_trains_archived_runs_again(training):
    assert main(SWEEP) == 0
    archive()
    assert main([*SWEEP, "sweep.rerun=true"]) == 0
    assert len(training.calls) == 8


def test_a_damaged_archive_stops_the_sweep_before_it_trains_everything_again(training, capsys):
    assert main(SWEEP) == 0
    archive()
    (ROOT / "runs.csv").write_text("run,folder\n")
    training.calls.clear()
    capsys.readouterr()
    assert main(SWEEP) == 1
    err = capsys.readouterr().err
    assert "outputs holds an archive that cannot be read (runs.csv: its first line" in err
    assert err.count("\n") == 1
    assert training.calls == []
