import json
import re
import shutil

import pytest
from synthetic_runs import write_inside, write_run

from elstm.commands.report import main

NORMS = {"norm_ih_l0": [(1.0, 0.5, 0.25), (1.1, 0.5, 0.3)], "norm_c_l0": [(0.9, 0.1, 1.0)] * 2}
OVER_TIME = {"gradient": [0.5, 0.25, 0.125], "cell_mean": [0.0, 0.5, 1.0]}


def write_study(folder):
    """A study on two sets with settings of earlier versions; every group has its inside."""
    for data in ("fashion_mnist", "mnist"):
        for model in ("lstm", "elstm_bn"):
            for seed in range(2):
                run = write_run(folder / data / model / f"{seed}", model, data, seed=seed, epochs=2)
                write_inside(run, NORMS, OVER_TIME)
    for seed in range(2):
        run = write_run(
            folder / "mnist/elstm_bn" / f"renorm-{seed}", "elstm_bn", "mnist", seed=seed, epochs=2,
            model__renorm=True, model__renorm_start=100, trainer__on_nonfinite="skip",
        )  # fmt: skip
        write_inside(run, NORMS, OVER_TIME)
    write_run(
        folder / "mnist/lstm/x", "lstm", "mnist", seed=5, epochs=2, state="failed",
        error=f"=x|\x1b {folder}/mnist/lstm/x/checkpoints/last.pt",
    )  # fmt: skip
    write_run(
        folder / "mnist/lstm/y", "lstm", "mnist", seed=6, epochs=2, until=1.0, state="interrupted",
        status={"git_commit": "12345678", "versions": {"python": "3.10", "torch": "2.20"}},
    )  # fmt: skip
    write_run(folder / "mnist/lstm/z", "lstm", "mnist", seed=1, epochs=2, state="running", until=1)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("runs") / "study")


@pytest.fixture
def archive(study, tmp_path):
    """The archive alone, in a folder of the study's name."""
    folder = tmp_path / "study"
    assert main(["--pack", str(study), "-o", str(folder)]) == 0
    return folder


def report(output, *arguments):
    """All files of a report."""
    assert main([*map(str, arguments), "-o", str(output)]) == 0
    found = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }
    # Only folders that exist have a link.
    found["report.md"] = re.sub(rb"\[([^]]*)\]\(\.\.[^)]*\)", rb"\1", found["report.md"])
    found["report.html"] = re.sub(rb'<a href="\.\.[^"]*">([^<]*)</a>', rb"\1", found["report.html"])
    return found


def test_no_path_of_the_machine_is_packed(study, archive):
    text = (archive / "runs.csv").read_text()
    assert "checkpoints/last.pt" in text
    assert str(study) not in text


def test_the_report_of_an_archive_is_that_of_the_folders(study, archive, tmp_path):
    baselines = ("--baseline", "lstm", "--baseline", "elstm_bn")
    figures = ("--figures", "validation-accuracy,test-accuracy,normalisation,time-steps")
    for inner, options, files in ((".", ("--figures", "none"), 4), ("mnist", figures, 12)):
        from_folders = report(tmp_path / f"a{files}", study / inner, *baselines, *options)
        from_archive = report(tmp_path / f"b{files}", archive / inner, *baselines, *options)
        assert len(from_folders) == files  # each figure twice, and four texts
        assert from_archive == from_folders
    assert sorted(path.name for path in archive.iterdir()) == [
        "archive.yaml", "curves.csv", "norms.csv", "over_time.csv", "runs.csv",
    ]  # fmt: skip


def test_paths_below_an_archive_name_its_runs(study, archive, tmp_path):
    for inner in ("mnist", "mnist/lstm", "mnist/elstm_bn/renorm-1"):
        options = (study / "fashion_mnist/lstm/0", "--figures", "none")
        from_folders = report(tmp_path / "a", study / inner, *options)
        from_archive = report(tmp_path / "b", archive / inner, *options)
        assert from_archive == from_folders
        assert not [name for name in from_folders if name.endswith((".png", ".svg"))]


def test_a_place_that_the_archive_does_not_have(archive, capsys):
    assert main([str(archive / "mnist/gru")]) == 1
    assert "neither a folder nor in the archive" in capsys.readouterr().err


def test_settings_that_were_removed_divide_groups_and_are_shown(archive, tmp_path):
    text = report(tmp_path / "report", archive, "--figures", "none")["report.md"].decode()
    assert "| elstm_bn renorm=true on_nonfinite=skip |" in text
    assert "renorm_start=" not in text.partition("### Settings")[0]


def test_run_folders_and_the_archive_beside_them_count_once(tmp_path, capsys):
    study = write_study(tmp_path / "study")
    before = report(tmp_path / "a", study, "--figures", "none")
    assert main(["--pack", str(study)]) == 0
    assert report(tmp_path / "a", study, "--figures", "none") == before
    # A study that goes on: what is left of it is packed again with the new run.
    shutil.rmtree(study / "mnist")
    write_run(study / "mnist/gru/new", "gru", "mnist", epochs=2)
    capsys.readouterr()
    assert main(["--pack", str(study)]) == 0
    assert "14 runs, " in capsys.readouterr().out
    shutil.rmtree(study / "mnist")
    text = report(tmp_path / "a", study, "--figures", "none")["report.md"].decode()
    assert "14 runs in " in text
    assert "| gru | 1 done |" in text


def test_tables_that_a_new_archive_lacks_do_not_stay(tmp_path, capsys):
    study = write_study(tmp_path / "study")
    assert main(["--pack", str(study)]) == 0
    shutil.rmtree(study / "mnist")
    (study / "archive.yaml").unlink()
    for path in study.rglob("norms.csv"):
        path.unlink()
    (study / "norms.csv").write_text("run,epoch\n9,1\n")
    assert main(["--pack", str(study)]) == 0
    assert (study / "norms.csv").read_text() == "run,epoch\n"


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main(["--pack", *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_what_cannot_be_packed(tmp_path, capsys):
    study = tmp_path / "study"
    study.mkdir()
    assert "no run folders in" in fails(capsys, study)
    run = write_run(study / "a", epochs=1)
    assert "give one folder" in fails(capsys, study, study, "-o", tmp_path / "x")
    (tmp_path / "file").touch()
    assert "cannot write" in fails(capsys, study, "-o", tmp_path / "file")
    status = run / "status.json"
    text = status.read_text()
    status.write_text(json.dumps({**json.loads(text), "state": "running", "updated": "2999-01-01"}))
    assert "still training" in fails(capsys, study)
    status.write_text("{")
    assert "status.json is not JSON" in fails(capsys, study)
    assert not list(study.glob("*.csv"))
    status.write_text(text)
    (study / "sub").mkdir()
    (study / "sub/sweep.csv").write_text("seed,run_dir\n0,a\n")
    assert "lies outside" in fails(capsys, study / "sub")


def test_an_archive_of_other_runs_is_not_overwritten(tmp_path, capsys):
    for study, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / study / "run", seed=seed, epochs=1)
    target = tmp_path / "archive"
    assert main(["--pack", str(tmp_path / "a"), "-o", str(target)]) == 0
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert "which is not among those" in fails(capsys, tmp_path / "b", "-o", target)
    (target / "archive.yaml").unlink()
    (target / "curves.csv").write_text("mine")
    assert "is not part of an archive" in fails(capsys, tmp_path / "a", "-o", target)
    assert (target / "curves.csv").read_text() == "mine"
    (target / "curves.csv").unlink()
    assert main(["--pack", str(tmp_path / "a"), "-o", str(target)]) == 0
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_options_of_reports_are_refused(tmp_path, capsys):
    message = fails(capsys, tmp_path, "--title", "x", "--ignore", "seed")
    assert "makes no report, so --ignore, --title would not be used" in message
