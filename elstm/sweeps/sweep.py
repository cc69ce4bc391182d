"""`elstm-train -m`: all runs of a sweep, one line for each as it ends, and the table of all.

What Hydra's own sweeper lacks: every run is checked before the first begins; a run that fails does
not stop the others; the same command again leaves what is done alone and goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.types import RunMode
from omegaconf import DictConfig

from elstm.cli import FAILED, Ended, plural
from elstm.config.compose import Composer
from elstm.config.hydra_nodes import run_name
from elstm.config.messages import explain
from elstm.config.schema import SearchConfig, SweepConfig
from elstm.errors import UserError
from elstm.records.status import git_state
from elstm.sweeps.launch import Launcher
from elstm.sweeps.plan import Run, find_earlier, params, plan
from elstm.sweeps.plugin import SweeperPlugin
from elstm.sweeps.search import Search
from elstm.sweeps.table import Result, label, read_result, table, write_csv
from elstm.training.ranks import require_one_process


def run_sweep(composer: Composer, words: Sequence[str]) -> int:
    """Trains all runs; returns the exit code, 1 if one failed.

    Raises:
        UserError: naming the word that is wrong; nothing has been trained then.
    """
    require_one_process("a sweep")
    words = [*words, "hydra.mode=MULTIRUN"]
    overrides = composer.parse(words, sweep=True)
    master = composer.load(words, RunMode.MULTIRUN)
    sweeper = master.hydra.sweeper._target_
    try:
        root = Path(str(master.hydra.sweep.dir))
    except Exception as error:  # an interpolation that leads nowhere
        raise explain(error) from error
    own = sweeper in (BasicSweeperConf._target_, SearchConfig._target_)
    if own:
        overrides = [*params(composer, master), *overrides]
    for override in overrides:
        key = override.key_or_group
        if override.is_sweep_override() and key.startswith("sweep."):
            raise UserError(f"{key} is one setting for the whole sweep: give it one value")
    if not own:
        plugin = SweeperPlugin(composer, master, root)
        sweep = Sweep(composer, master, root, None, plugin.settings, plugin.tell)
        return sweep.finish(lambda: plugin.run(words, sweep))
    if sweeper == SearchConfig._target_:
        with closing(Search(composer, master, overrides, root)) as search:
            sweep = Sweep(composer, master, root, search.total, search.sweep_settings, search.tell)
            return sweep.run(search.batches(sweep))
    runs = plan(composer, overrides, root)
    settings = runs[0].config.sweep
    if not settings.rerun:
        find_earlier(runs, root)
    return Sweep(composer, master, root, len(runs), settings).run([runs])


class Sweep:
    """Launches the runs and keeps the account of them.

    Args:
        root: hydra.sweep.dir, the folder that takes the place of outputs/.
        total: how many runs there are in all, if that is known.
        tell: is called with each run that was launched and how it ended.
    """

    def __init__(
        self,
        composer: Composer,
        master: DictConfig,
        root: Path,
        total: int | None,
        settings: SweepConfig,
        tell: Callable[[Run, Result], None] = lambda run, result: None,
    ) -> None:
        self.total, self.fail_fast, self.tell = total, settings.fail_fast, tell
        self.results: list[Result] = []
        self.folder = root / "sweeps" / run_name()
        self.launcher = Launcher(composer, master, root, self.folder)

    def run(self, batches: Iterable[Sequence[Run]]) -> int:
        """All of them, batch by batch; returns the exit code."""

        def launch_all() -> None:
            for runs in batches:
                self.launch(runs)
                if self.launcher.stop.asked():
                    break

        return self.finish(launch_all)

    def finish(self, launch_all: Callable[[], None]) -> int:
        """Shows the table once all runs have ended; returns the exit code, 1 if one failed."""
        try:
            launch_all()
        except KeyboardInterrupt as signal:
            print(f"{self.report()}\nthe same command goes on", flush=True)
            raise Ended(str(signal) or "SIGINT", said=True) from None
        except Exception:
            if self.results:
                print(self.report(), flush=True)
            raise
        print(self.report(), flush=True)
        return FAILED if any(r.state in ("failed", "killed") for r in self.results) else 0

    def launch(self, runs: Sequence[Run]) -> None:
        """Those that are not done, after a word on those that are."""
        todo = []
        for run in runs:
            if run.state not in ("done", "in use"):
                todo.append(run)
                continue
            if run.state == "done":
                self.ended_before(run)
                self.tell(run, self.results[-1])
            else:
                self.account(read_result(run.varied, run.folder, ended=False), f"{run.state}: ")
        if self.launcher.together and todo:
            self.launcher.share(len(todo))
            self.announce_together(todo)
            self.launcher.launch(todo, self.ended)
            return
        for run in todo:
            if self.launcher.stop.asked():
                break
            self.announce(run)
            try:
                self.launcher.launch([run], self.ended)
            except KeyboardInterrupt:
                if run.folder.is_dir():
                    self.account(read_result(run.varied, run.folder), "")
                raise

    def ended_before(self, run: Run) -> None:
        """Accounts for a run that an earlier command has ended."""
        result = read_result(run.varied, run.folder)
        self.account(result, f"{result.state} already{commit_note(result)}: ")

    def announce(self, run: Run) -> None:
        """That a run begins, in a folder of the time when it does (a search has just named its)."""
        how = "" if run.state is None else f", goes on ({run.state})"
        print(f"{self._place(len(self.results) + 1)} {label(run.varied)}{how}", flush=True)
        if run.state is None and self.launcher.watch is None:
            run.folder = run.folder.with_name(run_name())

    def announce_together(self, runs: Sequence[Run]) -> None:
        """That runs begin which are launched together; none has the terminal to itself."""
        launcher = self.launcher
        what = plural(len(runs), "run")
        if launcher.joblib:
            what += f", {min(launcher.width, len(runs))} at once"
        threads = {run.config.trainer.threads or launcher.threads for run in runs}
        if len(threads) == 1 and (each := threads.pop()) is not None:
            what += f", {plural(each, 'thread')} each"
        print(f"{what}; each has its own train.log", flush=True)

    def ended(self, run: Run, error: str | None) -> None:
        """Accounts for a run.

        Args:
            error: why it did not even begin, if so.
        """
        self.account(read_result(run.varied, run.folder, error), "")
        self.tell(run, self.results[-1])
        if self.fail_fast and self.results[-1].state == "failed":
            self.launcher.stop.ask("drain")

    def account(self, result: Result, how: str) -> None:
        self.results.append(result)
        place = self._place(len(self.results))
        print(f"{place} {result.label}: {how}{result.summary()}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.folder / "sweep.csv", self.results)

    def _place(self, number: int) -> str:
        return f"[{number}]" if self.total is None else f"[{number}/{self.total}]"

    def report(self) -> str:
        """The table of the runs that have ended, and where it is."""
        return f"\n{table(self.results)}\n{self.folder / 'sweep.csv'}"


def commit_note(result: Result) -> str:
    """Where a run was made by other code than today's."""
    then, now = result.status.get("git_commit"), git_state()["git_commit"]
    if not then or not now or then == now:
        return ""
    return f" at commit {str(then)[:7]}, the code is now at {now[:7]}"
