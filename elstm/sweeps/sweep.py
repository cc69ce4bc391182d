"""Runs `elstm-train -m`: trains the runs of a sweep, reports each end, and prints a table.

Every run of a grid is checked before the first one starts. A run that fails does not stop the
others. The same command again skips the finished runs and resumes the others.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig

from elstm.cli import FAILED, Ended, fitted, plural
from elstm.config.compose import Composer, plain
from elstm.config.messages import explain
from elstm.config.run_folder import run_name
from elstm.errors import UserError
from elstm.files.atomic import writing
from elstm.records.status import git_state
from elstm.sweeps.launch import RunLauncher
from elstm.sweeps.plan import Grid, Job, Plan, PlannedRun, Sweeper
from elstm.sweeps.plugin import PluginSweeper
from elstm.sweeps.search import Search
from elstm.sweeps.table import JobResult, label, read_result, table, write_csv
from elstm.sweeps.worker import StopFile
from elstm.training.ranks import read_ranks

EXTENDED = "the run was extended, so it is none of this sweep: the same command trains another"
SWEEPERS: dict[str, Callable[..., Sweeper]] = {
    "basic": Grid,
    "optuna": Search,
}  # by hydra/sweeper; plugins add others


def run_sweep(composer: Composer, overrides: Sequence[str]) -> int:
    """Trains all runs; returns the exit code, 1 if one failed.

    Raises:
        UserError: naming the override that is wrong; nothing has been trained then.
    """
    if read_ranks().world_size > 1:
        raise UserError("a sweep has one process for each run: start it without torchrun")
    overrides = [*overrides, "hydra.mode=MULTIRUN"]
    parsed = composer.parse(overrides, sweep=True)
    master = composer.load(overrides, RunMode.MULTIRUN)
    make = SWEEPERS.get(master.hydra.runtime.choices["hydra/sweeper"], PluginSweeper)
    if make is not PluginSweeper:  # a plugin reads hydra.sweeper.params itself
        params = plain(master.hydra.sweeper).get("params") or {}
        in_file = [f"{key}={value}" for key, value in params.items()]
        parsed = [*composer.parse(in_file, sweep=True), *parsed]
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() and key.startswith("sweep."):
            raise UserError(f"{key} is one setting for the full sweep: give it one value")
    try:
        root = Path(str(master.hydra.sweep.dir))
    except Exception as error:  # an interpolation that names no key
        raise explain(error) from error
    sweeper = make(composer, master, parsed, root)
    return Sweep(Plan(composer, parsed, root), composer, master).run(sweeper)


class Stopped(BaseException):
    """Ends a sweeper after sweep.fail_fast. A plugin would mistake an Exception for a run's."""


class Sweep:
    """Trains the runs that a sweeper requests, and collects the results."""

    def __init__(self, plan: Plan, composer: Composer, master: DictConfig) -> None:
        self.plan = plan
        self.folder = plan.root / "sweeps" / run_name()
        self.stop = StopFile(self.folder / "stop")
        self.launcher = RunLauncher(composer, master, plan.root, self.stop)
        self.results: dict[str, JobResult] = {}  # by the identity of the run
        self.total: int | None = None
        self._new_folders: set[Path] = set()  # around the runs' own

    def run(self, sweeper: Sweeper) -> int:
        """Returns the exit code once all runs have ended, 1 if one failed."""
        try:
            sweeper.sweep(self.train, self.launcher.width)
        except Stopped:
            pass
        except KeyboardInterrupt as interrupt:
            print(f"{self._report()}\nrun the same command again to resume", flush=True)
            raise Ended(str(interrupt) or "SIGINT", reported=True) from None
        except Exception:
            if self.results:
                print(self._report(), flush=True)
            raise
        finally:
            self.plan.close()
            self._remove_empty_folders()
        print(self._report(), flush=True)
        return FAILED if {r.state for r in self.results.values()} & {"failed", "killed"} else 0

    def train(self, jobs: Sequence[Job], *, following: int | None = None) -> list[JobResult]:
        """Trains jobs, as elstm.sweeps.plan.Train. Raises Stopped if the sweep has to end."""
        planned = [self.plan.run(job) for job in jobs]
        self._new_folders |= {
            folder
            for run in planned
            for folder in run.folder.parents
            if folder.is_relative_to(self.plan.root) and not folder.exists()
        }
        first: dict[str, PlannedRun] = {}  # one of several equal jobs is trained
        for run in planned:
            first.setdefault(run.identity, run)
        runs = list(first.values())
        new = len(first.keys() - self.results)
        self.total = None if following is None else len(self.results) + new + following
        if self.launcher.together:
            self._train_together([run for run in runs if self._has_to_train(run)])
        else:
            for run in runs:
                if not self.stop.requested() and self._has_to_train(run):
                    self._train_here(run)
        if self.stop.requested():
            raise Stopped
        for run in planned:
            if run is not first[run.identity]:
                run.job.on_end(self.results[run.identity])
        return [self.results[run.identity] for run in planned]

    def _remove_empty_folders(self) -> None:
        """Removes the new folders of runs that ended before their first step."""
        for folder in sorted(self._new_folders, key=lambda each: len(each.parts), reverse=True):
            with suppress(OSError):  # not empty, or not made
                folder.rmdir()

    def _has_to_train(self, run: PlannedRun) -> bool:
        """Searches for an earlier run, and lists the run if there is nothing to train."""
        self.plan.find_earlier(run)
        if run.state == "locked":
            self._add_result(run, read_result(run.varied, run.folder, locked=True))
        elif run.state == "done" or run.job.ended is not None:
            result = read_result(run.varied, run.folder, archived=run.archived)
            if run.state is None and run.job.ended is not None:
                result = JobResult(run.varied, run.folder, run.job.ended)
            self._add_result(run, result, f"already {result.state}{_commit_note(result)}: ")
        else:
            if run.state is None and (why := self.plan.why_again(run)):
                _tell(f"{label(run.varied)}: {why}")
            return True
        return False

    def _train_here(self, run: PlannedRun) -> None:
        how = "" if run.state is None else f", resumes ({run.state})"
        _tell(f"{self._place(len(self.results) + 1)} {label(run.varied)}{how}")
        if run.state is None:
            run.folder = run.folder.with_name(run_name())  # the time at which it starts
        try:
            self.launcher.launch(run, self._on_run_end)
        except KeyboardInterrupt:
            if run.folder.is_dir():
                self._add_result(run, read_result(run.varied, run.folder))
            raise

    def _train_together(self, runs: Sequence[PlannedRun]) -> None:
        if not runs:
            return
        launcher = self.launcher
        launcher.divide_cores(len(runs))
        what = plural(len(runs), "run")
        if launcher.joblib:
            what += f", {min(launcher.width, len(runs))} at once"
        threads = {run.config.trainer.threads or launcher.threads for run in runs}
        if len(threads) == 1 and (each := threads.pop()) is not None:
            what += f", {plural(each, 'thread')} each"
        _tell(f"{what}; each has its own train.log")
        launcher.launch_together(runs, self._on_run_end)

    def _on_run_end(self, run: PlannedRun, error: str | None) -> None:
        """Lists a run that has ended, or that did not start because of `error`."""
        result = read_result(run.varied, run.folder, error)
        if result.status.get("extensions"):  # a kill hid it until the run was resumed
            status = {"state": "failed", "error": EXTENDED, "step": result.status.get("step")}
            result = JobResult(run.varied, run.folder, status)
        self._add_result(run, result)
        if run.config.sweep.fail_fast and result.state == "failed":
            self.stop.request("drain")

    def _add_result(self, run: PlannedRun, result: JobResult, how: str = "") -> None:
        self.plan.release(run)
        self.results[run.identity] = result
        place = self._place(len(self.results))
        _tell(f"{place} {label(run.varied)}: {how}{result.summary()}")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.folder / "sweep.csv", list(self.results.values()))
        run.job.on_end(result)

    def _place(self, number: int) -> str:
        return f"[{number}]" if self.total is None else f"[{number}/{self.total}]"

    def _report(self) -> str:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        shown = table(list(self.results.values()), width)
        folder = shlex.quote(str(self.folder))
        return f"\n{shown}\n{self.folder / 'sweep.csv'}\nreport: elstm-report {folder}"


def _tell(line: str) -> None:
    print(fitted(line, sys.stdout), flush=True)


def _commit_note(result: JobResult) -> str:
    """Returns a note that a run was trained by another version of the code."""
    then, now = result.status.get("git_commit"), git_state()["git_commit"]
    if not then or not now or then == now:
        return ""
    return f" at commit {str(then)[:7]}, the code is now at {now[:7]}"
