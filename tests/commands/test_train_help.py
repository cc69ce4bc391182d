"""elstm-train: its config folders, what it shows, its completion and its help."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from train_command import REPOSITORY, here

from elstm.config.compose import Composer
from elstm.config.help import HEAD
from elstm.train import main


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


@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_help_and_completion_list_the_options_of_a_config_dir(
    training, extra, capsys, monkeypatch, form
):
    flags = extra("# Has nine units.\nmodel:\n  hidden_size: 9")
    for words in (["--help"], ["--help", "experiment"]):
        assert main([*form.format(*flags).split(), *words]) == 0
        page = capsys.readouterr().out
        assert re.search(r"mine +Has nine units\.\n", page + "\n")
        assert "mnist_rows" in page
    monkeypatch.setenv("COMP_LINE", f"elstm-train {form.format(*flags)} experiment=m")
    assert main(["-sc", "query=bash"]) == 0
    assert {"experiment=mine", "experiment=mnist_rows"} <= set(capsys.readouterr().out.split())
    monkeypatch.setenv("COMP_LINE", f"elstm-train {form.format(*flags)[:-1]}")
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["--config-dir", "nowhere", "--help"]) == 1
    assert "--config-dir nowhere: there is no such folder" in capsys.readouterr().err


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
