"""Jobs of a SLURM cluster: what `scontrol` answers as a stand-in, and a real cluster by hand.

The real one needs sbatch, a node with two free CPUs and some minutes (`pytest -m slow`): a job that
was requeued waits for two minutes or so.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_runs import statuses, wait_until

from elstm.sweeps import worker

pytest.importorskip("submitit")

REQUEUE_FAILS = 'if [ "$1" = requeue ]; then echo "Job is pending execution" >&2; exit 1; fi\n'


@pytest.fixture
def job(tmp_path, monkeypatch):
    """job(SCRIPT): as if in a SLURM job of submitit's, with SCRIPT for scontrol; its requeues."""
    requeues = []

    def handler(number, frame):
        requeues.append(number)
        subprocess.check_call(["scontrol", "requeue", "7_2"])
        sys.exit(-1)

    def begin(script):
        path = tmp_path / "scontrol"
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
        return requeues

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    for name, value in {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = signal.signal(signal.SIGUSR2, handler)
    yield begin
    signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=waited.append))
    return waited


def test_a_job_that_is_preempted_is_given_back_at_once(job, waits):
    requeues = job("echo JobId=9 JobState=RUNNING PreemptTime=2026-01-02T03:04:05")
    with pytest.raises(SystemExit):
        worker.requeue("SIGTERM")
    assert len(requeues) == 1
    assert waits == []


@pytest.mark.parametrize("says", ["echo JobState=RUNNING PreemptTime=None", "exit 1"])
def test_a_job_that_may_be_cancelled_waits_for_its_end(job, waits, says):
    requeues = job(f'[ "$1" = requeue ] || {says}')
    with pytest.raises(SystemExit):
        worker.requeue("SIGTERM")
    assert waits == [worker.KILL_WAIT_SECONDS]
    assert len(requeues) == 1


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING"])  # while this process is there; after
def test_a_job_that_slurm_has_requeued_itself_has_no_result(job, waits, state):
    job(REQUEUE_FAILS + f'test "$4" = 7_2 && echo JobId=9 JobState={state} PreemptTime=None')
    with pytest.raises(SystemExit):
        worker.requeue("SIGUSR2")


@pytest.mark.parametrize("says", ["echo JobState=RUNNING PreemptTime=None", "exit 1"])
def test_a_job_that_cannot_be_requeued_says_so(job, waits, says):
    job(REQUEUE_FAILS + says)
    with pytest.raises(subprocess.CalledProcessError):
        worker.requeue("SIGUSR2")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs a SLURM cluster")
def test_a_real_cluster_runs_and_requeues(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(tmp_path)
    command = [
        sys.executable, "-m", "elstm.train", "-m", "hydra/launcher=slurm", "model=lstm",
        "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "seed=0,1",
        "trainer.max_epochs=300", "trainer.device=cpu",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sweep:
        wait_until(lambda: [bool(s["epoch"]) for s in statuses()] == [True] * 2)
        first, second = (path.name for path in sorted(Path("outputs/.submitit").glob("*_[01]")))
        # As a preemption does it, SLURM first; and as a time limit does, the signal first.
        subprocess.check_call(["scontrol", "requeue", first])
        subprocess.check_call(["scancel", "--signal=USR2", second])
        wait_until(lambda: [s["state"] for s in statuses()] == ["interrupted"] * 2)
        out, _ = sweep.communicate(timeout=900)
    assert sweep.returncode == 0, out
    assert [(s["state"], s["epoch"]) for s in statuses()] == [("done", 300.0)] * 2
    assert "failed" not in out
    logs = [path.read_text() for path in Path("outputs").glob("*/*/*/*/train.log")]
    assert ["resuming at epoch" in log for log in logs] == [True] * 2
