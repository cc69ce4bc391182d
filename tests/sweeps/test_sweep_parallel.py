"""Runs launched together: the sweep's side with a fake training, and joblib for real."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from sweep_runs import PATIENCE, statuses, wait_until

from elstm.sweeps.launch import RunLauncher
from elstm.sweeps.worker import StopFile, WorkerJob
from elstm.train import main

SMALL = ["data.batch_size=256", "model.hidden_size=8", "trainer.device=cpu"]


def table():
    """The newest sweep.csv."""
    newest = max(Path("outputs/sweeps").iterdir())
    with (newest / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def together(training, monkeypatch):
    """Hydra's basic launcher, taken for one that runs several at once; with a fake training."""
    monkeypatch.setattr("elstm.sweeps.launch.IN_THIS_PROCESS", ())
    return training


def test_a_line_for_each_as_it_ends_and_none_of_the_runs(together, capsys):
    together.answer = lambda c: RuntimeError("broken") if c.seed == 1 else "done"
    assert main(["-m", "seed=0,1,2"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("3 runs; each has")
    assert [line.split(",")[0] for line in lines[1:4]] == [
        "[1/3] seed=0: done", "[2/3] seed=1: failed: broken", "[3/3] seed=2: done",
    ]  # fmt: skip
    assert "Traceback" in (together.calls[1].run_dir / "train.log").read_text()
    together.answer = lambda c: "done"
    assert main(["-m", "seed=0,1,2"]) == 0
    assert [(c.config.seed, c.resume) for c in together.calls[3:]] == [(1, True)]
    assert main(["-m", "seed=3,4", "trainer.threads=2"]) == 0
    assert "\n2 runs, 2 threads each; each has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("n_jobs", "cores", "words"),
    [
        (1, None, ()),
        (-1, "1", ()),
        (1, None, ("hydra/sweeper=optuna", "optimizer.lr=interval(0.1,1)")),
    ],
)
def test_one_worker_of_joblib_trains_where_signals_arrive(
    training, monkeypatch, n_jobs, cores, words
):
    """joblib starts no worker then; in the launcher's thread no signal could stop the run."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    if words:
        pytest.importorskip("optuna")
    if cores:
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", cores)
    threads = []

    def answer(config):
        threads.append(threading.current_thread())
        return "done" if len(threads) == 1 else "interrupted"

    training.answer = answer
    words = words or ("seed=0,1,2",)
    assert main(["-m", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={n_jobs}", *words]) == 143
    assert threads == [threading.main_thread()] * 2
    assert sorted(row["state"] for row in table()) == ["done", "interrupted"]


def test_fail_fast_begins_no_further_run(together):
    def slow(config):  # the sweep looks every 0.2 s
        time.sleep(1)
        return "done"

    together.answer = lambda c: RuntimeError("broken") if c.seed == 0 else slow(c)
    assert main(["-m", "seed=0,3,2", "sweep.fail_fast=true"]) == 1
    assert 2 not in [c.config.seed for c in together.calls]
    assert "failed" in [row["state"] for row in table()]


def test_a_launcher_that_breaks_fails_its_runs(together, monkeypatch, capsys):
    def launch(*_, **__):
        raise OSError("no cluster")

    name = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    monkeypatch.setattr(Plugins.instance().class_name_to_class[name], "launch", launch)
    assert main(["-m", "seed=0,1"]) == 1
    assert capsys.readouterr().out.count("failed: OSError: no cluster") == 2
    assert [row["error"] for row in table()] == ["OSError: no cluster"] * 2


def test_a_run_that_breaks_the_workers_twice_is_not_tried_again(together, monkeypatch, capsys):
    init, launch, launched = RunLauncher.__init__, BasicLauncher.launch, []

    def as_joblib(self, *args):
        init(self, *args)
        self.joblib = True

    def break_twice(self, job_overrides, initial_job_idx):
        launched.append([next(w for w in words if "seed=" in w) for words in job_overrides])
        if len(launched) > 2:
            return launch(self, job_overrides, initial_job_idx)
        subdir = next(w for w in job_overrides[0] if w.startswith("hydra.sweep.subdir="))
        folder = Path("outputs") / subdir.partition("=")[2].strip("'")
        folder.mkdir(parents=True, exist_ok=True)
        status = {"state": "running", "step": len(launched)}
        (folder / "status.json").write_text(json.dumps(status))
        raise MemoryError("a worker")

    monkeypatch.setattr(RunLauncher, "__init__", as_joblib)
    name = f"{BasicLauncher.__module__}.BasicLauncher"
    plugin = Plugins.instance().class_name_to_class[name]
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "launch", break_twice)
        assert main(["-m", "seed=0,1"]) == 1
    assert launched == [["seed=0", "seed=1"], ["seed=0", "seed=1"], ["seed=1"]]
    out = capsys.readouterr().out
    assert "resuming with 2 runs\n" in out
    assert "resuming with 1 run\n" in out
    assert [(row["seed"], row["state"]) for row in table()] == [("1", "done"), ("0", "failed")]
    assert table()[1]["error"] == "MemoryError: a worker"
    assert main(["-m", "seed=0,1"]) == 0
    assert [row["state"] for row in table()] == ["done", "done"]


def test_the_stop_file_stops_a_run_and_lets_none_begin(tmp_path, monkeypatch):
    stop, begun = StopFile(tmp_path / "sweep" / "stop"), []

    def train(cfg, *, terminal, callbacks):
        begun.append(cfg)
        stop.request("stop")
        wait_until(lambda: False)

    monkeypatch.setattr("elstm.sweeps.worker.train_job", train)
    before = signal.getsignal(signal.SIGTERM)
    assert WorkerJob(stop)("first") != WorkerJob(stop)("second")  # NaN
    assert begun == ["first"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Starts the command, in an empty folder, as a group of processes that can be sent signals."""
    monkeypatch.chdir(tmp_path)
    begun, pipe = [], subprocess.PIPE

    def start(*words):
        command = [sys.executable, "-m", "elstm.train", "-m", *words, *SMALL]
        begun.append(
            subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        )
        return begun[-1]

    yield start
    for process in begun:
        with process, suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_joblib_trains_several_at_once_stops_them_and_goes_on(train):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "model=lstm",
             "optimizer.lr=1e-2", "trainer.max_epochs=30"]  # fmt: skip
    sweep = train(*words)
    wait_until(lambda: [bool(s["epoch"]) for s in statuses()] == [True] * 2)
    sweep.send_signal(signal.SIGTERM)
    out, err = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 143, err
    assert out.startswith("2 runs, 2 at once")
    assert out.rstrip().endswith("run the same command again to resume")
    assert "epoch 1" not in out  # the runs have left the terminal to the sweep
    assert {s["state"] for s in statuses()} == {"interrupted"}
    assert len({s["pid"] for s in statuses()}) == 2
    epochs = [s["epoch"] for s in statuses()]
    assert max(epochs) < 30
    again = train(*words)
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert [(s["state"], s["epoch"]) for s in statuses()] == [("done", 30.0)] * 2
    assert [row["state"] for row in table()] == ["done"] * 2
    logs = [p.read_text() for p in Path("outputs").glob("*/*/*/*/train.log")]
    assert all("resuming at epoch" in text for text in logs)


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(train):
    """Interrupts like a terminal, whose Ctrl-C goes to all processes, while one run hangs."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "model=lstm",
             "optimizer.lr=1e-2", "trainer.max_epochs=30"]  # fmt: skip
    sweep = train(*words)
    wait_until(lambda: [bool(s["epoch"]) for s in statuses()] == [True] * 2)
    os.kill(next(s["pid"] for s in statuses() if s["seed"] == 0), signal.SIGSTOP)
    os.killpg(sweep.pid, signal.SIGINT)
    wait_until(lambda: "interrupted" in [s["state"] for s in statuses()])
    assert sweep.poll() is None
    os.killpg(sweep.pid, signal.SIGINT)
    out, err = sweep.communicate(timeout=PATIENCE)
    assert (sweep.returncode, err) == (130, "")
    assert "stopping at once" in out
    assert out.rstrip().endswith("run the same command again to resume")
    states = {row["seed"]: row["state"] for row in table()}
    assert states == {"0": "killed", "1": "interrupted"}
    again = train(*words)
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert [(s["state"], s["epoch"]) for s in statuses()] == [("done", 30.0)] * 2
    logs = {p.parent: p.read_text() for p in Path("outputs").glob("*/*/*/*/train.log")}
    (saved,) = [text for text in logs.values() if "interrupted by" in text]
    assert "interrupted by SIGTERM" in saved  # the sweep's, and no SIGINT of the terminal's
    assert all("resuming at epoch" in text for text in logs.values())


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_and_its_run_goes_on(train):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = train("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2", "model=lstm",
                  "trainer.max_epochs=5")  # fmt: skip
    wait_until(lambda: [bool(s["epoch"]) for s in statuses()] == [True] * 2)
    os.kill(statuses()[0]["pid"], signal.SIGKILL)
    out, err = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 0, err
    assert "a worker died (killed, or out of memory)" in out
    assert [(s["state"], s["epoch"]) for s in statuses()] == [("done", 5.0)] * 3
    assert [row["state"] for row in table()] == ["done"] * 3


@pytest.mark.slow
def test_workers_whose_sweep_was_killed_save_and_end(train):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = train("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=range(6)",
                  "model=lstm", "trainer.max_epochs=200")  # fmt: skip
    wait_until(lambda: [bool(s["epoch"]) for s in statuses()] == [True] * 2)
    sweep.kill()
    sweep.communicate(timeout=PATIENCE)  # until the last of them has closed the pipe
    # Nothing of what they had in their queue has begun.
    assert [s["state"] for s in statuses()] == ["interrupted"] * 2


@pytest.mark.slow
def test_submitit_gives_a_run_back_to_its_queue_and_it_goes_on(train):
    """SLURM's signals, sent by hand: there is no SLURM here, and submitit's local jobs requeue."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = train("hydra/launcher=submitit_local", "seed=0,1", "model=lstm", "optimizer.lr=1e-2",
                  "trainer.max_epochs=9")  # fmt: skip
    wait_until(lambda: [bool(s["epoch"]) for s in statuses()] == [True] * 2)
    first, second = statuses()
    os.kill(first["pid"], signal.SIGUSR2)  # the time is up, or another job comes first
    os.kill(second["pid"], signal.SIGTERM)
    out, err = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 0, err
    assert [(s["state"], s["epoch"]) for s in statuses()] == [("done", 9.0)] * 2
    assert {s["pid"] for s in statuses()}.isdisjoint({first["pid"], second["pid"]})
    for log in Path("outputs").glob("*/*/*/*/train.log"):
        text = log.read_text()
        assert "interrupted by SIG" in text
        assert "resuming at epoch" in text
    assert len(list(Path("outputs/digits/lstm").iterdir())) == 2
    assert "going on" not in out
