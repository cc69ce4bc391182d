"""Runs `elstm-train -m hydra/sweeper=optuna`, a random or Bayesian search with pruning.

Optuna chooses the values and which runs to prune; a sweep does the rest. Hydra's own Optuna sweeper
needs Optuna below 3, knows no types of the config, and cannot resume.

The study is hydra.sweep.dir/studies/NAME/journal.log, Optuna's journal, which optuna-dashboard
reads. It is named after the search, so that the same command resumes it.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from elstm.config.compose import Composer, plain
from elstm.config.schema import Config, SearchConfig
from elstm.config.values import check_fields
from elstm.errors import UserError, show
from elstm.files.atomic import open_locked, refuse_links, writing
from elstm.sweeps.plan import Job, Train
from elstm.sweeps.search_space import Space
from elstm.sweeps.table import JobResult

if TYPE_CHECKING:
    import optuna  # an optional package, and slow to import

JOURNAL = "journal.log"


@dataclass
class StudyFile:
    """Opens a study in its journal; it can be pickled until then."""

    journal: Path
    name: str
    settings: SearchConfig
    max_epochs: int

    @cached_property
    def study(self) -> optuna.Study:
        """Opens the study, or creates it if there is none."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", module="optuna")  # experimental parts
        self.storage = JournalStorage(JournalFileBackend(str(self.journal)))
        return optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            sampler=optuna.samplers.RandomSampler(),
            pruner=self._pruner(),
            direction="maximize",
            load_if_exists=True,
        )

    def _pruner(self) -> optuna.pruners.BasePruner:
        from optuna import pruners

        settings = self.settings
        if settings.pruner == "median":
            # Optuna counts steps from 0, and epochs are reported from 1 on.
            return pruners.MedianPruner(settings.startup_trials, settings.warmup_epochs + 1)
        if settings.pruner == "hyperband":
            return pruners.HyperbandPruner(settings.warmup_epochs + 1, self.max_epochs)
        return pruners.NopPruner()

    def sampler(self, trials: int) -> optuna.samplers.BaseSampler:
        """Makes the sampler of a study with `trials` trials; a resumed study draws new numbers."""
        from optuna import samplers

        seed = (self.settings.seed + 1_000_003 * trials) % 2**32
        if self.settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.settings.sampler == "gp":
            return samplers.GPSampler(seed=seed)
        # With constant_liar, trials that are launched together differ from each other.
        return samplers.TPESampler(seed=seed, constant_liar=True)

    def trial(self, number: int) -> optuna.Trial:
        from optuna import Trial

        study = self.study  # opens the storage
        study_id = self.storage.get_study_id_from_name(self.name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return Trial(study, trial_id)


@dataclass
class Pruning:
    """Reports the evaluations of a run to its study; it is called in the run's process."""

    file: StudyFile
    number: int

    def __call__(self, epoch: int, accuracy: float) -> bool:
        """Returns whether the study prunes the run."""
        trial = self.file.trial(self.number)
        trial.report(accuracy, epoch)
        return trial.should_prune()


class Search:
    """Requests the trials of a study.

    Args:
        root: hydra.sweep.dir.

    Raises:
        UserError: a setting or a range is wrong, Optuna is missing, or the study is locked.
    """

    def __init__(
        self, composer: Composer, master: DictConfig, overrides: Sequence[Override], root: Path
    ) -> None:
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna needs a package: pip install 'elstm[optuna]'"
            ) from error
        self.settings = read_settings(master)
        self.space = Space(composer, overrides)
        if self.space.first.sweep.rerun:
            raise UserError("sweep.rerun: a study has each trial once; set a new study_name")
        if self.space.undrawn is not None and "val" not in _splits(self.space.undrawn):
            raise UserError(
                "hydra/sweeper=optuna compares validation accuracies, and the files have no "
                "validation split: data.val_fraction has to be above 0"
            )
        self.fingerprint = hashlib.sha256(repr(self.space).encode()).hexdigest()[:12]
        name = self.settings.study_name or f"{self.space.first.data.name}-{self.fingerprint}"
        journal = (root / "studies" / name / JOURNAL).absolute()
        max_epochs = self.space.first.trainer.max_epochs
        self.file = StudyFile(journal, name, self.settings, max_epochs)

    def sweep(self, train: Train, width: int) -> None:
        """Lists the trials that have ended, resumes interrupted ones, and requests new ones."""
        with self._opened() as (study, earlier):
            ended = [t for t in earlier if t.state.is_finished()]
            waiting = [self._job(t) for t in earlier if not t.state.is_finished()]
            new = max(self.settings.n_trials - len(earlier), 0)
            if ended:
                jobs = [Job(self._overrides(t.params), ended=_status_of(t)) for t in ended]
                train(jobs, following=len(waiting) + new)
            width = self.settings.n_jobs or width
            while waiting or new:
                batch, waiting = waiting[:width], waiting[width:]
                while len(batch) < width and new:
                    batch.append(self._job(study.ask(self.space.distributions)))
                    new -= 1
                train(batch, following=len(waiting) + new)

    @contextmanager
    def _opened(self) -> Iterator[tuple[optuna.Study, list[optuna.trial.FrozenTrial]]]:
        """Locks the study and yields it with its complete trials.

        Raises:
            UserError: another process has locked it, it is damaged, or another search has it.
        """
        journal = self.file.journal
        owner = journal.with_name("owner")
        refuse_links(journal.parent.parent, journal.parent, journal, owner)
        with writing(journal.parent):
            journal.parent.mkdir(parents=True, exist_ok=True)
        with open_locked(owner, journal.parent):
            repair(journal)
            try:
                study = self.file.study
                trials = study.get_trials(deepcopy=False)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{journal} is damaged; move it away, or set hydra.sweeper.study_name to "
                    "another name (the runs stay)"
                ) from error
            known = study.user_attrs.get("search", self.fingerprint)
            if known != self.fingerprint:
                raise UserError(
                    f"hydra.sweeper.study_name={self.file.name}: that study has other ranges or "
                    "another config; choose another name, or none"
                )
            study.set_user_attr("search", self.fingerprint)
            study.sampler = self.file.sampler(len(trials))
            complete = [t for t in trials if t.params.keys() == self.space.distributions.keys()]
            for trial in trials:  # a kill can leave values of a trial unchosen
                if trial not in complete and not trial.state.is_finished():
                    study.tell(trial.number, state=_states().FAIL)
            yield study, complete

    def _overrides(self, params: Mapping[str, Any]) -> list[str]:
        return self.space.overrides(self.space.texts(params))

    def _job(self, trial: optuna.trial.BaseTrial) -> Job:
        return Job(
            self._overrides(trial.params),
            on_evaluation=Pruning(replace(self.file), trial.number),  # of an unopened copy
            on_end=partial(self._add_result, trial.number),
        )

    def _add_result(self, number: int, result: JobResult) -> None:
        """Ends a trial, unless it was interrupted and the next command resumes it."""
        study, states = self.file.study, _states()
        best = result.number("best_val_accuracy")
        if study.trials[number].state.is_finished():
            return
        if result.state == "done" and best is not None:
            study.tell(number, best)
        elif result.state in ("done", "failed"):
            study.tell(number, state=states.FAIL)
        elif result.state == "pruned":
            study.tell(number, state=states.PRUNED)


def _splits(config: Config) -> Collection[str]:
    """Returns the splits that the files of user data have."""
    from elstm.data.load import read_user_data  # torch: seconds

    return read_user_data(config.data)


def _status_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """Returns the fields of status.json that a study knows of a trial that has ended."""
    state = {"COMPLETE": "done", "PRUNED": "pruned"}.get(trial.state.name, "failed")
    return {"state": state, "best_val_accuracy": trial.value if state == "done" else None}


def _states() -> type[optuna.trial.TrialState]:
    from optuna.trial import TrialState

    return TrialState


def read_settings(master: DictConfig) -> SearchConfig:
    """Reads and checks hydra.sweeper.

    Raises:
        UserError: naming the setting.
    """
    given = plain(master.hydra.sweeper)
    given.pop("params", None)
    settings = SearchConfig(**given)
    check_fields(settings, "hydra.sweeper")
    name = settings.study_name
    if name is not None and not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise UserError(
            f"hydra.sweeper.study_name={show(name)}: has to be letters, digits, '-', '_' and '.'"
        )
    return settings


def repair(journal: Path) -> None:
    """Cuts off a last line that a kill or a full disk has left incomplete."""
    if not journal.is_file():
        return
    with writing(journal), journal.open("rb+") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
