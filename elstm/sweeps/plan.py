"""The runs of a sweep before the first begins: all combinations, checked, and what is done."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig

from elstm.config.check import load_run_config, show
from elstm.config.compose import Composer, plain, without_no_option
from elstm.config.hydra_nodes import run_name
from elstm.config.schema import Config, settings_without_effect
from elstm.errors import UserError
from elstm.files.atomic import open_locked
from elstm.records.status import read_status

MAX_RUNS = 10_000


@dataclass(eq=False)
class Run:
    """One run of a sweep.

    Attributes:
        words: its overrides.
        varied: those of them that the sweep varies.
        folder: where it trains, under the sweep's root.
        state: None where the run is new; otherwise of the earlier run with this config: done,
            failed, interrupted, killed, or in use by another process.
    """

    words: list[str]
    varied: dict[str, str]
    config: Config
    folder: Path
    state: str | None = None


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
    lists = {key: words_of(override) for key, override in given.items()}
    count = math.prod(map(len, lists.values()))
    if count > MAX_RUNS:
        raise UserError(f"a sweep of {count:,} runs: at most {MAX_RUNS:,} are possible")
    varied = [key for key, override in given.items() if override.is_sweep_override()]
    runs: dict[str, Run] = {}
    configs = composer.many()
    for words in itertools.product(*lists.values()):
        config = configs(words)
        of_key = dict(zip(lists, words, strict=True))
        run = make_run(words, {key: of_key[key].partition("=")[2] for key in varied}, config, root)
        runs.setdefault(identity(config), run)
    return list(runs.values())


def make_run(words: Sequence[str], varied: dict[str, str], config: Config, root: Path) -> Run:
    """A new run under `root`; what is said of the sweep is no word of its."""
    folder = root / config.data.name / config.model.name / run_name()
    own = [word for word in words if not word.lstrip("+").startswith("sweep.")]
    return Run(without_no_option(own), varied, config, folder)


def words_of(override: Override) -> list[str]:
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
    for key in settings_without_effect():
        group, _, name = key.rpartition(".")
        del (tree[group] if group else tree)[name]
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
            if run.state == "running":
                run.state = "in use" if in_use(run.folder) else "killed"


def _earlier(group: Path) -> dict[str, tuple[Path, str]]:
    """The runs in outputs/DATA/MODEL: of each config the folder and the state of the latest."""
    latest: dict[str, tuple[Path, str]] = {}
    for folder in sorted(group.iterdir()) if group.is_dir() else ():
        if folder.is_symlink():  # may lead anywhere
            continue
        try:
            key = _identity_in(folder.absolute())
        except UserError:  # no run, or one from another version
            continue
        state = str((read_status(folder) or {}).get("state", "killed"))
        if latest.get(key, (folder, ""))[1] != "done":
            latest[key] = (folder, state)
    return latest


@cache
def _identity_in(folder: Path) -> str:
    """Read once: a run's config stays, and a search looks for earlier runs at every trial."""
    return identity(load_run_config(folder))


def in_use(folder: Path) -> bool:
    """Whether another process is training there, which holds a lock on its metrics."""
    path = folder / "metrics.csv"
    if path.is_symlink() or not path.is_file():
        return False
    try:
        open_locked(path, folder).close()
    except UserError:
        return True
    return False
