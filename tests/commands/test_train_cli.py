"""elstm-train: its run folder, its exit codes, and how it resumes."""

import re
from pathlib import Path

import pytest
from train_command import NAME, files, here, run_dirs

from elstm.errors import UserError
from elstm.sweeps import job
from elstm.train import main


def test_a_run_has_a_folder_of_its_own_and_nothing_else(training, capsys):
    assert main(["model=lstm", "seed=3"]) == 0
    assert here() == ["outputs"]
    (folder,) = run_dirs()
    assert re.fullmatch(f"outputs/digits/lstm/seed-3/{NAME}", folder.as_posix())
    assert files(folder) == [
        ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml",
        "status.json", "train.log",
    ]  # fmt: skip
    assert (folder / ".hydra" / "overrides.yaml").read_text() == "- model=lstm\n- seed=3\n"
    (call,) = training.calls
    assert call.run_dir == folder
    assert (call.config.model.name, call.config.seed, call.resume) == ("lstm", 3, False)
    assert "INFO elstm.training.run: training with seed 3" in (folder / "train.log").read_text()
    assert "training with seed 3" in capsys.readouterr().out


def test_a_wrong_word_leaves_no_folder(training, capsys):
    assert main(["model.hidden_size=0"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("elstm-train: error: model.hidden_size=0: has to be")
    assert err.count("\n") == 1
    assert here() == []
    assert not training.calls


@pytest.mark.parametrize(
    "flags",
    [
        ["--nonsense"],
        ["--config-path=/x"],
        ["-cn", "x"],
        ["--experimental-rerun", "x.pickle"],
        ["--cfg", "jobs"],
        ["--resolve"],
        ["-m", "--cfg", "job"],
    ],
)
def test_a_wrong_flag_is_one_line_too(training, capsys, flags):
    with pytest.raises(SystemExit) as exit:
        main(flags)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("elstm-train: error: ")
    assert err.count("\n") == 1


def test_a_crash_is_one_line_and_its_traceback_is_in_the_log(training, capsys):
    training.answer = lambda config: ZeroDivisionError("division by\nzero")
    assert main([]) == 1
    (folder,) = run_dirs()
    assert capsys.readouterr().err == (
        "elstm-train: error: ZeroDivisionError: division by "
        f"(the traceback is in {folder}/train.log)\n"
    )
    log = (folder / "train.log").read_text()
    assert "Traceback (most recent call last):" in log
    assert "fake_training.py" in log


def test_what_the_user_can_mend_has_no_traceback(training, capsys):
    training.answer = lambda config: UserError("trainer.device=cuda is not available")
    assert main([]) == 1
    assert capsys.readouterr().err == "elstm-train: error: trainer.device=cuda is not available\n"
    log = (run_dirs()[0] / "train.log").read_text()
    assert "error: trainer.device=cuda" in log
    assert "Traceback" not in log


def test_an_interrupted_run_exits_as_shells_have_it(training, capsys):
    training.answer = lambda config: "interrupted"  # by SIGTERM, saved and said
    assert main([]) == 143
    assert capsys.readouterr().err == ""
    training.answer = lambda config: KeyboardInterrupt("SIGINT")
    assert main([]) == 130
    assert capsys.readouterr().err == "elstm-train: interrupted by SIGINT\n"


def test_log_handlers_do_not_outlive_a_run(training):
    import logging

    before = list(logging.getLogger().handlers), logging.getLogger().level
    main([])
    main([])
    assert (logging.getLogger().handlers, logging.getLogger().level) == before
    assert all("seed" in (d / "train.log").read_text() for d in run_dirs())
    assert [(d / "train.log").read_text().count("\n") for d in run_dirs()] == [1, 1]


def test_hydra_run_dir_is_taken_if_it_is_new_or_empty(training, tmp_path, capsys):
    assert main(["hydra.run.dir=mine/${data.name}"]) == 0
    assert (tmp_path / "mine" / "digits" / "train.log").exists()
    assert main(["hydra.run.dir=mine/digits"]) == 1
    assert "not empty" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["hydra.run.dir=empty"]) == 0
    assert len(training.calls) == 2


def test_two_runs_that_start_in_one_folder(training, tmp_path, monkeypatch, capsys):
    """The other run takes the folder after this one found it empty, and keeps it."""
    monkeypatch.setattr("elstm.train._check_run_dir", lambda cfg: Path("same"))
    (tmp_path / "same" / ".hydra").mkdir(parents=True)
    assert main(["hydra.run.dir=same"]) == 1
    assert "hydra.run.dir=same exists and is not empty" in capsys.readouterr().err
    assert training.calls == []
    assert (tmp_path / "same" / ".hydra").is_dir()

    monkeypatch.setattr(job, "is_locked", lambda folder: True)
    with job._removed_unless_started(tmp_path / "same", resume=False):
        pass
    assert (tmp_path / "same" / ".hydra").is_dir()


# --- going on


def test_resume_goes_on_in_the_folder(training, capsys):
    main(["model=lstm", "seed=5", "model.hidden_size=7"])
    (folder,) = run_dirs()
    hydra = folder / ".hydra"
    before = {name: (hydra / name).read_bytes() for name in files(hydra)}
    log = (folder / "train.log").read_text()
    assert main([f"trainer.resume={folder}/"]) == 0
    first, second = training.calls
    assert second.resume
    assert second.config == first.config
    assert second.run_dir.resolve() == folder.resolve()
    assert run_dirs() == [folder]
    assert {name: (hydra / name).read_bytes() for name in files(hydra)} == before
    after = (folder / "train.log").read_text()
    assert after.startswith(log)
    assert len(after) > len(log)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["seed=3", "trainer.resume=RUN"],
            "seed=3: trainer.resume=RUN_DIR can only be combined with",
        ),
        (["-m", "trainer.resume=RUN"], "-m: trainer.resume=RUN_DIR takes no flags"),
        (["trainer.resume=RUN", "--config-dir", "c"], "--config-dir: trainer.resume=RUN_DIR takes"),
        (["trainer.resume=nowhere"], "nowhere: there is no such folder"),
        (["trainer.resume=."], "is not a run folder"),
        (["trainer.resume="], "has to be a run's folder"),
        (["trainer.resume=RUN/train.log"], "is a file"),
        (["trainer.resume=RUN", "trainer.log_every=0"], "resume: trainer.log_every=0: has to be"),
        (["trainer.resume=RUN", "trainer.max_epoch=20"], "did you mean trainer.max_epochs?"),
        (["trainer.resume=RUN", "=5"], "=5: trainer.resume=RUN_DIR can only be combined with"),
    ],
)
def test_resume_is_refused_in_one_line(training, capsys, words, said):
    main([])
    (folder,) = run_dirs()
    assert main([word.replace("RUN", str(folder), 1) for word in words]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert len(training.calls) == 1


def test_resume_writes_through_no_link(training, tmp_path, capsys):
    main([])
    (folder,) = run_dirs()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (folder / "train.log").unlink()
    (folder / "train.log").symlink_to(precious)
    assert main([f"trainer.resume={folder}"]) == 1
    assert "is a link" in capsys.readouterr().err
    assert precious.read_text() == "mine"
