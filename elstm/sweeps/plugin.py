"""Runs `elstm-train -m hydra/sweeper=NAME` with sweepers from other Hydra plugins.

Finished runs are skipped, and every run is listed in sweep.csv, as with the sweepers of elstm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from elstm.config.compose import Composer
from elstm.config.messages import explain
from elstm.errors import UserError
from elstm.sweeps.job import train_job
from elstm.sweeps.plan import Job, Train


class PluginSweeper:
    """Requests the runs that a plugin chooses from the sweep.

    Raises:
        UserError: one of the runs is wrong, or the plugin failed.
    """

    def __init__(
        self, composer: Composer, master: DictConfig, overrides: Sequence[Override], root: Path
    ) -> None:
        self.composer, self.master = composer, master

    def sweep(self, train: Train, width: int) -> None:
        plugins, context = Plugins.instance(), self.composer.hydra_context()
        launcher = _LauncherForPlugin(train)
        # The plugin requests the launcher of the config from Hydra, and receives this one.
        vars(plugins)["instantiate_launcher"] = lambda **_: launcher
        try:
            plugin = plugins.instantiate_sweeper(
                hydra_context=context, task_function=train_job, config=self.master
            )
            plugin.sweep(arguments=list(self.master.hydra.overrides.task))
        except UserError:
            raise
        except Exception as error:
            raise explain(error) from error
        finally:
            del vars(plugins)["instantiate_launcher"]


class _LauncherForPlugin(Launcher):
    """Trains through the sweep, whose launcher is the one that hydra/launcher names."""

    def __init__(self, train: Train) -> None:
        self._train = train

    def setup(self, **_: Any) -> None:
        """Does nothing, because the sweep has set up its launcher."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Returns best validation accuracies, NaN for runs that did not finish."""
        results = self._train([Job(list(overrides)) for overrides in job_overrides])
        values = [r.number("best_val_accuracy") if r.state == "done" else None for r in results]
        jobs = [JobReturn(overrides=each, status=JobStatus.COMPLETED) for each in job_overrides]
        for job, value in zip(jobs, values, strict=True):
            job.return_value = math.nan if value is None else value
        return jobs
