"""Hydra's launchers, as a sweep needs them: each run told of as it ends, and all stopped cleanly.

A launcher that runs several at once returns when all have ended, and Ctrl-C makes it kill them. So
it is called in a thread, while the main thread reads the runs' status.json and takes the signals.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from elstm.cli import STOP_SIGNALS, Ended, handled, plural, summary
from elstm.config.compose import Composer
from elstm.config.messages import explain
from elstm.errors import UserError
from elstm.records.status import read_status
from elstm.sweeps.job import Watch, train_job
from elstm.sweeps.plan import Run, in_use
from elstm.sweeps.sweep_job import StopFile, SweepJob

ENDED = ("done", "failed", "pruned")
LOOK_SECONDS = 0.2
CRASHES = 2  # a run that was going when so many pools of workers broke is not tried again
NOW_SECONDS = 10.0  # a cluster's jobs are waited for no longer than this

OnEnd = Callable[[Run, str | None], None]  # a run that has ended, and why it did not begin, if so


class Launcher:
    """The launcher that hydra/launcher names.

    Args:
        root: hydra.sweep.dir, which the runs' folders lie under.
        folder: of the sweep, where it asks its runs to stop.

    Raises:
        UserError: it cannot be set up: a plugin is missing, a setting wrong.
    """

    def __init__(self, composer: Composer, master: DictConfig, root: Path, folder: Path) -> None:
        self.root, self.stop = root, StopFile(folder / "stop")
        settings = master.hydra.launcher
        self.kind = str(settings._target_)
        self.together = self.kind != BasicLauncherConf._target_
        self.joblib = self.kind.endswith(".JoblibLauncher")
        self.width = self.cores = 1  # runs at once, at most, and what they share
        self.threads: int | None = None  # for each; None: what torch takes by itself
        self.watch: Watch | None = None  # of each run, made from its folder
        self.launched = 0
        try:
            if self.joblib:
                self._set_up_joblib(settings)
            elif self.together:
                self.width = int(settings.get("array_parallelism") or 1)
                self.threads = settings.get("cpus_per_task")
            self.plugin = Plugins.instance().instantiate_launcher(
                hydra_context=HydraContext(config_loader=composer.loader, callbacks=Callbacks()),
                task_function=self.task(),
                config=master,
            )
        except Exception as error:
            raise explain(error) from error

    def task(self) -> TaskFunction:
        if self.together:
            return SweepJob(self.stop, self.watch, os.getpid() if self.joblib else None)
        return partial(train_job, watch=self.watch)

    def _set_up_joblib(self, settings: DictConfig) -> None:
        import joblib

        # Before the thread that starts workers blocks SIGINT: starting this process unblocks it.
        resource_tracker.ensure_running()
        self.width, self.cores = joblib.effective_n_jobs(settings.n_jobs), joblib.cpu_count()
        if settings.batch_size == "auto":  # joblib would give a worker several short runs at once
            with open_dict(settings):
                settings.batch_size = "1"

    def share(self, count: int) -> None:
        """Divides the cores between `count` runs that are about to be launched on this machine."""
        if self.joblib:
            self.threads = max(1, self.cores // min(self.width, count))

    def launch(self, runs: Sequence[Run], on_end: OnEnd) -> None:
        """Trains all of `runs`, one after the other or several at once, as the launcher does it.

        Raises:
            Ended: a signal asked to stop; all runs that were going have saved.
        """
        if self.together:
            with self._signals() as came:
                self._launch_together(runs, on_end, came)
            return
        for run in runs:
            if self.stop.asked():
                return
            errors, _ = self._call([run])
            on_end(run, errors[0])

    def _call(self, runs: Sequence[Run]) -> tuple[list[str | None], bool]:
        """Hydra's launcher: why each run did not begin, if so; and whether the launcher broke."""
        first, self.launched = self.launched, self.launched + len(runs)
        self.plugin.task_function = self.task()
        try:
            jobs = self.plugin.launch([self.words(r) for r in runs], initial_job_idx=first)
            return [_error(job) for job in jobs], False
        except Exception as error:
            return [summary(error)] * len(runs), True

    def words(self, run: Run) -> list[str]:
        """What Hydra composes and runs."""
        folder = str(run.folder.relative_to(self.root)).replace("'", "\\'")
        words = [*run.words, f"hydra.sweep.subdir='{folder}'"]
        if self.threads is not None and run.config.trainer.threads is None:
            words.append(f"trainer.threads={self.threads}")
        # A run that goes on keeps the .hydra that it has; see elstm.sweeps.job.train_job.
        return words if run.state is None else [*words, "hydra.output_subdir=null"]

    # --- several at once

    def _launch_together(self, runs: Sequence[Run], on_end: OnEnd, came: list[str]) -> None:
        """One worker's death ends all of joblib's, so that the runs left are launched again."""
        crashes = dict.fromkeys(runs, 0)
        left = list(runs)
        while left:
            watch = _Watch(left, on_end)
            errors, broke = self._call_and_watch(watch, came)
            begun = watch.begun()
            if came:
                for run in begun:
                    on_end(run, None)
                raise Ended(came[0], said=True)
            again = []
            for run in watch.left:
                crashes[run] += broke and run in begun
                if self.stop.asked() and run not in begun:
                    continue  # sweep.fail_fast: it was told not to begin
                if broke and self.joblib and begun and crashes[run] < CRASHES:
                    again.append(run)
                else:
                    on_end(run, errors.get(run))
            left = [] if self.stop.asked() else again
            if left:
                print(
                    "a worker died (killed, or out of memory), and joblib ends all with it: "
                    f"going on with {plural(len(left), 'run')}",
                    flush=True,
                )

    def _call_and_watch(self, watch: _Watch, came: list[str]) -> tuple[dict[Run, str | None], bool]:
        """Hydra's launcher in a thread, and in this one an eye on the runs and on signals."""
        runs, answer = list(watch.left), []

        def call() -> None:
            # Ctrl-C comes to all processes of a terminal; those that are started from this thread
            # inherit that they do not see it, and are asked to stop by the sweep.
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
            answer.append(self._call(runs))

        thread = threading.Thread(target=call, daemon=True, name="elstm-launcher")
        thread.start()
        pause, told, deadline = LOOK_SECONDS, 0, float("inf")
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(pause)
            look = time.monotonic()
            watch.look()
            pause = max(LOOK_SECONDS, 5 * (time.monotonic() - look))
            if len(came) > told:
                told = len(came)
                if came.count("SIGINT") > 1:
                    print("ending at once: the runs go on from what they have saved", flush=True)
                    deadline = time.monotonic() + NOW_SECONDS
                    if self.joblib:
                        _kill_workers()
                else:
                    print("stopping: the runs that are going save and end", flush=True)
            if came and not self.joblib and not any(in_use(run.folder) for run in watch.left):
                # A cluster's queue may hold the others for hours; they will find the stop file.
                deadline = min(deadline, time.monotonic() + NOW_SECONDS)
        errors, broke = answer[0] if answer else ([None] * len(runs), False)
        while broke and not came and any(in_use(run.folder) for run in watch.left):
            time.sleep(LOOK_SECONDS)  # of submitit's jobs one has died, and the others go on
            watch.look()
        return dict(zip(runs, errors, strict=True)), broke

    @contextmanager
    def _signals(self) -> Iterator[list[str]]:
        """Signals ask the runs to stop, a second Ctrl-C at once; yields their names."""
        came: list[str] = []

        def ask(number: int, frame: object) -> None:
            came.append(signal.Signals(number).name)
            self.stop.ask("now" if came.count("SIGINT") > 1 and not self.joblib else "stop")

        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            signals = filter(handled, (signal.SIGINT, *STOP_SIGNALS))
            before = {n: signal.signal(n, ask) for n in signals}
        try:
            yield came
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Watch:
    """Runs that were launched together: which of them have ended, by their status.json."""

    def __init__(self, runs: Sequence[Run], on_end: OnEnd) -> None:
        self.left, self.on_end = list(runs), on_end
        self.before = {run: read_status(run.folder) for run in runs}

    def look(self) -> None:
        """Tells of those that have ended since."""
        for run in list(self.left):
            status = read_status(run.folder)
            if status and status != self.before[run] and status.get("state") in ENDED:
                self.left.remove(run)
                self.on_end(run, None)

    def begun(self) -> list[Run]:
        """Those left that have begun."""
        return [run for run in self.left if read_status(run.folder) != self.before[run]]


def _kill_workers() -> None:
    """Of joblib: whatever a run is in the middle of, what it has saved is whole."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown(wait=False, kill_workers=True)


def _error(job: JobReturn) -> str | None:
    """Why a run did not even begin; what happens in it, elstm.sweeps.job.execute has caught."""
    raised = job._return_value
    if isinstance(raised, UserError):
        return str(raised)
    return summary(raised) if isinstance(raised, Exception) else None
