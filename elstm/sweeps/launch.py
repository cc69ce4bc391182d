"""Launches the runs of a sweep with Hydra's launchers, reports each end, and stops all on signals.

A launcher of several runs returns after the last one, and Ctrl-C makes it kill them. It is
therefore called in a thread, while the main thread polls the status.json files and handles signals.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict

from elstm.cli import STOP_SIGNALS, Ended, handled, plural, summary
from elstm.config.compose import Composer
from elstm.config.hydra_private import BASIC_LAUNCHER, raised_in
from elstm.config.messages import explain
from elstm.errors import UserError
from elstm.records.status import is_locked, read_status
from elstm.sweeps.job import train_job
from elstm.sweeps.plan import PlannedRun
from elstm.sweeps.worker import StopFile, WorkerJob

IN_THIS_PROCESS = (BASIC_LAUNCHER,)  # launchers that train one run after the other
# SIGUSR1 and SIGUSR2: SLURM's --signal for a sweep within a job.
SIGNALS = [
    signal.SIGINT,
    *STOP_SIGNALS,
    *(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)),
]
ENDED = ("done", "failed", "pruned")
POLL_SECONDS = 0.2
MAX_CRASHES = 2  # a run that was active when this many pools of workers broke is not tried again
STOP_NOW_SECONDS = 10.0  # the longest wait for a cluster's jobs after a second Ctrl-C

OnRunEnd = Callable[[PlannedRun, str | None], None]  # with the reason if the run did not start


class RunLauncher:
    """Launches runs with the launcher that hydra/launcher names.

    Attributes:
        together: whether it trains several runs at once, each in another process.
        width: the number of runs at once.
        threads: the number of threads of each run; None: torch chooses.

    Raises:
        UserError: a plugin is missing, or a setting is wrong.
    """

    def __init__(self, composer: Composer, master: DictConfig, root: Path, stop: StopFile) -> None:
        self.root, self.stop = root, stop
        settings = master.hydra.launcher
        self.joblib = str(settings._target_).endswith(".JoblibLauncher")
        self.width = self._cores = 1
        self.threads: int | None = None
        self._launched = 0
        try:
            if self.joblib:
                settings = self._set_up_joblib(master)
            elif settings._target_ not in IN_THIS_PROCESS:
                self.width = int(settings.get("array_parallelism") or 1)
                self.threads = settings.get("cpus_per_task")
            self.together = settings._target_ not in IN_THIS_PROCESS
            self._plugin = Plugins.instance().instantiate_launcher(
                hydra_context=composer.hydra_context(), task_function=train_job, config=master
            )
        except Exception as error:
            raise explain(error) from error

    def _set_up_joblib(self, master: DictConfig) -> DictConfig:
        """Sets joblib up; a single worker would be a thread, which no signal reaches."""
        import joblib

        settings = master.hydra.launcher
        self.width, self._cores = joblib.effective_n_jobs(settings.n_jobs), joblib.cpu_count()
        with open_dict(master.hydra):
            if self.width == 1:
                self.joblib = False
                master.hydra.launcher = {"_target_": BASIC_LAUNCHER}
            elif settings.batch_size == "auto":  # gives a worker several short runs at once
                settings.batch_size = "1"
        # Starting this process unblocks SIGINT, so it is started before workers are.
        resource_tracker.ensure_running()
        return master.hydra.launcher

    def divide_cores(self, count: int) -> None:
        """Sets the threads of `count` runs that are about to be launched on this machine."""
        if self.joblib:
            self.threads = max(1, self._cores // min(self.width, count))

    def overrides(self, run: PlannedRun) -> list[str]:
        """Returns the overrides of a run; a resumed run keeps its .hydra (see `train_job`)."""
        folder = str(run.folder.relative_to(self.root)).replace("'", "\\'")
        overrides = [*run.overrides, f"hydra.sweep.subdir='{folder}'"]
        if self.threads is not None and run.config.trainer.threads is None:
            overrides.append(f"trainer.threads={self.threads}")
        return overrides if run.state is None else [*overrides, "hydra.output_subdir=null"]

    def _call(self, runs: Sequence[PlannedRun]) -> tuple[list[str | None], bool]:
        """Calls Hydra's launcher; returns why each run did not start, and whether Hydra failed."""
        callbacks = {r.folder.name: r.job.on_evaluation for r in runs if r.job.on_evaluation}
        if self.together:
            parent = os.getpid() if self.joblib else None
            self._plugin.task_function = WorkerJob(self.stop, callbacks, parent)
        else:
            self._plugin.task_function = partial(train_job, callbacks=callbacks)
        first, self._launched = self._launched, self._launched + len(runs)
        try:
            jobs = self._plugin.launch([self.overrides(r) for r in runs], initial_job_idx=first)
            return [_error(job) for job in jobs], False
        except Exception as error:
            return [summary(error)] * len(runs), True

    def launch(self, run: PlannedRun, on_run_end: OnRunEnd) -> None:
        """Trains a run in this process. Raises Ended after a signal, once the run has saved."""
        errors, _ = self._call([run])
        on_run_end(run, errors[0])

    def launch_together(self, runs: Sequence[PlannedRun], on_run_end: OnRunEnd) -> None:
        """Trains several runs at once.

        One worker's death ends all workers of joblib, so the remaining runs are launched again.

        Raises:
            Ended: a signal requested a stop; all active runs have saved.
        """
        crashes = dict.fromkeys(runs, 0)
        remaining = list(runs)
        with self._signals() as signals:
            while remaining:
                poll = _Poll(remaining, on_run_end)
                errors, broke = self._call_and_poll(poll, signals)
                started = poll.started()
                if signals:
                    for run in started:
                        on_run_end(run, None)
                    raise Ended(signals[0], reported=True)
                remaining = []
                for run in poll.active:
                    crashes[run] += broke and run in started
                    if self.stop.requested() and run not in started:
                        continue  # sweep.fail_fast
                    if broke and self.joblib and started and crashes[run] < MAX_CRASHES:
                        remaining.append(run)
                    else:
                        on_run_end(run, errors.get(run))
                if self.stop.requested():
                    return
                if remaining:
                    print(
                        "a worker died (killed, or out of memory), so joblib ended all workers: "
                        f"resuming with {plural(len(remaining), 'run')}",
                        flush=True,
                    )

    def _call_and_poll(
        self, poll: _Poll, signals: list[str]
    ) -> tuple[dict[PlannedRun, str | None], bool]:
        runs, answer = list(poll.active), []

        def call() -> None:
            # A terminal sends Ctrl-C and its end to all processes. Those that this thread starts
            # inherit that both are blocked; the sweep's stop file reaches them instead.
            if hasattr(signal, "pthread_sigmask"):
                blocked = {n for n in SIGNALS if n.name in ("SIGINT", "SIGHUP")}
                signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
            answer.append(self._call(runs))

        thread = threading.Thread(target=call, daemon=True, name="elstm-launcher")
        thread.start()
        pause, reported, deadline = POLL_SECONDS, 0, float("inf")
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(pause)
            start = time.monotonic()
            poll.update()
            pause = max(POLL_SECONDS, 5 * (time.monotonic() - start))
            if len(signals) > reported:
                reported = len(signals)
                if signals.count("SIGINT") > 1:
                    print(
                        "stopping at once: runs resume from their last checkpoints",
                        flush=True,
                    )
                    deadline = time.monotonic() + STOP_NOW_SECONDS
                    if self.joblib:
                        _kill_workers()
                else:
                    print("stopping: active runs save first", flush=True)
            if (
                signals
                and not self.joblib
                and not any(is_locked(run.folder) for run in poll.active)
            ):
                # Others may wait in a cluster's queue for hours, and read the stop file when they
                # start.
                deadline = min(deadline, time.monotonic() + STOP_NOW_SECONDS)
        errors, broke = answer[0] if answer else ([None] * len(runs), False)
        while broke and not signals and any(is_locked(run.folder) for run in poll.active):
            time.sleep(POLL_SECONDS)  # one of submitit's jobs died, and the others are active
            poll.update()
        return dict(zip(runs, errors, strict=True)), broke

    @contextmanager
    def _signals(self) -> Iterator[list[str]]:
        """Makes signals stop the runs, a second Ctrl-C at once; yields the signals' names."""
        received: list[str] = []

        def request(number: int, frame: object) -> None:
            received.append(signal.Signals(number).name)
            now = received.count("SIGINT") > 1 and not self.joblib
            self.stop.request("now" if now else "stop")

        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, request) for number in filter(handled, SIGNALS)}
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Poll:
    """Follows the runs of one launch by their status.json until they have ended."""

    def __init__(self, runs: Sequence[PlannedRun], on_run_end: OnRunEnd) -> None:
        self.active, self._on_run_end = list(runs), on_run_end
        self._before = {run: read_status(run.folder) for run in runs}

    def update(self) -> None:
        """Reports the runs that have ended since the last call."""
        for run in list(self.active):
            status = read_status(run.folder)
            if status and status != self._before[run] and status.get("state") in ENDED:
                self.active.remove(run)
                self._on_run_end(run, None)

    def started(self) -> list[PlannedRun]:
        return [run for run in self.active if read_status(run.folder) != self._before[run]]


def _kill_workers() -> None:
    """Kills joblib's workers, which is safe because checkpoints are complete at every moment."""
    for process in multiprocessing.active_children():
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def _error(job: JobReturn) -> str | None:
    """Returns why a run did not start; elstm.sweeps.job.execute catches errors of the run."""
    raised = raised_in(job)
    if isinstance(raised, UserError):
        return str(raised)
    return None if raised is None else summary(raised)
