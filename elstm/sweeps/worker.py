"""Trains a run of a sweep in a launcher's process, a worker of joblib or a job of a cluster."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from elstm.cli import FAILED, ended_by_signals, interrupted_by
from elstm.files.atomic import write_atomic, writing
from elstm.sweeps.job import OnEvaluation, train_job

POLL_SECONDS = 0.2
# SLURM kills a cancelled or preempted job KillWait after its SIGTERM, by default 30 seconds.
KILL_WAIT_SECONDS = 90.0


@dataclass(frozen=True)
class StopFile:
    """Requests by a file that the runs of a sweep stop, on other machines too.

    Only the sweep writes it. Once it exists, no further run starts. Active runs finish ("drain",
    for sweep.fail_fast), save and end ("stop"), or end at once ("now", after a second Ctrl-C).
    """

    path: Path

    def request(self, how: str) -> None:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, how.encode(), sync=False)

    def requested(self) -> str | None:
        with suppress(OSError):
            return self.path.read_text(encoding="utf-8")
        return None


@dataclass(frozen=True)
class WorkerJob:
    """Replaces `train_job` where a launcher runs several jobs at once.

    The run writes to its log alone, because the sweep reports on the terminal. An interrupt ends
    the run and not the worker, which may have more jobs.

    Attributes:
        callbacks: as in `train_job`.
        sweep: the process number of the sweep, if the workers are its children. If the sweep is
            killed, the active run saves and ends, and queued runs do not start.
    """

    stop: StopFile
    callbacks: Mapping[str, OnEvaluation] = field(default_factory=dict)
    sweep: int | None = None

    def __call__(self, cfg: DictConfig) -> float:
        """Returns best validation accuracy; NaN if the run failed or was interrupted."""
        if self._requested():
            return math.nan
        try:
            with ended_by_signals(), self._interrupted_by_file():
                return train_job(cfg, terminal=False, callbacks=self.callbacks)
        except KeyboardInterrupt as interrupt:
            if self._orphaned():
                os._exit(FAILED)  # the worker gets no further job
            if not self._requested():
                requeue(interrupted_by(interrupt))
            return math.nan

    def _orphaned(self) -> bool:
        return self.sweep not in (None, os.getpid(), os.getppid())

    def _requested(self) -> str | None:
        return "stop" if self._orphaned() else self.stop.requested()

    @contextmanager
    def _interrupted_by_file(self) -> Iterator[None]:
        """Interrupts the main thread, as a signal does, when the file appears."""
        ended = threading.Event()

        def poll() -> None:
            signals = [signal.SIGTERM, signal.SIGINT]  # save and end; end at once
            while signals and not ended.wait(POLL_SECONDS):
                remaining = {"stop": 1, "now": 0}.get(self._requested() or "", 2)
                if len(signals) > remaining:
                    interrupt_main(signals.pop(0))

        thread = threading.Thread(target=poll, daemon=True, name="elstm-stop")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def requeue(signal_name: str) -> None:
    """Requeues a job of submitit after a signal has interrupted it, and ends the process.

    submitit's handler for the signal of a time limit or a preemption requeues the job. SLURM sends
    SIGTERM alone for a preemption, but also for `scancel`, after which the job must not return. So
    unless SLURM reports a preemption, the job waits until it is killed, and is requeued if it is
    not. Outside such a job this does nothing.
    """
    cluster = os.environ.get("SUBMITIT_EXECUTOR")
    if cluster is None:
        return
    from submitit import JobEnvironment

    number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
    handler = signal.getsignal(number)
    if not callable(handler):
        return
    if cluster == "slurm" and signal_name == "SIGTERM" and _slurm("PreemptTime") in ("", "None"):
        time.sleep(KILL_WAIT_SECONDS)  # a signal to requeue ends the wait: submitit's handler exits
    try:
        handler(number, None)
    except subprocess.CalledProcessError:  # of `scontrol requeue`
        if _slurm("JobState") in ("", "RUNNING"):
            raise
        # SLURM has requeued the job itself. A return value would be taken for the job's result.
        sys.exit(FAILED)


def _slurm(key: str) -> str:
    """Reads one field of `scontrol show job` for this job; "" if there is none."""
    from submitit import JobEnvironment

    command = ["scontrol", "show", "job", "--oneliner", JobEnvironment().job_id]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(rf"(?:^|\s){key}=(\S+)", shown.stdout)
    return found[1] if found else ""
