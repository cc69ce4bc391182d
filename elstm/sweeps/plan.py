"""Plans a sweep: lists its runs, and finds those that an earlier command has finished."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig

from elstm.config.changes import changes
from elstm.config.check import config_from
from elstm.config.compose import Composer, name_override
from elstm.config.data_options import UserDataConfig
from elstm.config.identity import identity
from elstm.config.overrides import without_no_option
from elstm.config.run_config import load_run_config
from elstm.config.run_folder import run_changes, run_name
from elstm.config.schema import SAME_LAYER, Config, settings_without_effect
from elstm.errors import UserError, show
from elstm.files.bounded import Damaged
from elstm.files.claims import Claims
from elstm.records.archive import ArchivedRun, finished_runs
from elstm.records.status import is_locked, read_status
from elstm.sweeps.fingerprints import Fingerprints, source_in
from elstm.sweeps.job import OnEvaluation
from elstm.sweeps.table import JobResult

MAX_RUNS = 10_000


@dataclass(frozen=True)
class Job:
    """Describes a run that a sweeper requests.

    Attributes:
        overrides: KEY=VALUE, each with a single value.
        on_evaluation: a function to call after each evaluation in the run's process; it may end the
            run.
        on_end: a function to call with the run's result in the sweep's process.
        ended: the fields of status.json that the sweeper knows of a run that an earlier command
            ended, which is then listed but not trained. They count where its folder is gone.
    """

    overrides: Sequence[str]
    on_evaluation: OnEvaluation | None = None
    on_end: Callable[[JobResult], None] = lambda result: None
    ended: Mapping[str, Any] | None = None


class Train(Protocol):
    """Trains jobs together and returns their results in the same order.

    Every job is composed and checked before the first run starts. `following` is the number of jobs
    that later calls will request, or None if the sweeper does not know it.
    """

    def __call__(self, jobs: Sequence[Job], *, following: int | None = None) -> list[JobResult]: ...


class Sweeper(Protocol):
    """Chooses the runs of a sweep: `train` launches them, `width` of them at once."""

    def sweep(self, train: Train, width: int) -> None: ...


class Grid:
    """Requests all combinations of the values on the command line.

    Raises:
        UserError: an override has no finite list of values, or there are too many combinations.
    """

    def __init__(
        self, composer: Composer, master: DictConfig, overrides: Sequence[Override], root: Path
    ) -> None:
        lists = [
            [f"{o.get_key_element()}={value}" for value in values_of(o)]
            for o in last_ones(overrides).values()
        ]
        count = math.prod(map(len, lists))
        if count > MAX_RUNS:
            raise UserError(f"a sweep of {count:,} runs: at most {MAX_RUNS:,} are possible")
        self.jobs = [Job(combination) for combination in itertools.product(*lists)]

    def sweep(self, train: Train, width: int) -> None:
        train(self.jobs, following=0)


def last_ones(overrides: Sequence[Override]) -> dict[str, Override]:
    """Returns the override that counts for each key: the last one, with or without + signs.

    Settings of Hydra itself are left out. A mapping, as model={hidden_size: 64}, counts for the
    keys that it holds.
    """
    found: dict[str, Override] = {}
    for override in overrides:
        if override.is_hydra_override():
            continue
        key, value = override.key_or_group, override.value()
        for name in _names_in(value, key):
            found.pop(name, None)
        found[key] = override
    return found


def _names_in(value: Any, key: str) -> Iterator[str]:
    """Yields the keys below `key` that a mapping sets."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield f"{key}.{name}"
        yield from _names_in(inner, f"{key}.{name}")


def values_of(override: Override) -> list[str]:
    """Lists the values of an override as text."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    line, value = show(override.input_line), override.value()
    if not override.is_discrete_sweep():
        raise UserError(
            f"{line}: an interval has infinitely many values: list some, or add "
            "hydra/sweeper=optuna"
        )
    try:
        if isinstance(value, RangeSweep):  # it may have a billion values, so they are counted first
            count = (float(value.stop or 0) - float(value.start or 0)) / float(value.step)
            if not count <= MAX_RUNS:
                raise UserError(f"{line}: more than {MAX_RUNS:,} values")
        values = list(override.sweep_string_iterator())
    except (ArithmeticError, ValueError, TypeError) as error:
        raise UserError(f"{line}: {show(error)}") from error
    if not values:
        raise UserError(f"{line}: holds no values")
    return values


@dataclass(eq=False)
class PlannedRun:
    """Holds one run of a sweep.

    Attributes:
        overrides: the overrides that Hydra composes.
        varied: the values of the keys that the sweep varies.
        identity: a text that is the same for all runs with the same result.
        folder: its run folder, under the sweep's root.
        state: None for a new run; else that of the earlier run in `folder`: done, failed,
            interrupted, pruned, killed, or locked by another process.
        archived: the earlier run if it is in the archive of the study and has no folder any more.
    """

    job: Job
    overrides: list[str]
    varied: dict[str, str]
    config: Config
    identity: str
    folder: Path
    state: str | None = None
    archived: ArchivedRun | None = None


class Plan:
    """Turns jobs into runs, and finds the runs of earlier commands and of other sweeps.

    Args:
        overrides: of the command line; those with a single value are fixed for all runs.
        root: hydra.sweep.dir, which takes the place of outputs/.

    Raises:
        UserError: `root` holds an archive that cannot be read.
    """

    def __init__(self, composer: Composer, overrides: Sequence[Override], root: Path) -> None:
        self.root = root
        single = [o for o in overrides if not o.is_sweep_override()]
        self._fixed = {f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in single}
        self._fixed |= {o.input_line or "" for o in single}
        self._config_of = composer.many()
        self._claims = Claims(root / "sweeps" / ".claims")
        self._seen: dict[Path, str | None] = {}  # the identity of each run folder, read once
        self._folders: defaultdict[str, list[Path]] = defaultdict(list)
        self._archived = _archived_runs(root)
        self._fingerprints = Fingerprints()

    def run(self, job: Job) -> PlannedRun:
        """Composes and checks a job. Raises UserError if it is wrong."""
        config = self._config_of(job.overrides)
        varied = [each.partition("=") for each in job.overrides if each not in self._fixed]
        own = [each for each in job.overrides if not each.lstrip("+").startswith("sweep.")]
        own = without_no_option(own)
        group = self.root / config.data.name / config.model.name
        folder = group / run_changes(own, config.seed) / run_name()
        if isinstance(config.data, UserDataConfig):
            own.append(name_override(config.data))
        return PlannedRun(
            job,
            own,
            {key: value for key, _, value in varied},
            config,
            identity(config, self._fingerprints.of(config), self._fingerprints.of_source(config)),
            folder,
        )

    def find_earlier(self, run: PlannedRun) -> None:
        """Points a run that is about to start to an earlier one, a finished one if there is one.

        The run is claimed until `release`, so that of several sweeps only one trains it.
        """
        if run.config.sweep.rerun:
            return
        claimed = self._claims.claim(run.identity)
        earlier = [
            (_state(folder), folder)
            for folder in self._earlier(run)
            if folder.is_dir() and not self._has_other_images(run, read_status(folder) or {})
        ]
        own_group = self.root / run.config.data.name / run.config.model.name
        own = [each for each in earlier if each[1].is_relative_to(own_group)]
        for found in (
            own,
            *([e for e in earlier if e[0] == state] for state in ("locked", "done")),
        ):
            if found:
                run.state, run.folder = found[-1]
        archived = self._archived.get(run.identity)
        if archived is not None and self._has_other_images(run, archived.fields):
            archived = None
        if archived is not None and run.state != "done":
            run.state, run.folder, run.archived = "done", archived.folder, archived
        if not claimed and run.state != "done":
            run.state = "locked"

    def why_again(self, run: PlannedRun) -> str | None:
        """Returns why a finished run of the same overrides is not used; None if there is none.

        Its config differs where another version of this package had other defaults.
        """
        if run.config.sweep.rerun:
            return None
        for folder in sorted(_folders_in(run.folder.parent), reverse=True):
            status = read_status(folder) or {}
            if status.get("state") != "done" or _is_another(status):
                continue
            with suppress(UserError):
                found = changes(load_run_config(folder.absolute()), run.config)
                left_out = settings_without_effect()
                values = [
                    f"{key} was {show(str(old))} and is {show(str(new))}"
                    for key, (old, new) in found.items()
                    if key not in left_out and key.partition(".")[0] not in left_out
                    if None not in (old, new)
                ]
                why = ", ".join(values) or "the data have changed since"
                return f"trains again, because {why} (compared with {folder.name})"
        return None

    def release(self, run: PlannedRun) -> None:
        """Lets other sweeps train the run."""
        self._claims.release(run.identity)

    def close(self) -> None:
        self._claims.close()

    def _has_other_images(self, run: PlannedRun, status: Mapping[str, Any]) -> bool:
        """Returns whether an earlier run read other files of the published set than are there now.

        Runs of earlier versions did not record what they read.
        """
        content = status.get("data_content")
        return content is not None and self._fingerprints.of_images(run.config) not in (
            None,
            content,
        )

    def _earlier(self, run: PlannedRun) -> list[Path]:
        """Returns the folders of runs with this config, oldest first."""
        model = run.config.model.name
        for name in (SAME_LAYER.get(model), model):
            group = self.root / run.config.data.name / str(name)
            for folder in _run_folders(group) if name else ():
                if self._seen.get(folder) is None:
                    self._seen[folder] = found = _identity_in(folder)
                    if found is not None:
                        self._folders[found].append(folder)
        return self._folders[run.identity]


def _run_folders(group: Path) -> list[Path]:
    """Returns the run folders below DATA/MODEL by their names, which start with the time.

    They lie in folders that name the runs' changes. Those of earlier versions lie directly in it.
    Links are not followed.
    """
    found: list[Path] = []
    for folder in _folders_in(group):
        found += [folder] if (folder / ".hydra").is_dir() else _folders_in(folder)
    return sorted(found, key=lambda folder: folder.name)


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [each for each in folder.iterdir() if not each.is_symlink() and each.is_dir()]


def _archived_runs(root: Path) -> dict[str, ArchivedRun]:
    """Returns the finished runs in the archive of a study by their identity."""
    try:
        found = finished_runs(root)
    except Damaged as error:
        raise UserError(
            f"{show(str(root))} holds an archive that cannot be read ({error}): repair it, or move "
            "it away to train its runs again"
        ) from None
    runs = {}
    for run in found:
        if _is_another(run.status()):
            continue
        # This version could not train a run with a setting that it lacks.
        with suppress(UserError):
            fingerprint = run.fields.get("data_fingerprint")
            config = config_from(run.config(), stored=True)
            data = None if fingerprint is None else str(fingerprint)
            runs[identity(config, data, source_in(run.status()))] = run
    return runs


def _identity_in(folder: Path) -> str | None:
    """Returns the identity of a run; None if it cannot be read here, or is none of a sweep's."""
    status = read_status(folder) or {}
    if _is_another(status):
        return None
    try:
        config = load_run_config(folder.absolute())
        return identity(config, status.get("data_fingerprint"), source_in(status))
    except UserError:
        return None


def _is_another(status: Mapping[str, Any]) -> bool:
    """Returns whether a run differs from one that a sweep trains with the same config.

    An extended run had another schedule than one that was planned with its settings. A step of a
    run in several processes has the batches of all of them; a sweep trains each run in one.
    """
    several = status.get("processes_changes") or status.get("processes") not in (None, 1)
    return bool(status.get("extensions") or several)


def _state(folder: Path) -> str:
    """Returns the state of an earlier run; a run that recorded no end was killed."""
    state = str((read_status(folder) or {}).get("state", "killed"))
    if state == "running":
        return "locked" if is_locked(folder) else "killed"
    return state
