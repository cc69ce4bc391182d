"""Finds the key, option or argument nearest to a wrong one, or none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

from elstm.config import removed
from elstm.config.fields import leaf_values, leaves
from elstm.config.schema import SCHEMAS, Config, SweepConfig, TrackingConfig, TrainerConfig
from elstm.errors import UserError, show, show_key

ALIASES = {"gpu": "cuda", "cuda": "gpu", "none": "constant"}  # of options
LEAVES = {  # of keys
    "learning_rate": "lr",
    "batch": "batch_size",
    "units": "hidden_size",
    "accelerator": "device",
    "patience": "early_stopping_epochs",
}
# Flags of other programs, as arguments of this one.
FLAGS = {
    "epochs": "trainer.max_epochs={}",
    "steps": "trainer.max_steps={}",
    "workers": "-m hydra/launcher=joblib hydra.launcher.n_jobs={}",
    "jobs": "-m hydra/launcher=joblib hydra.launcher.n_jobs={}",
    "n_jobs": "-m hydra/launcher=joblib hydra.launcher.n_jobs={}",
    "output": "hydra.run.dir={}",
    "output_dir": "hydra.run.dir={}",
    "momentum": "optimizer=sgd optimizer.momentum={}",
    "dataset": "data={}",
    "gpu": "trainer=gpu",
    "cuda": "trainer=gpu",
    "cpu": "trainer.device=cpu",
    "debug": "debug=quick",
    "verbose": "hydra.verbose=true",
    "v": "hydra.verbose=true",
    "seed": "seed={}",
}
GROUPS = (*SCHEMAS, "trainer", "experiment", "debug")


def all_keys() -> list[str]:
    """Returns all keys that any option has, dotted."""
    owners = {group: tuple(schemas.values()) for group, schemas in SCHEMAS.items()}
    owners |= {"trainer": (TrainerConfig,), "tracking": (TrackingConfig,), "sweep": (SweepConfig,)}
    keys = {
        f"{group}.{name}": None
        for group, schemas in owners.items()
        for schema in schemas
        for name, _, _ in leaves(schema)
        if name != "name"
    }
    return [*keys, "seed"]


def near_option(name: str, options: Iterable[str]) -> str | None:
    """Returns the nearest option without regard to case and underscores, or None."""
    plain = {_plain(option): option for option in reversed(list(options))}
    if _plain(name) in plain:
        return plain[_plain(name)]
    plain_name = _plain(ALIASES.get(name.lower(), name))
    if ALIASES.get(name.lower()) in plain.values():
        return ALIASES[name.lower()]
    if plain_name in plain:
        return plain[plain_name]
    if len(plain_name) > 2:
        starts = [option for key, option in plain.items() if key.startswith(plain_name)]
        if starts:
            return starts[-1]
    near = difflib.get_close_matches(plain_name, plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def near_keys(key: str, known: Sequence[str]) -> list[str]:
    """Returns the known keys that are near an unknown key."""
    group, _, leaf = key.rpartition(".")
    leaf = LEAVES.get(leaf, leaf)
    siblings = [k for k in known if k.rpartition(".")[0] == group]
    if f"{group}.{leaf}" in siblings:
        return [f"{group}.{leaf}"]
    if group and len(leaf) > 1:
        starts = [k for k in siblings if _leaf(k).startswith(leaf)]
        initials = [k for k in siblings if "_" in k and _initials(k) == leaf]
        if starts or initials:
            return (starts or initials)[:3]
        near = difflib.get_close_matches(leaf, map(_leaf, siblings), n=1, cutoff=0.75)
        if near:
            return [f"{group}.{near[0]}"]
    same = [k for k in known if _leaf(k) == leaf]  # hidden_size: model.hidden_size
    if same:
        return same[:3]
    top = sorted({k.partition(".")[0] for k in known})
    near = difflib.get_close_matches(key, known if group else top, n=1, cutoff=0.75)
    if near:
        return near
    leaves = {_leaf(k): k for k in known}
    return [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)]


def suggestion(near: Sequence[str]) -> str:
    """Returns "; did you mean a, b or c?", or "" if nothing is near."""
    if not near:
        return ""
    *others, last = near
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def flag_as_argument(flag: str, value: str | None) -> str | None:
    """Returns the KEY=VALUE for --FLAG VALUE of other programs; None where nothing is near."""
    name, equals, given = flag.lstrip("-").partition("=")
    if not equals and (value is None or "=" in value or value.startswith("-")):
        value = None
    given = given if equals else value or "VALUE"
    name = name.replace("-", "_")
    name = LEAVES.get(name, name)
    if name == "device":
        given = ALIASES.get(given, given)
    if name == "resume":
        return f"trainer.resume={given if given != 'VALUE' else 'RUN_DIR'}"
    if name in FLAGS:
        return FLAGS[name].format(given)
    if name in GROUPS:
        return f"{name}={given}"
    if name in all_keys():
        return f"{name}={given}"
    same = [key for key in all_keys() if _leaf(key) == name]
    if len(name) < 2 or not same:
        return None
    if given == "VALUE" and same[0].startswith("tracking."):
        given = "true"
    return " or ".join(f"{key}={given}" for key in same[:3])


def near_argument(argument: str, before: str | None = None) -> str | None:
    """Returns the KEY=VALUE near an argument that is none; None where nothing is near.

    Args:
        before: the argument before it.
    """
    if argument in ("help", "version"):
        return f"elstm-train --{argument}"
    if before is not None and before.endswith("=") and "=" not in argument:
        return f"{before}{argument}, without a space"
    key, equals, value = re.sub(r"\s*(==|:=|=|:)\s*", "=", argument, count=1).partition("=")
    key = key.strip("~+ ")
    if key not in (*GROUPS, *all_keys()):
        near = near_keys(key, [*GROUPS, *all_keys()]) if re.fullmatch(r"[\w.]+", key) else []
        if not near:
            return None
        key = near[0]
    meant = f"{key}={value.strip().rstrip(',')}" if equals else f"{key}=VALUE"
    return None if meant == argument else meant


def keys_of(config: Config) -> list[str]:
    """Returns all keys of a config, dotted."""
    keys = []
    for name, node in vars(config).items():
        keys += [f"{name}.{key}" for key in leaf_values(node)] if is_dataclass(node) else [name]
    return keys


def unknown_key(key: str, known: Iterable[str]) -> UserError:
    """Returns the error for a key that does not exist, with the nearest one and its siblings."""
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
    elsewhere = _options_with(key)
    inside = f" in {group}" if group and siblings else ""
    place = ", ".join(siblings if group and siblings else top)
    if elsewhere and key not in known:
        return UserError(
            f"{show_key(key)}: there is no such key {elsewhere}; allowed{inside} here: {place}"
        )
    hint = suggestion(near_keys(key, known)) or ";"
    return UserError(f"{show_key(key)}: there is no such key{hint} allowed{inside}: {place}")


_OF_SERIES = "pictures are changed by data.augment.shift, rotation, crop and flip"
_OF_PICTURES = "series of numbers are changed by data.augment.jitter, scale and time_mask"
# Hints for keys that the chosen option of data lacks.
_INSTEAD = {
    "data.path": "published sets are read from data.root",
    "data.root": "files of your own are read with data.path by data=images, arrays, table or ts",
    **{f"data.augment.{name}": _OF_SERIES for name in ("jitter", "scale", "time_mask")},
    **{f"data.augment.{name}": _OF_PICTURES for name in ("shift", "rotation", "crop", "flip")},
}


def _options_with(key: str) -> str:
    """Returns a hint at options of a group that have the key; "" if none has it."""
    group, _, name = key.partition(".")
    having = [
        option
        for option, schema in SCHEMAS.get(group, {}).items()
        if any(each == name for each, _, _ in leaves(schema))
    ]
    if not having:
        return ""
    hint = f"; {_INSTEAD[key]}" if key in _INSTEAD else ""
    return f"with this option of {group}: it goes with {group}={', '.join(having)}{hint}"


def unknown_option(given: str, what: str, name: Any, options: Iterable[str]) -> str:
    """Returns the error message for an option that does not exist."""
    return f"{given}: there is no such {what}{did_you_mean(name, options)}"


def did_you_mean(name: Any, options: Iterable[str], *, always_list: bool = True) -> str:
    """Returns the hint at the end of an error message: the nearest option, or the allowed ones."""
    options = [str(option) for option in options]
    near = near_option(show(name), options)
    hint = suggestion([near] if near else [])
    if not always_list:
        return hint
    return f"{hint or ';'} allowed: {', '.join(options) or 'none'}"


def range_as_sweep(key: str, value: object) -> str:
    """Returns a hint for values such as 0..3 and 0-3, which mean a range; "" for others."""
    found = re.fullmatch(r"(\d{1,6})(?:\.\.|-|:)(\d{1,6})", str(value).strip())
    if not found or int(found[1]) >= int(found[2]):
        return ""
    return f"; for several values: -m '{key}=range({found[1]},{int(found[2]) + 1})'"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _initials(key: str) -> str:
    return "".join(part[:1] for part in _leaf(key).split("_"))
