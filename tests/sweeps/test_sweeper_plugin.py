"""A sweeper that a Hydra plugin brings: it chooses, and its runs are those of a sweep."""

import csv
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from elstm.train import main

CLIMB = ["-m", "hydra/sweeper=climber", "model=lstm"]


class Climber(Sweeper):
    """Tries learning rates in batches, and reads what each launch returned."""

    batches = ((0.1,), (0.2, 0.3))
    metrics = ()
    fault = None

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments):
        number = 0
        for rates in self.batches:
            words = [[*arguments, f"optimizer.lr={lr}"] for lr in rates]
            try:
                jobs = self.launcher.launch(words, initial_job_idx=number)
            except Exception as error:  # as some plugins do
                raise RuntimeError("a trial has failed") from error
            number += len(jobs)
            Climber.metrics = (*Climber.metrics, *(job.return_value for job in jobs))
        if self.fault:
            raise self.fault


@pytest.fixture
def climber(training, monkeypatch):
    """The plugin as if it were installed, with a fake training."""
    for name, value in (("metrics", ()), ("fault", None), ("batches", Climber.batches)):
        monkeypatch.setattr(Climber, name, value)
    plugins = Plugins.instance()  # which has looked through the real hydra_plugins
    monkeypatch.setattr(Climber, "__module__", "hydra_plugins.climber")
    module = types.ModuleType("hydra_plugins.climber")
    module.Climber = Climber
    monkeypatch.setitem(sys.modules, "hydra_plugins.climber", module)
    package = types.ModuleType("hydra_plugins")
    package.climber = module
    monkeypatch.setitem(sys.modules, "hydra_plugins", package)
    plugins.register(Climber)
    node = {"_target_": "hydra_plugins.climber.Climber"}
    ConfigStore.instance().store(group="hydra/sweeper", name="climber", node=node)
    training.accuracy = lambda config: config.optimizer.lr
    return training


def rates(training):
    return [call.config.optimizer.lr for call in training.calls]


def table():
    """The newest sweep.csv."""
    newest = max(Path("outputs/sweeps").iterdir())
    with (newest / "sweep.csv").open() as file:
        return [(row["optimizer.lr"], row["state"]) for row in csv.DictReader(file)]


def test_a_line_for_each_run_and_the_table(climber, capsys):
    assert main(CLIMB) == 0
    assert Climber.metrics == (0.1, 0.2, 0.3)
    assert all(str(c.run_dir).startswith("outputs/digits/lstm/") for c in climber.calls)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1] optimizer.lr=0.1"
    assert "[3] optimizer.lr=0.3: done, validation 30.00%" in "\n".join(lines)
    assert lines[-6].split() == ["optimizer.lr", "state", "validation", "test", "seconds", "folder"]
    assert lines[-5].split()[:3] == ["0.3", "done", "30.00%"]
    assert lines[-2].endswith("/sweep.csv")
    assert table() == [("0.3", "done"), ("0.2", "done"), ("0.1", "done")]
    assert {p.name for p in Path("outputs").iterdir()} == {"digits", "sweeps"}


def test_a_run_that_fails_is_no_number_and_the_exit_says_it(climber, capsys):
    climber.answer = lambda c: RuntimeError("broken") if c.optimizer.lr == 0.2 else "done"
    assert main(CLIMB) == 1
    assert math.isnan(Climber.metrics[1])
    assert Climber.metrics[2] == 0.3
    assert table()[-1] == ("0.2", "failed")
    assert "optimizer.lr=0.2: failed: broken" in capsys.readouterr().out


def test_the_same_command_again_trains_what_failed_alone(climber, capsys):
    climber.answer = lambda c: RuntimeError("broken") if c.optimizer.lr == 0.2 else "done"
    assert main(CLIMB) == 1
    climber.answer = lambda c: "done"
    assert main(CLIMB) == 0
    assert rates(climber) == [0.1, 0.2, 0.3, 0.2]
    assert climber.calls[3].resume
    assert Climber.metrics[3:] == (0.1, 0.2, 0.3)
    assert "[1] optimizer.lr=0.1: already done" in capsys.readouterr().out
    assert main([*CLIMB, "sweep.rerun=true"]) == 0
    assert len(climber.calls) == 7


def test_equal_choices_are_one_run(climber):
    Climber.batches = ((0.1, 0.10), (0.1,))
    assert main(CLIMB) == 0
    assert rates(climber) == [0.1]
    assert Climber.metrics == (0.1, 0.1, 0.1)


def test_fail_fast_ends_the_plugins_sweep(climber):
    climber.answer = lambda c: RuntimeError("broken")
    assert main([*CLIMB, "sweep.fail_fast=true"]) == 1
    assert rates(climber) == [0.1]
    assert table() == [("0.1", "failed")]
    assert Climber.metrics == ()


def test_an_interrupt_shows_the_table(climber, capsys):
    climber.answer = lambda c: "interrupted" if c.optimizer.lr == 0.2 else "done"
    assert main(CLIMB) == 143
    out, err = capsys.readouterr()
    assert err == ""
    assert out.rstrip().endswith("run the same command again to resume")
    assert table() == [("0.2", "interrupted"), ("0.1", "done")]


def test_what_is_wrong_is_one_line_and_the_table_is_shown(climber, capsys):
    assert main([*CLIMB, "optimizer.beta1=x"]) == 1
    climber.check_nothing_began(capsys.readouterr(), "optimizer.beta1=x: has to be a number")
    assert main([*CLIMB, "sweep.rerun=true,false"]) == 1
    climber.check_nothing_began(capsys.readouterr(), "sweep.rerun is one setting")
    assert main([*CLIMB, "hydra.sweeper._target_=os.system"]) == 1
    climber.check_nothing_began(capsys.readouterr(), "refused")
    Climber.batches = ((0.1,), (-1,))
    assert main(CLIMB) == 1
    out, err = capsys.readouterr()
    assert err == "elstm-train: error: a trial has failed\n"
    assert "0.1           done" in out
    Climber.batches, Climber.fault = ((0.1,),), ValueError("no\nconvergence")
    assert main(CLIMB) == 1
    out, err = capsys.readouterr()
    assert err == "elstm-train: error: no convergence\n"
    assert "0.1           done" in out


def test_hydras_own_launchers_are_back_afterwards(climber):
    assert main(CLIMB) == 0
    assert "instantiate_launcher" not in vars(Plugins.instance())


def test_a_plugin_that_cannot_be_imported(tmp_path: Path) -> None:
    plugin = tmp_path / "hydra_plugins" / "broken.py"
    plugin.parent.mkdir()
    plugin.write_text("raise ValueError('no such thing')")
    run = subprocess.run(
        [sys.executable, "-m", "elstm.train", "--cfg", "job"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == (
        "elstm-train: error: a Hydra plugin in this environment cannot be imported: ValueError: "
        f"no such thing, in {plugin}; upgrade or uninstall it\n"
    )
