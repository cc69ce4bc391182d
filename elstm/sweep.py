"""`elstm-train -m`: all runs of a sweep, one line for each as it ends, and the table of all.

What Hydra's own sweeper lacks: every run is checked before the first begins; a run that fails does
not stop the others; the same command again leaves what is done alone and goes on with the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from elstm.cli import FAILED, Ended, summary
from elstm.compose import CONFIG_NAME, Composer, plain
from elstm.config import Config, load_run_config
from elstm.errors import UserError
from elstm.explain import explain
from elstm.job import processes, train_job
from elstm.schema import run_name
from elstm.status import git_state, read_status
from elstm.sweep_table import Result, label, read_result, table, write_csv
from elstm.validation import show

MAX_RUNS = 10_000
# Runs that differ in nothing but these are one.
IGNORED = ("data.root", "trainer.progress", "trainer.resume", "trainer.threads")


@dataclass
class Run:
    """One run of a sweep.

    Attributes:
        words: its overrides.
        varied: those of them that the sweep varies.
        folder: where it trains, under the sweep's root.
        state: None where the run is new; otherwise of the earlier run with this config.
    """

    words: list[str]
    varied: dict[str, str]
    config: Config
    folder: Path
    state: str | None = None


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


# --- before the first run


def params(composer: Composer, master: DictConfig) -> list[Override]:
    """hydra.sweeper.params: a sweep that a config file holds."""
    given = plain(master.hydra.sweeper).get("params") or {}
    return composer.parse([f"{key}={value}" for key, value in given.items()], sweep=True)


def plan(composer: Composer, overrides: Sequence[Override], root: Path) -> list[Run]:
    """All combinations in order, each composed and checked; of two that are equal one.

    Raises:
        UserError: a combination is wrong, or there are none or too many.
    """
    given = {o.get_key_element(): o for o in overrides if not o.is_hydra_override()}
    lists = {key: _words(override) for key, override in given.items()}
    count = math.prod(map(len, lists.values()))
    if count > MAX_RUNS:
        raise UserError(f"a sweep of {count:,} runs: at most {MAX_RUNS:,} are possible")
    varied = [key for key, override in given.items() if override.is_sweep_override()]
    for key in varied:
        if key.startswith("sweep."):
            raise UserError(f"{key} is one setting for the whole sweep: give it one value")
    runs: dict[str, Run] = {}
    configs = composer.many()
    for words in itertools.product(*lists.values()):
        config = configs(words)
        of_key = dict(zip(lists, words, strict=True))
        folder = root / config.data.name / config.model.name / run_name()
        run = Run(
            [word for key, word in of_key.items() if not key.startswith("sweep.")],
            {key: of_key[key].partition("=")[2] for key in varied},
            config,
            folder,
        )
        runs.setdefault(identity(config), run)
    return list(runs.values())


def _words(override: Override) -> list[str]:
    """KEY=VALUE for each value of an override."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise UserError(f"{show(override.input_line)}: an interval has no end of values; list some")
    try:
        if isinstance(override._value, RangeSweep):  # counted first: it may have a billion values
            r = override._value
            count = (float(r.stop or 0) - float(r.start or 0)) / float(r.step)
            if not count <= MAX_RUNS:
                raise UserError(f"{show(override.input_line)}: more than {MAX_RUNS:,} values")
        words = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except (ArithmeticError, ValueError, TypeError) as error:
        raise UserError(f"{show(override.input_line)}: {show(error)}") from error
    if not words:
        raise UserError(f"{show(override.input_line)}: holds no values")
    return words


def identity(config: Config) -> str:
    """What makes two runs the same: all settings that bear on the result."""
    tree = asdict(config)
    del tree["sweep"]
    for key in IGNORED:
        group, _, name = key.partition(".")
        del tree[group][name]
    return repr(sorted((group, repr(values)) for group, values in tree.items()))


def find_earlier(runs: Sequence[Run], root: Path) -> None:
    """Points each run to the folder of an earlier one with its config: a done one if there is."""
    known: dict[Path, dict[str, tuple[Path, str]]] = {}
    for run in runs:
        group = run.folder.parent
        if group not in known:
            known[group] = _earlier(group)
        found = known[group].get(identity(run.config))
        if found:
            run.folder, run.state = found


def _earlier(group: Path) -> dict[str, tuple[Path, str]]:
    """The runs in outputs/DATA/MODEL: of each config the folder and the state of the latest."""
    latest: dict[str, tuple[Path, str]] = {}
    for folder in sorted(group.iterdir()) if group.is_dir() else ():
        try:
            key = identity(load_run_config(folder))
        except UserError:  # no run, or one from another version
            continue
        state = str((read_status(folder) or {}).get("state", "killed"))
        if latest.get(key, (folder, ""))[1] != "done":
            latest[key] = (folder, state)
    return latest


# --- the runs


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
        todo = [run for run in self.runs if run.state != "done"]
        for run in self.runs:
            if run.state == "done":
                result = read_result(run.varied, run.folder)
                self.account(result, f"done already{commit_note(result)}: ")
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
