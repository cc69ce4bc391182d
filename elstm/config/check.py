"""Checks of a config: one line that names the key, its value and what is allowed.

A config is a flat mapping here, "model.hidden_size" -> 128, whether Hydra composed it or a run
folder holds it, so that both pass the same door. Nothing in it is executed: interpolations are
resolved here, and they may name another key and no more.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from elstm.config import removed
from elstm.config.data_options import DATA_NAME, DATA_ROOT, OwnDataConfig
from elstm.config.fields import MISSING
from elstm.config.hints import near_keys, near_option, range_as_sweep, spelled
from elstm.config.schema import (
    SCHEMAS,
    BNLSTMConfig,
    Config,
    DigitsConfig,
    GRUConfig,
    LayerNormLSTMConfig,
    SGDConfig,
    SweepConfig,
    TrainerConfig,
)
from elstm.data.catalog import DATA_SETS, check_sizes, name_from_path
from elstm.errors import UserError
from elstm.files.bounded import Damaged, read_config

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}", re.ASCII)
_TYPES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_MAX_INT = 2**31 - 1


def config_from(flat: Mapping[str, Any], *, stored: bool = False) -> Config:
    """Builds the typed config of a flat mapping; keys that are missing keep their defaults.

    Args:
        stored: the mapping is the config of a run folder, which may have removed settings.

    Raises:
        UserError: an unknown key, a wrong value, or an interpolation that names no key.
    """
    rest = resolve(flat)
    if stored:
        rest = _without_removed(rest)
    groups: dict[str, Any] = {}
    for group in SCHEMAS:
        groups[group] = _take(_schema(group, option_name(rest, group)), group, rest)
    groups["trainer"] = _take(TrainerConfig, "trainer", rest)
    groups["sweep"] = _take(SweepConfig, "sweep", rest)
    config = Config(**groups, seed=rest.pop("seed", 0))
    for key in rest:
        raise unknown_key(key, keys_of(config))
    validate(config)
    return config


def _without_removed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Drops removed settings that have their defaults; raises UserError at another value."""
    for key, value in flat.items():
        if key in removed.REMOVED and not removed.is_default(key, value):
            raise UserError(
                f"{key}={show(value)}: this setting was removed, so this version of elstm cannot "
                "load the run; the last commit that supports it is "
                f"{removed.REMOVED[key][1]}: check out that commit"
            )
    dropped = {*removed.REMOVED}
    if flat.get("data.name") == "digits":
        dropped.add("data.root")  # earlier versions stored it for every data set
    return {key: value for key, value in flat.items() if key not in dropped}


def option_name(flat: Mapping[str, Any], group: str) -> Any:
    """Returns which option of a group a config has: its `name`, of own data its `source`."""
    name = flat.get(f"{group}.name", MISSING)
    return flat.get(f"{group}.source", name)


def _schema(group: str, name: Any) -> type[Any]:
    """The dataclass of a group's option."""
    if name == MISSING:
        raise UserError(f"{group}.name has to be given: choose with {group}=OPTION")
    schemas = SCHEMAS[group]
    if not isinstance(name, str) or name not in schemas:
        raise UserError(no_such(f"{group}.name={show(name)}", group, name, schemas))
    return schemas[name]


def _take(schema: type[Any], prefix: str, flat: dict[str, Any]) -> Any:
    """Moves the keys of `schema` out of `flat` into an instance of it."""
    values = {
        f.name: flat.pop(f"{prefix}.{f.name}")
        for f in fields(schema)
        if f"{prefix}.{f.name}" in flat
    }
    for name, value in values.items():
        if type(value) is int and float in _types(schema, name) and abs(value) < 2**53:
            values[name] = float(value)
    return schema(**values)


def resolve(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces ${other.key} by its value, and the default of data.root by the environment's."""

    def value_of(key: str, depth: int) -> Any:
        value = flat[key]
        if not isinstance(value, str) or "${" not in value:
            return value
        if key == "data.root" and value == DATA_ROOT:
            return os.environ.get("ELSTM_DATA") or "data"
        if key == "data.name" and value == DATA_NAME and "data.path" in flat:
            return name_from_path(value_of("data.path", depth + 1))
        given = f"{show_key(key)}={show(value)}"
        if "${" in _REFERENCE.sub("", value):
            raise UserError(
                f"{given}: only ${{other.key}} is allowed here, no resolver and no part"
            )
        for name in _REFERENCE.findall(value):
            if name not in flat:
                raise UserError(f"{given}: there is no key {show(name)}")
        if depth > 10:
            raise UserError(f"{given}: the interpolation leads back to itself")
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return value_of(whole[1], depth + 1)
        return _REFERENCE.sub(lambda m: str(value_of(m[1], depth + 1)), value)

    return {key: value_of(key, 0) for key in flat}


def validate(config: Config) -> None:
    """Raises UserError naming the first key whose value is wrong;"""
    for group in SCHEMAS:
        node = getattr(config, group)
        option = getattr(node, "source", getattr(node, "name", MISSING))
        if type(node) is not _schema(group, option):
            raise UserError(f"{group}.name={node.name} does not go with a {type(node).__name__}")
    for name, node in vars(config).items():
        parts = vars(node).items() if is_dataclass(node) else [(None, node)]
        for part, value in parts:
            owner, leaf, key = (
                (Config, name, name) if part is None else (type(node), part, f"{name}.{part}")
            )
            if not _fits(value, owner, leaf):
                raise wrong_value(key, value, owner, leaf)
    _check_together(config)


def _check_own(data: OwnDataConfig) -> None:
    for name in ("path", "id", "label"):
        if getattr(data, name, None) == "":
            raise UserError(f"data.{name} has to be given")
    if (data.folds is None) != (data.fold is None):
        raise UserError("data.folds=K and data.fold=0 ... K - 1 go together")
    if data.folds is not None and data.fold is not None and data.fold >= data.folds:
        raise UserError(
            f"data.fold={data.fold}: has to be at most {data.folds - 1} with "
            f"data.folds={data.folds}"
        )


def check_fields(node: Any, prefix: str) -> None:
    """Raises UserError naming the first field of a dataclass whose value is wrong."""
    for name, value in vars(node).items():
        if not _fits(value, type(node), name):
            raise wrong_value(f"{prefix}.{name}", value, type(node), name)


def number_type(config: Config, key: str) -> type[int] | type[float] | None:
    """int or float where a key takes such numbers (float where it takes both), else None."""
    group, _, name = key.rpartition(".")
    owner = type(getattr(config, group)) if group else Config
    types = _types(owner, name)
    return next((kind for kind in (float, int) if kind in types), None)


def _check_together(config: Config) -> None:
    """What one key allows in the light of another."""
    data = config.data
    if isinstance(data, OwnDataConfig):
        _check_own(data)
    elif isinstance(data, DigitsConfig):
        source = DATA_SETS[data.name]
        check_sizes(data, source.pixels, source.train_images)
    model = config.model
    if config.trainer.sync_batch_stats and isinstance(model, BNLSTMConfig):
        if model.recompute:
            raise UserError(
                "model.recompute=true does not go with trainer.sync_batch_stats=true: choose one"
            )
        if model.backend not in ("auto", "reference"):
            raise UserError(
                f"model.backend={show(model.backend)} does not go with "
                "trainer.sync_batch_stats=true: allowed are auto and reference"
            )
        if config.trainer.compile:
            raise UserError(
                "trainer.compile=true does not go with trainer.sync_batch_stats=true: the "
                "compiler would have to see into the exchange between the processes"
            )
    own = isinstance(model, GRUConfig | LayerNormLSTMConfig)
    if own and model.backend not in ("auto", "reference"):
        raise UserError(
            f"model.backend={model.backend} does not go with model={model.name}: allowed are auto "
            "and reference"
        )
    optimizer = config.optimizer
    if isinstance(optimizer, SGDConfig) and optimizer.nesterov and not optimizer.momentum:
        raise UserError("optimizer.nesterov=true needs optimizer.momentum above 0")


# --- one key


@cache
def _hints(owner: Any) -> dict[str, tuple[Any, ...]]:
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(owner).items()}


def _types(owner: Any, name: str) -> tuple[Any, ...]:
    return _hints(owner)[name]


def _field(owner: type[Any], name: str) -> Field[Any]:
    found: Field[Any] = owner.__dataclass_fields__[name]
    return found


def _fits(value: Any, owner: type[Any], name: str) -> bool:
    rule, types = _field(owner, name).metadata, _types(owner, name)
    if value is None:
        return type(None) in types
    if type(value) not in types or value == MISSING:
        return False
    if "choices" in rule:
        return value in rule["choices"]
    if isinstance(value, str):
        return value.isprintable() and ("number_or" not in rule or value in rule["number_or"])
    if isinstance(value, bool):
        return True
    if isinstance(value, float) and not _in_float32(value):
        return False
    if isinstance(value, int) and rule.get("le") is None and abs(value) > _MAX_INT:
        return False
    bounds = {k: rule.get(k) for k in ("ge", "gt", "le", "lt")}
    return (
        (bounds["ge"] is None or value >= bounds["ge"])
        and (bounds["gt"] is None or value > bounds["gt"])
        and (bounds["le"] is None or value <= bounds["le"])
        and (bounds["lt"] is None or value < bounds["lt"])
    )


def _in_float32(value: float) -> bool:
    """Whether a number neither overflows in float32 nor becomes 0: what runs compute in."""
    return not value or 2.0**-126 <= abs(value) < 2.0**128 - 2.0**103


def allowed(owner: type[Any], name: str) -> str:
    """What a field takes, in words: "an integer, at least 1"."""
    rule, types = _field(owner, name).metadata, _types(owner, name)
    null = " or null" if type(None) in types else ""
    if "choices" in rule:
        return f"one of {', '.join(map(show, rule['choices']))}{null}"
    kind = next(_TYPES[t] for t in (bool, float, int, str) if t in types)
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [f"{words[k]} {rule[k]:,}" for k in words if rule.get(k) is not None]
    text = f"{kind} {' and '.join(bounds)}" if bounds else kind
    return " or ".join([text, *rule.get("number_or", ())]) + null


def wrong_value(key: str, value: Any, owner: type[Any], name: str) -> UserError:
    if value == MISSING:
        return UserError(f"{key} has to be given: {allowed(owner, name)}")
    line = f"{key}={show(value)}: has to be {allowed(owner, name)}"
    if isinstance(value, float) and not math.isfinite(value):
        line += ", and finite"
    elif isinstance(value, float) and not _in_float32(value):
        line += ", and within the range of float32"
    choices = _field(owner, name).metadata.get("choices", ())
    if not choices:
        return UserError(line + range_as_sweep(key, value))
    return UserError(line + did_you_mean(value, map(show, choices), always_list=False))


def keys_of(config: Config) -> list[str]:
    """All keys of a config, dotted."""
    keys = []
    for name, node in vars(config).items():
        keys += [f"{name}.{f.name}" for f in fields(node)] if is_dataclass(node) else [name]
    return keys


def unknown_key(key: str, known: Iterable[str]) -> UserError:
    """The line for a key that is not there: the nearest one, and its neighbours."""
    known = [k for k in known if not k.endswith(".name")]  # chosen with GROUP=OPTION
    gone = removed.find(key, known)
    if gone is not None:
        what = "this setting" if gone == key else f"there is no such key; {gone}"
        return UserError(
            f"{show_key(key)}: {what} was removed; the last commit that has it is "
            f"{removed.REMOVED[gone][1]}"
        )
    group = key.rpartition(".")[0]
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == group]
    top = sorted({k.partition(".")[0] for k in known})
    hint = spelled(near_keys(key, known)) or ";"
    inside = f" in {group}" if group and siblings else ""
    place = ", ".join(siblings if group and siblings else top)
    return UserError(f"{show_key(key)}: there is no such key{hint} allowed{inside}: {place}")


def no_such(given: str, what: str, name: Any, options: Iterable[str]) -> str:
    """The line for an option that is not there."""
    return f"{given}: there is no such {what}{did_you_mean(name, options)}"


def did_you_mean(name: Any, options: Iterable[str], *, always_list: bool = True) -> str:
    options = [str(option) for option in options]
    near = near_option(show(name), options)
    hint = spelled([near] if near else [])
    if not always_list:
        return hint
    return f"{hint or ';'} allowed: {', '.join(options) or 'none'}"


def show(value: Any) -> str:
    """A value as the user may have typed it, printable and short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = str(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a huge number"
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = re.sub(" +", " ", text)  # first, so that what is cut short is not blanks alone
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def show_key(key: str) -> str:
    return show(key) or "''"


# --- run folders


def load_run_config(run_dir: str | Path, changed: Mapping[str, Any] | None = None) -> Config:
    """Reads the config of a run from RUN_DIR/.hydra/config.yaml; nothing that it holds is executed.

    Where the folder in data.root does not exist here, that of ELSTM_DATA is taken.

    Args:
        changed: settings that take the place of the run's, by key.

    Raises:
        UserError: not a run folder, or the file is damaged or holds wrong values.
    """
    run_dir = Path(run_dir)

    folder = show(str(run_dir))
    if run_dir.is_file():
        raise UserError(f"{folder} is a file, not a run's folder{_run_of(run_dir)}")
    if not run_dir.is_dir():
        raise UserError(f"{folder}: there is no such folder; give that of a run, outputs/...")
    if (run_dir / ".hydra").is_symlink() or not (run_dir / ".hydra").is_dir():
        raise UserError(
            f"{folder} is not a run folder: it has no .hydra/config.yaml; "
            "give one like outputs/DATA/MODEL/RUN"
        )
    try:
        flat = {**read_config(run_dir / ".hydra" / "config.yaml"), **(changed or {})}
        return config_from(_with_data_here(flat), stored=True)
    except Damaged as error:
        raise UserError(f"{folder}: .hydra cannot be read: {error}") from error
    except UserError as error:
        raise UserError(f"{folder}/.hydra/config.yaml: {error}") from error


def _with_data_here(flat: dict[str, Any]) -> dict[str, Any]:
    """The config of a run that may have been started elsewhere."""
    root = flat.get("data.root")
    if not os.environ.get("ELSTM_DATA") or not isinstance(root, str) or "${" in root:
        return flat
    try:
        here = Path(root).is_dir()
    except (OSError, ValueError):
        here = False
    return flat if here else {**flat, "data.root": DATA_ROOT}


def _run_of(path: Path) -> str:
    """The run that a checkpoint or record lies in, as a hint; "" where it lies in none."""
    near = [folder for folder in path.parents[:2] if (folder / ".hydra").is_dir()]
    if not near:
        return "; give one like outputs/DATA/MODEL/RUN"
    return f"; did you mean its run, {show(str(near[0]))}?"
