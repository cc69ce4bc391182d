"""elstm-train: its folder, its log, its exit codes; nothing is trained but where it says so."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elstm.config.compose import Composer
from elstm.config.help import HEAD
from elstm.errors import UserError
from elstm.sweeps import job
from elstm.train import main

REPOSITORY = Path(__file__).parents[2]
NAME = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}-[0-9a-f]{6}"


def run_dirs():
    return sorted(path for path in Path("outputs").glob("*/*/*/*") if path.is_dir())


def here():
    return sorted(path.name for path in Path().iterdir())


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def command(*words, cwd, module="elstm.train", **options):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **options,
    )  # fmt: skip


# --- a single run


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
        (["-m", "trainer.resume=RUN"], "-m: trainer.resume=RUN_DIR can only be combined with"),
        (["trainer.resume=nowhere"], "nowhere: there is no such folder"),
        (["trainer.resume=."], "is not a run folder"),
        (["trainer.resume="], "has to be a run's folder"),
        (["trainer.resume=RUN/train.log"], "is a file"),
        (["trainer.resume=RUN", "trainer.log_every=0"], "resume: trainer.log_every=0: has to be"),
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


# --- a config folder of one's own


@pytest.fixture
def extra(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extra")
    (folder / "experiment").mkdir()

    def write(text, name="experiment/mine.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"# @package _global_\n{text}\n")
        return ["--config-dir", str(folder)]

    return write


def test_a_config_dir_adds_options(training, extra):
    assert main([*extra("model:\n  hidden_size: 9"), "experiment=mine"]) == 0
    assert training.calls[0].config.model.hidden_size == 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model:\n  _target_: os.system", "_target_"),
        ("model:\n  hidden_size: abc", "model.hidden_size=abc: has to be an integer"),
        ("model:\n  hiden_size: 3", "did you mean model.hidden_size?"),
        ("data:\n  root: ${oc.env:HOME}", "data.root"),
        ("other:\n  - _target_: os.system", "other: there is no such key"),
        ("hydra:\n  callbacks:\n    x:\n      _target_: os.system", "change hydra.callbacks"),
        ("hydra:\n  job:\n    chdir: true", "change hydra.job.chdir"),
        ("hydra:\n  job:\n    env_set: {A: b}", "change hydra.job.env_set"),
        ("hydra:\n  run:\n    dir: .", "change hydra.run"),
        ("hydra:\n  launcher:\n    _target_: x", "change hydra.launcher"),
        ("seed: [", "mine"),
    ],
)
def test_an_untrusted_config_dir_runs_nothing(training, extra, capsys, text, said):
    assert main([*extra(text), "experiment=mine"]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert here() == []


def test_an_untrusted_config_dir_runs_nothing_in_a_sweep(training, extra, capsys):
    flags = extra("hydra:\n  launcher:\n    _target_: os.system")
    assert main([*flags, "-m", "experiment=mine"]) == 1
    assert "change hydra.launcher" in capsys.readouterr().err
    assert here() == []


def test_an_experiment_without_a_package(training, tmp_path, capsys):
    folder = tmp_path / "extra" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("model: {hidden_size: 64}\n")
    assert main(["--config-dir", "extra", "experiment=mine"]) == 1
    assert (
        "the first line of such a file has to be '# @package _global_'" in capsys.readouterr().err
    )


def test_a_config_dir_that_is_not_there(training, capsys):
    assert main(["--config-dir", "nowhere", "experiment=mine"]) == 1
    assert "--config-dir nowhere: there is no such folder" in capsys.readouterr().err


# --- what is shown


def test_the_config_is_shown(training, capsys):
    assert main(["model=lstm", "--cfg", "job"]) == 0
    out = capsys.readouterr().out
    assert "name: lstm" in out
    assert "hydra" not in out
    assert main(["--cfg", "job", "--package", "optimizer", "--resolve"]) == 0
    assert capsys.readouterr().out.startswith("# @package optimizer\nname: adamw\n")
    assert main(["model=lstm", "--cfg", "job", "--help"]) == 0
    commented = capsys.readouterr().out
    assert commented.count("  # ") > 40
    assert "  # Learning rate after the warm-up. It takes" in commented
    assert "    # Rotates training pictures by up to this number of degrees" in commented
    lines = [line for line in commented.splitlines() if not line.lstrip().startswith("#")]
    assert "\n".join(lines) == out.rstrip()
    assert max(map(len, commented.splitlines())) <= 80
    assert main(["--cfg", "job", "--package", "optimizer", "-h"]) == 0
    assert "\n# Learning rate after" in capsys.readouterr().out
    assert main(["--info", "defaults-tree"]) == 0
    assert "model: elstm_bn" in capsys.readouterr().out
    assert main(["--cfg", "job", "model.hidden_size=x"]) == 1
    assert here() == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("elstm-train mod", ["model="]),
        ("elstm-train model=e", ["model=elstm_bn"]),
        ("elstm-train model=lstm model.hid", ["model.hidden_size="]),
        ("elstm-train data=digits experiment=mnist_p", ["experiment=mnist_permuted"]),
    ],
)
def test_shell_completion(training, capsys, monkeypatch, line, offered):
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    words = capsys.readouterr().out.split()
    assert set(offered) <= set(words)
    assert not any(word.startswith("schema") for word in words)


@pytest.mark.parametrize(
    "word", ["s", "stu", "+s", "study", "study=", "study=b", "study/", "+study=b", "hydra/"]
)
def test_studies_are_not_completed(training, capsys, monkeypatch, word):
    monkeypatch.setenv("COMP_LINE", f"elstm-train {word}")
    assert main(["-sc", "query=bash"]) == 0
    assert not [word for word in capsys.readouterr().out.split() if "study" in word]


@pytest.mark.parametrize("word", ["study=best", "+study=best", "study=nothing"])
def test_studies_are_no_config_group(training, capsys, word):
    for words in ([word], ["-m", word, "seed=0,1"]):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "study" in err
        assert "bug" not in err
    assert here() == []
    assert main(["--help"]) == 0
    assert "study" not in capsys.readouterr().out


def test_shell_completion_is_installed_under_the_commands_name(training, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/elstm-train"])
    assert main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.endswith("-F hydra_bash_completion elstm-train\n")
    assert main(["-sc", "install=tcsh"]) == 1
    assert "No completion plugin for 'tcsh'" in capsys.readouterr().err


def test_help_loads_nothing_heavy(tmp_path):
    code = """if True:
        import sys
        from elstm.train import main
        assert main(["--help"]) == 0
        print(sorted({"torch", "hydra", "omegaconf", "numpy"} & set(sys.modules)), file=sys.stderr)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stderr == "[]\n"
    for group in ("model", "data", "optimizer", "scheduler", "trainer", "experiment", "debug"):
        assert f"{group}=" in done.stdout
        for path in (REPOSITORY / "conf" / group).glob("*.yaml"):
            assert path.stem in done.stdout
    assert done.stdout.count("\n  elstm-train ") >= 3
    assert max(map(len, done.stdout.splitlines())) <= 80


EXAMPLES = re.findall(r"^  elstm-train ?(.*)$", HEAD.partition("examples:")[2], re.MULTILINE)


@pytest.fixture
def trains(training, monkeypatch):
    """Tells whether a command line of the help trains, with a fake training."""

    def run(example):
        words = shlex.split(example)
        if "hydra/launcher=joblib" in words:
            joblib = pytest.importorskip("joblib")
            pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
            monkeypatch.setattr(joblib, "effective_n_jobs", lambda n_jobs: 1)  # no real workers
        if "hydra/sweeper=optuna" in words:
            pytest.importorskip("optuna")
            words.append("hydra.sweeper.n_trials=2")
        return main(words) == 0 and len(training.calls) > 0

    return run


def test_the_help_has_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_help_trains(trains, example):
    assert trains(example)


@pytest.mark.parametrize(
    "example",
    [
        "data=fashion_mnist model.hidden_sise=256",
        "data=fashion_mnist data.pixels_per_step=27",
        "-m experiment=fashion_rows model=lstm,bn_lstm model.gamma_c=1",
        "-m hydra/launcher=joblib hydra.launcher.jobs=4 seed=0,1",
        "-m hydra/sweeper=optuna hydra.sweeper.n_trials=30 'optimizer.lr=interval(-1,1)'",
    ],
)
def test_a_broken_example_is_noticed(trains, example):
    """Each of these can be parsed and is wrong once it is composed."""
    words = shlex.split(example)
    Composer().parse([word for word in words if word != "-m"], sweep="-m" in words)
    assert not trains(example)


# --- the real thing, as a process of its own


def test_a_real_run_is_interrupted_and_resumed(no_pictures, tmp_path, monkeypatch, capsys):
    train = command(
        "model=lstm", "model.hidden_size=8", "trainer.max_epochs=100000", "trainer.threads=1",
        "data.train_size=320",
        cwd=tmp_path,
    )  # fmt: skip
    try:
        for line in train.stdout:
            if line.startswith("epoch 1:"):
                break
        train.send_signal(signal.SIGTERM)
        out, err = train.communicate(timeout=60)
    finally:
        train.kill()
    assert train.returncode == 143
    assert err == ""
    assert "interrupted by SIGTERM" in out
    (folder,) = (tmp_path / "outputs" / "digits" / "lstm").glob("*/*")
    assert f"trainer.resume=outputs/digits/lstm/{folder.parent.name}/{folder.name}" in out
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["step"] > 0
    assert (folder / "checkpoints" / "last.pt").is_file()
    (folder / ".hydra" / "config.yaml").write_text(
        (folder / ".hydra" / "config.yaml")
        .read_text()
        .replace("100000", str(int(status["epoch"]) + 1))
    )
    monkeypatch.chdir(tmp_path / "outputs")
    assert main([f"trainer.resume={folder}"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "done: test accuracy" in out
    assert len(list((tmp_path / "outputs").iterdir())) == 1


def test_a_termination_while_it_still_composes(tmp_path):
    """The exit code is that of the handler: Python's own death by SIGTERM is -15."""
    code = """if True:
        import os, signal, sys, time
        from elstm.config import compose
        from elstm.train import main
        def slow(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        compose.Composer.__init__ = slow
        sys.exit(main([]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (143, "elstm-train: interrupted by SIGTERM\n")
    assert list(tmp_path.iterdir()) == []


# --- runs that end before their first step


@pytest.mark.parametrize(
    "answer", [UserError("no"), ZeroDivisionError("no"), KeyboardInterrupt("SIGINT")]
)
def test_a_run_that_ends_before_its_first_step_leaves_no_folder(training, capsys, answer):
    training.answer, training.step = lambda config: answer, 0
    code = 130 if isinstance(answer, KeyboardInterrupt) else 1
    assert main([]) == code
    assert main(["hydra.run.dir=a/b/c"]) == code
    assert here() == []
    Path("mine/empty").mkdir(parents=True)
    assert main(["hydra.run.dir=mine/empty"]) == code
    assert main(["hydra.run.dir=mine/new/x"]) == code
    assert [str(path) for path in Path().rglob("*")] == ["mine", "mine/empty"]
    assert "train.log" not in capsys.readouterr().err


def test_a_resumed_folder_stays_whatever_happens(training):
    training.answer = lambda config: "interrupted"
    assert main(["hydra.run.dir=run"]) == 143
    before = files("run")
    training.answer, training.step = lambda config: UserError("no data"), 0
    assert main(["trainer.resume=run"]) == 1
    assert files("run") == before


def test_runs_of_a_sweep_that_end_before_their_first_step_leave_no_folder(training, capsys):
    def answer(config):
        training.step = 7 * (config.seed != 1)
        return "done" if config.seed != 1 else UserError("there is no GPU")

    training.answer = answer
    assert main(["-m", "seed=0,1,2"]) == 1
    assert len(run_dirs()) == 2
    assert "seed=1: failed: there is no GPU" in capsys.readouterr().out
    (table,) = Path("outputs/sweeps").glob("*/sweep.csv")
    assert "there is no GPU" in table.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.device=cuda"], "trainer.device=cuda is not available here ("),
        (["trainer=gpu"], "this machine has: auto, cpu"),
        (["trainer.precision=fp16", "trainer.device=cpu"], "fp16 needs a GPU"),
        (["model.backend=triton", "trainer.device=cpu"], "model.backend='triton' cannot serve"),
        (["model=lstm", "model.hidden_size=65536", "model.num_layers=100"], "GiB of memory"),
        (["data=mnist", "data.root=/dev/null/x"], "data.root"),
    ],
)
def test_options_that_cannot_train_here_leave_no_folder(tmp_path, monkeypatch, capsys, words, said):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert here() == []
