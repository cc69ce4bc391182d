"""`elstm-train -m hydra/sweeper=optuna`: random and Bayesian search over ranges, with pruning.

Optuna chooses the values and says which runs to prune; the rest is a sweep's. Hydra's own Optuna
sweeper wants Optuna below 3, and knows neither the types of the config nor how to go on.

The study is hydra.sweep.dir/studies/NAME/journal.log: Optuna's journal, JSON line by line, which
optuna-dashboard reads. It is named after the search, so that the same command goes on with it; runs
are found by their config, as in every sweep. A trial that was interrupted is taken up again.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from elstm.config.check import check_fields, show
from elstm.config.compose import Composer, plain
from elstm.config.schema import SearchConfig
from elstm.errors import UserError
from elstm.files.atomic import open_locked, writing
from elstm.sweeps.plan import Run, find_earlier, make_run
from elstm.sweeps.search_space import Range, Space
from elstm.sweeps.table import Result

if TYPE_CHECKING:
    import optuna

    from elstm.sweeps.sweep import Sweep

JOURNAL = "journal.log"


@dataclass(frozen=True)
class Pruning:
    """What a run's process needs to report to the study and to ask whether to go on.

    Attributes:
        trials: the trial's number, by the name of the run's folder.
    """

    journal: Path
    study: str
    settings: SearchConfig
    max_epochs: int
    trials: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, run_dir: Path) -> Callable[[int, float], bool]:
        """The function for elstm.training.run.run to call after each evaluation."""
        with quiet():
            study = open_study(self)
        storage, number = study._storage, self.trials[run_dir.name]
        trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)

        def prune(epoch: int, accuracy: float) -> bool:
            with quiet():
                # A run that was taken up again reports some epochs twice, to the same value.
                storage.set_trial_intermediate_value(trial_id, epoch, accuracy)
                return bool(study.pruner.prune(study, storage.get_trial(trial_id)))

        return prune


def open_study(pruning: Pruning, sampler: Any = None) -> optuna.Study:
    """The study in its journal, begun if there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    settings = pruning.settings
    pruner = {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(
            n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs
        ),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(
            min_resource=settings.warmup_epochs + 1, max_resource=pruning.max_epochs
        ),
    }[settings.pruner]()
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(pruning.journal))),
        study_name=pruning.study,
        sampler=sampler or optuna.samplers.RandomSampler(),
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's lines and warnings: the sweep has its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class Search:
    """The trials of a study, as batches of runs for a sweep to launch.

    Args:
        root: hydra.sweep.dir.

    Raises:
        UserError: a setting or a range is wrong, Optuna is missing, or the study is in use.
    """

    def __init__(
        self, composer: Composer, master: DictConfig, overrides: Sequence[Override], root: Path
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna needs a package: pip install 'elstm[optuna]'"
            ) from error
        self.optuna, self.root = optuna, root
        self.settings = settings = read_settings(master)
        self.space = Space(composer, overrides)
        self.sweep_settings = self.space.first.sweep
        if self.sweep_settings.rerun:
            raise UserError("sweep.rerun: a study has each trial once; give it a new study_name")
        self.distributions = {
            **{key: self._numbers(r) for key, r in self.space.ranges.items()},
            **{
                key: optuna.distributions.CategoricalDistribution(values)
                for key, values in self.space.choices.items()
            },
        }
        print_of = hashlib.sha256(repr(self.space).encode()).hexdigest()[:12]
        name = settings.study_name or f"{self.space.first.data.name}-{print_of}"
        self.folder = root / "studies" / name
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._owner = open_locked(self.folder / "owner", self.folder)
        try:
            self._open(name, print_of)
        except BaseException:
            self.close()
            raise
        self.total = max(settings.n_trials, len(self.earlier))
        self.trials: dict[Run, int] = {}

    def _open(self, name: str, print_of: str) -> None:
        """The study and what it holds already.

        Raises:
            UserError: it is that of another search.
        """
        journal = (self.folder / JOURNAL).absolute()
        mend(journal)
        self.pruning = Pruning(journal, name, self.settings, self.space.first.trainer.max_epochs)
        with quiet():
            self.study = open_study(self.pruning)
            begun = self.study.user_attrs.get("search")
            if begun is None:
                self.study.set_user_attr("search", print_of)
            elif begun != print_of:
                raise UserError(
                    f"hydra.sweeper.study_name={name}: that study has other ranges or another "
                    "config; take another name, or none"
                )
            self.study.sampler = self._sampler()
            self.earlier = self._earlier()

    def close(self) -> None:
        self._owner.close()

    def _earlier(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that there are, less those that a kill left half chosen."""
        trials = self.study.get_trials(deepcopy=False)
        whole = [t for t in trials if t.params.keys() == self.distributions.keys()]
        for trial in trials:
            if trial not in whole and not trial.state.is_finished():
                self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
        return whole

    def _numbers(self, r: Range) -> Any:
        kinds = self.optuna.distributions
        if r.whole:
            return kinds.IntDistribution(int(r.low), int(r.high), r.log, int(r.step or 1))
        return kinds.FloatDistribution(r.low, r.high, log=r.log, step=r.step)

    def _sampler(self) -> Any:
        samplers, count = self.optuna.samplers, len(self.study.get_trials(deepcopy=False))
        # A study that goes on draws other numbers than it did when it began.
        seed = (self.settings.seed + 1_000_003 * count) % 2**32
        if self.settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.settings.sampler == "gp":
            return samplers.GPSampler(seed=seed)
        # constant_liar: of trials that are launched together none is chosen like another.
        return samplers.TPESampler(seed=seed, constant_liar=True)

    def batches(self, sweep: Sweep) -> Iterator[list[Run]]:
        """Trials to launch together: first those that were interrupted, then new ones.

        Trials that ended before are accounted for.
        """
        waiting = []
        for trial in self.earlier:
            run = self._run(trial.number, trial.params)
            if trial.state.is_finished():
                sweep.ended_before(run)
            else:
                waiting.append(run)
        width, new = self.settings.n_jobs or sweep.launcher.width, self.total - len(self.earlier)
        while waiting or new:
            batch, waiting = waiting[:width], waiting[width:]
            while len(batch) < width and new:
                batch.append(self._ask())
                new -= 1
            # The folders get their final names here, so that the runs know which trial they are.
            sweep.launcher.watch = replace(
                self.pruning, trials={run.folder.name: self.trials[run] for run in batch}
            )
            yield batch

    def _ask(self) -> Run:
        with quiet():
            trial = self.study.ask(self.distributions)
        return self._run(trial.number, trial.params)

    def _run(self, number: int, params: Mapping[str, Any]) -> Run:
        varied = self.space.words(params)
        words = self.space.all_words(varied)
        run = make_run(words, varied, self.space.config(varied), self.root)
        find_earlier([run], self.root)
        self.trials[run] = number
        return run

    def tell(self, run: Run, result: Result) -> None:
        """How a trial ended; one that was interrupted is left for the next time."""
        states, number = self.optuna.trial.TrialState, self.trials[run]
        with quiet():
            if self.study.trials[number].state.is_finished():
                return
            best = result.number("best_val_accuracy")
            if result.state == "done" and best is not None:
                self.study.tell(number, best)
            elif result.state in ("done", "failed"):
                self.study.tell(number, state=states.FAIL)
            elif result.state == "pruned":
                self.study.tell(number, state=states.PRUNED)


def read_settings(master: DictConfig) -> SearchConfig:
    """hydra.sweeper, checked.

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


def mend(journal: Path) -> None:
    """Cuts off a last line that a kill or a full disk has left half written."""
    if not journal.is_file():
        return
    with writing(journal), journal.open("rb+") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
