"""`elstm-train -m hydra/sweeper=NAME` where a Hydra plugin brings the sweeper: it chooses the runs.

A sweeper asks Hydra for a launcher and gives it overrides, batch by batch. Here it gets one that
hands them to a sweep: they are checked, found again where they are done, launched by whatever
hydra/launcher says and accounted for as the runs of every sweep are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from elstm.config.compose import CONFIG_NAME, Composer, plain
from elstm.config.messages import explain
from elstm.config.schema import SweepConfig
from elstm.errors import UserError
from elstm.sweeps.job import train_job
from elstm.sweeps.plan import Run, find_earlier, identity, make_run
from elstm.sweeps.table import Result

if TYPE_CHECKING:
    from elstm.sweeps.sweep import Sweep


class Stopped(BaseException):
    """Ends the plugin's sweep; no Exception, which it may take for a run's."""


class SweeperPlugin(Launcher):
    """The launcher that a plugin's sweeper gets.

    Args:
        root: hydra.sweep.dir.
    """

    def __init__(self, composer: Composer, master: DictConfig, root: Path) -> None:
        self.composer, self.root = composer, root
        self.fixed = set(master.hydra.overrides.task)
        self.settings = SweepConfig(**plain(master.sweep))
        self.configs = composer.many()
        self.accuracies: dict[Run, float] = {}

    def run(self, words: Sequence[str], sweep: Sweep) -> None:
        """Lets the plugin choose runs until it has enough, and `sweep` launch them.

        Raises:
            UserError: one of them is wrong, or the plugin has failed.
        """
        self.sweep = sweep
        try:
            with _in_place_of_launchers(self):
                self.composer.hydra().multirun(CONFIG_NAME, train_job, list(words))
        except Stopped:
            return
        except UserError:
            raise
        except Exception as error:
            raise explain(error) from error

    def setup(self, **_: Any) -> None:
        """Hydra's; the sweep has set up the launcher that runs them."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Hydra's: trains a batch; returns best validation accuracies, NaN where a run failed."""
        batch = [self._run(words) for words in job_overrides]
        runs = {identity(run.config): run for run in batch}  # of two that are equal one
        if not self.settings.rerun:
            find_earlier(list(runs.values()), self.root)
        self.sweep.launch(list(runs.values()))
        if self.sweep.launcher.stop.asked():
            raise Stopped
        return [
            JobReturn(
                overrides=words,
                status=JobStatus.COMPLETED,
                _return_value=self.accuracies.get(runs[identity(run.config)], math.nan),
            )
            for words, run in zip(job_overrides, batch, strict=True)
        ]

    def _run(self, words: Sequence[str]) -> Run:
        varied = [word.partition("=") for word in words if word not in self.fixed]
        return make_run(
            words, {key: value for key, _, value in varied}, self.configs(words), self.root
        )

    def tell(self, run: Run, result: Result) -> None:
        """How a run ended."""
        best = result.number("best_val_accuracy")
        if result.state == "done" and best is not None:
            self.accuracies[run] = best


@contextmanager
def _in_place_of_launchers(launcher: Launcher) -> Iterator[None]:
    """While it is entered, a sweeper that asks Hydra for its launcher gets this one."""
    methods = vars(Plugins.instance())
    methods["instantiate_launcher"] = lambda **_: launcher
    try:
        yield
    finally:
        del methods["instantiate_launcher"]
