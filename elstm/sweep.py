"""`elstm-train -m`: all runs of a sweep, one line for each as it ends, and the table of all.

What Hydra's own sweeper lacks: every run is checked before the first begins; a run that fails does
not stop the others; the same command again leaves what is done alone and goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from elstm.cli import FAILED, Ended, summary
from elstm.compose import CONFIG_NAME, Composer
from elstm.errors import UserError
from elstm.explain import explain
from elstm.job import processes, train_job
from elstm.schema import run_name
from elstm.status import git_state
from elstm.sweep_plan import Run, find_earlier, params, plan
from elstm.sweep_table import Result, label, read_result, table, write_csv


def run_sweep(composer: Composer, words: Sequence[str]) -> int:
    """Trains all runs; returns the exit code, 1 if one failed.

    Raises:
        UserError: naming the word that is wrong; nothing has been trained then.
    """
    if processes() > 1:
        raise UserError("a sweep has one process for each run: start it without torchrun")
    words = [*words, "hydra.mode=MULTIRUN"]
    overrides = composer.parse(words, sweep=True)
    master = composer.load(words, RunMode.MULTIRUN)
    if master.hydra.sweeper._target_ != BasicSweeperConf._target_:
        return _by_plugin(composer, words)
    try:
        root = Path(str(master.hydra.sweep.dir))
    except Exception as error:  # an interpolation that leads nowhere
        raise explain(error) from error
    runs = plan(composer, [*params(composer, master), *overrides], root)
    settings = runs[0].config.sweep
    if not settings.rerun:
        find_earlier(runs, root)
    return Sweep(composer, master, runs, root).run(fail_fast=settings.fail_fast)


def _by_plugin(composer: Composer, words: list[str]) -> int:
    """A sweeper that chooses its runs itself; each is checked when it begins."""
    try:
        composer.hydra().multirun(CONFIG_NAME, train_job, words)
    except Exception as error:
        raise explain(error) from error
    return 0


class Sweep:
    """Launches the runs and keeps the account of them.

    Args:
        root: hydra.sweep.dir, the folder that takes the place of outputs/.
    """

    def __init__(self, composer: Composer, master: DictConfig, runs: list[Run], root: Path) -> None:
        self.runs, self.root, self.master = runs, root, master
        self.results: list[Result] = []
        self.folder = root / "sweeps" / run_name()
        context = HydraContext(config_loader=composer.loader, callbacks=Callbacks())
        try:
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=train_job, config=master
            )
        except Exception as error:
            raise explain(error) from error

    def run(self, *, fail_fast: bool) -> int:
        """All of them; returns the exit code."""
        todo = [run for run in self.runs if run.state not in ("done", "in use")]
        for run in self.runs:
            if run not in todo:
                result = read_result(run.varied, run.folder, ended=run.state == "done")
                note = f"done already{commit_note(result)}" if run.state == "done" else run.state
                self.account(result, f"{note}: ")
        one_by_one = self.master.hydra.launcher._target_ == BasicLauncherConf._target_
        try:
            for batch in [[run] for run in todo] if one_by_one else [todo]:
                if batch:
                    self.launch(batch)
                if fail_fast and any(r.state == "failed" for r in self.results):
                    break
        except KeyboardInterrupt as signal:
            print(f"{self.report()}\nthe same command goes on", flush=True)
            raise Ended(str(signal) or "SIGINT", said=True) from None
        print(self.report(), flush=True)
        return FAILED if any(r.state == "failed" for r in self.results) else 0

    def launch(self, batch: Sequence[Run]) -> None:
        """Trains a batch of runs: one, or all where the launcher runs several at once."""
        for run in batch:
            how = "" if run.state is None else f", goes on ({run.state})"
            print(f"{self.position(len(batch))}{label(run.varied)}{how}", flush=True)
            if run.state is None:
                run.folder = run.folder.with_name(run_name())  # of the time when it begins
        try:
            jobs: Sequence[JobReturn] = self.launcher.launch(
                [self.job(run) for run in batch], initial_job_idx=len(self.results)
            )
            errors = [_error(job) for job in jobs]
        except KeyboardInterrupt:
            for run in batch:
                if run.folder.is_dir():
                    self.account(read_result(run.varied, run.folder), "")
            raise
        except Exception as raised:
            errors = [summary(raised)] * len(batch)
        for run, error in zip(batch, errors, strict=True):
            self.account(read_result(run.varied, run.folder, error), "")

    def job(self, run: Run) -> list[str]:
        """The words that Hydra composes and runs."""
        folder = str(run.folder.relative_to(self.root)).replace("'", "\\'")
        words = [*run.words, f"hydra.sweep.subdir='{folder}'"]
        # A run that goes on keeps the .hydra that it has; see elstm.job.train_job.
        return words if run.state is None else [*words, "hydra.output_subdir=null"]

    def position(self, count: int = 1) -> str:
        first = len(self.results) + 1
        return f"[{first}/{len(self.runs)}] " if count == 1 else f"[{len(self.runs)}] "

    def account(self, result: Result, how: str) -> None:
        self.results.append(result)
        place = f"[{len(self.results)}/{len(self.runs)}]"
        print(f"{place} {result.label}: {how}{result.summary()}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.folder / "sweep.csv", self.results)

    def report(self) -> str:
        """The table of the runs that have ended, and where it is."""
        return f"\n{table(self.results)}\n{self.folder / 'sweep.csv'}"


def _error(job: JobReturn) -> str | None:
    """Why a run did not even begin; what happens in it, elstm.job.execute has caught."""
    raised = job._return_value
    return summary(raised) if isinstance(raised, Exception) else None


def commit_note(result: Result) -> str:
    """Where a run was made by other code than today's."""
    then, now = result.status.get("git_commit"), git_state()["git_commit"]
    if not then or not now or then == now:
        return ""
    return f" at commit {str(then)[:7]}, the code is now at {now[:7]}"
