"""One run of a sweep, in whatever process a launcher starts it: here, a worker's or a cluster's."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from elstm.cli import FAILED, ended_by_signals, interrupted_by
from elstm.files.atomic import write_atomic
from elstm.sweeps.job import Watch, train_job

LOOK_SECONDS = 0.2
# What SLURM sends before it kills a job that is cancelled or preempted: KillWait, 30 s by default.
KILL_WAIT_SECONDS = 90.0


@dataclass(frozen=True)
class StopFile:
    """A file with which the sweep asks its runs to stop, wherever they are; none is there at first.

    The sweep alone writes it, so that it serves on a shared file system too. Once it is there, no
    further run begins. The runs that are going finish theirs ("drain": a run failed, and
    sweep.fail_fast is set), save and end ("stop"), or end at once ("now": a second Ctrl-C).
    """

    path: Path

    def ask(self, how: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, how.encode(), sync=False)

    def asked(self) -> str | None:
        with suppress(OSError):
            return self.path.read_text(encoding="utf-8")
        return None


_running = threading.Lock()  # held while this worker has a run


@cache
def _end_with(sweep: int) -> None:
    """Ends this process once it is not a child of `sweep` any more, after its run if it has one."""

    def look() -> None:
        while os.getppid() == sweep:
            time.sleep(LOOK_SECONDS)
        with _running:
            os._exit(FAILED)

    threading.Thread(target=look, daemon=True, name="elstm-sweep").start()


@dataclass(frozen=True)
class SweepJob:
    """What a launcher that runs several at once is given to run, in place of `train_job`.

    The terminal belongs to the sweep, which says how each run ended: the run itself writes to its
    log alone. An interrupt ends the run and not the worker, which others use after it.

    Attributes:
        sweep: number of the sweep's process where the workers are its children. Once it is gone,
            killed as it may be, the run that a worker has begun saves and ends, and the worker
            with it: the same command would otherwise begin what the workers have in their queue.
    """

    stop: StopFile
    watch: Watch | None = None
    sweep: int | None = None

    def __call__(self, cfg: DictConfig) -> float:
        """Returns best validation accuracy; NaN where the run failed or was interrupted."""
        if self.sweep is not None and self.sweep != os.getpid():  # n_jobs=1: no worker
            _end_with(self.sweep)
        with _running:
            return self._run(cfg)

    def _run(self, cfg: DictConfig) -> float:
        if self._asked():
            return math.nan
        try:
            with ended_by_signals(), self._stopped_by_file():
                return train_job(cfg, terminal=False, watch=self.watch)
        except KeyboardInterrupt as interrupt:
            if not self._asked():
                requeue(interrupted_by(interrupt))
            return math.nan

    def _orphaned(self) -> bool:
        return self.sweep not in (None, os.getpid(), os.getppid())

    def _asked(self) -> str | None:
        return "stop" if self._orphaned() else self.stop.asked()

    @contextmanager
    def _stopped_by_file(self) -> Iterator[None]:
        """Turns what the file says into signals to the main thread, as if they had been sent."""
        over = threading.Event()

        def look() -> None:
            signals = [signal.SIGTERM, signal.SIGINT]  # to save; to end at once
            while signals and not over.wait(LOOK_SECONDS):
                left = {"stop": 1, "now": 0}.get(self._asked() or "", 2)
                if len(signals) > left:
                    interrupt_main(signals.pop(0))

        thread = threading.Thread(target=look, daemon=True, name="elstm-stop")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def requeue(name: str) -> None:
    """Of a job that submitit submitted: gives it back to the queue, and ends the process.

    `name` is that of the signal that interrupted the run; outside such a job nothing is done.

    What a signal made the run save is what the requeued job goes on from. submitit's own handler
    does it, which it has set up for the signal of a time limit or a preemption (SIGUSR2, or what
    SUBMITIT_PREEMPT_SIGNAL says). On SLURM a SIGTERM alone is that of a preemption or of `scancel`,
    which must not come back: if SLURM does not call it a preemption, the job waits, saved, and is
    requeued only if nobody kills it.
    """
    cluster = os.environ.get("SUBMITIT_EXECUTOR")
    if cluster is None:
        return
    from submitit import JobEnvironment

    number = JobEnvironment._usr_sig()
    handler = signal.getsignal(number)
    if not callable(handler):
        return
    if cluster == "slurm" and name == "SIGTERM" and _slurm_says("PreemptTime") in ("", "None"):
        time.sleep(KILL_WAIT_SECONDS)  # a signal to requeue ends the wait: submitit's handler exits
    try:
        handler(number, None)
    except subprocess.CalledProcessError:  # of `scontrol requeue`
        if _slurm_says("JobState") in ("", "RUNNING"):
            raise
        # SLURM is ending the job, having requeued it itself: COMPLETING as long as this process is
        sys.exit(FAILED)  # and not a return, which submitit would take for the job's result


def _slurm_says(field: str) -> str:
    """One field of what `scontrol show job` says of this process's job; "" if it says nothing."""
    from submitit import JobEnvironment

    command = ["scontrol", "show", "job", "--oneliner", JobEnvironment().job_id]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(rf"(?:^|\s){field}=(\S+)", shown.stdout)
    return found[1] if found else ""
