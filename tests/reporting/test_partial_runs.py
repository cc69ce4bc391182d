"""Reports of studies whose runs were killed, lack records, or are unequally many per fold."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
from synthetic_runs import write_run

from elstm.records.find import find_runs
from elstm.records.stored import RunFolder
from elstm.reporting.choose import read_settings
from elstm.reporting.findings import findings, times_are_comparable
from elstm.reporting.groups import Section, choose_baselines, make_sections
from elstm.reporting.measures import Analysis, analyse
from elstm.reporting.pack import pack_study
from elstm.reporting.runs import load_run, load_runs
from elstm.reporting.tables import summary_csv


def section_of(folder: Path) -> Section:
    [section] = make_sections(load_runs([folder])[0])
    choose_baselines([section], [])
    return section


def analysis_of(folder: Path) -> Analysis:
    return analyse(section_of(folder))


def killed(folder: Path, seed: int = 0) -> Path:
    """A run that was killed in its second epoch, with a status.json from the end of the first."""
    status = {"epoch": 1.0, "train_seconds": 6.0, "wall_seconds": 6.6}
    return write_run(folder, seed=seed, epochs=4, state="running", until=1.9, status=status)


def test_seconds_and_epochs_of_a_killed_run_are_of_one_moment(tmp_path: Path) -> None:
    run = load_run(RunFolder("run", killed(tmp_path / "killed")))
    assert run.epoch > 1.7  # metrics.csv is further than status.json
    assert (run.per_epoch(run.train_seconds), run.per_epoch(run.wall_seconds)) == (6.0, 6.6)


def test_times_are_those_of_finished_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "done", seed=0, epochs=4, status={"train_seconds": 40.0})
    killed(tmp_path / "killed", seed=1)
    analysis = analysis_of(tmp_path)
    seconds = analysis.results[0].train_seconds
    assert seconds is not None
    assert (seconds.n, seconds.mean) == (1, 10.0)
    assert not any("rough" in str(item) for item in findings(analysis))


MACHINE = "CPU, 2 threads, "
ONE, MOVED = {"machine": MACHINE + "x"}, {"machine_changes": [[0, MACHINE + "x"], [9, "GPU"]]}


@pytest.mark.parametrize(
    ("statuses", "comparable"),
    [
        ((ONE, {}), True),  # an earlier version recorded no processor
        ((ONE, {"machine": MACHINE + "y"}), False),
        ((MOVED, MOVED), False),  # the times of each are of two machines
    ],
)
def test_times_of_two_machines_are_not_compared(
    tmp_path: Path, statuses: tuple[dict[str, object], ...], comparable: bool
) -> None:
    for seed, status in enumerate(statuses):
        write_run(tmp_path / str(seed), seed=seed, epochs=1, status=dict(status))
    analysis = analysis_of(tmp_path)
    assert times_are_comparable(analysis.section.groups) is comparable
    said = [str(item) for item in findings(analysis) if "Times are not comparable" in str(item)]
    assert bool(said) is not comparable
    assert comparable or MACHINE + "x" in said[0]


def test_a_resume_with_other_code_is_named(tmp_path: Path) -> None:
    changes = {"code_changes": [[0, "aa, torch 2.11"], [9, "bb, torch 2.11"]]}
    write_run(tmp_path / "run", epochs=1, status=changes)
    said = [str(item) for item in findings(analysis_of(tmp_path))]
    assert any("1 run resumed with another commit" in item for item in said)


def test_how_many_runs_a_mean_of_epochs_covers(tmp_path: Path) -> None:
    write_run(tmp_path / "done", seed=0, epochs=4)
    killed(tmp_path / "killed", seed=1)
    (row,) = csv.DictReader(io.StringIO(summary_csv([analysis_of(tmp_path)])))
    name = "baseline_best"
    assert (row["runs"], row[f"runs_to_{name}"], row[f"reached_{name}"]) == ("2", "1", "1")


def test_the_best_accuracy_survives_a_gap_in_the_metrics(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=4, status={"best_val_accuracy": 0.875})
    assert not any("lack evaluations" in str(item) for item in findings(analysis_of(tmp_path)))
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    late = [line for line in lines if float(line.split(",")[0]) > 3]
    (folder / "metrics.csv").write_text("\n".join([header, *late, ""]))
    analysis = analysis_of(tmp_path)
    best = analysis.results[0].best_validation
    assert best is not None
    assert best.mean == 0.875
    assert any("1 finished run lack evaluations" in str(item) for item in findings(analysis))


def test_a_baseline_has_a_finished_run_if_any_has(tmp_path: Path) -> None:
    write_run(tmp_path / "a", optimizer__lr=0.1, epochs=2, offset=0.05, state="interrupted")
    write_run(tmp_path / "b", optimizer__lr=0.2, epochs=2)
    assert section_of(tmp_path).baseline.label == "lstm lr=0.2"


def test_means_over_folds_take_each_fold_once(tmp_path: Path) -> None:
    """Fold 0 has three seeds and fold 1 one, so that a mean over runs is another number."""
    for fold, seed, value in ((0, 0, 0.9), (0, 1, 0.9), (0, 2, 0.9), (1, 0, 0.5)):
        status = {"data_fingerprint": "aa", "test_accuracy_batch_stats": value} | dict.fromkeys(
            ("test_accuracy", "best_val_accuracy"), value
        )
        write_run(tmp_path / f"{fold}-{seed}", "elstm_bn", "waves", seed, epochs=2, status=status,
                  data__folds=2, data__fold=fold)  # fmt: skip
    [result] = analysis_of(tmp_path).results
    assert result.test_accuracy is not None
    assert result.test is not None
    assert result.test_accuracy.mean == result.test[0].mean == pytest.approx(0.7)
    assert result.group.best_validation == pytest.approx(0.7)
    [setting] = read_settings([tmp_path])["elstm_bn"]
    assert (setting.mean, len(setting.bests)) == (pytest.approx(0.7), 4)


@pytest.mark.parametrize("start", ["outputs/study/", "/elsewhere/outputs/study/"])
def test_a_sweeps_folder_names_all_its_runs(tmp_path: Path, start: str) -> None:
    """Also where hydra.sweep.dir is deeper or was moved, and where an archive holds a run."""
    root = tmp_path / "outputs/study"
    names = [f"fashion_mnist/lstm/seed-{seed}/2025-{seed}" for seed in (0, 1)]
    for seed, name in enumerate(names):
        write_run(root / name, seed=seed, epochs=1)
    sweep = root / "sweeps/2025"
    sweep.mkdir(parents=True)
    lines = ["run_dir", *(f"{start}{name}" for name in names), ""]
    (sweep / "sweep.csv").write_text("\n".join(lines))
    assert [run.folder for run in find_runs([sweep])[0]] == [root / name for name in names]
    pack_study(root)
    shutil.rmtree(root / "fashion_mnist/lstm/seed-0")
    assert [load_run(run).seed for run in find_runs([sweep])[0]] == [0, 1]
