"""Finds the key, option or argument nearest to a wrong one, or none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

from elstm.config import removed
from elstm.config.fields import leaf_values, leaves
from elstm.config.help import GROUPS
from elstm.config.schema import SCHEMAS, Config, SweepConfig, TrackingConfig, TrainerConfig
from elstm.errors import ALIASES, UserError, did_you_mean, show, show_key, suggestion

LEAVES = {  # other names of keys, without their groups
    "learning_rate": "lr",
    "wd": "weight_decay",
    "betas": "beta",  # the start of beta1 and beta2
    "batch": "batch_size",
    "dataset": "data",
    "units": "hidden_size",
    "hidden": "hidden_size",
    "layers": "num_layers",
    "accelerator": "device",
    "patience": "early_stopping_epochs",
    "grad_clip": "clip_grad_norm",
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
    "gpu": "trainer=gpu",
    "cuda": "trainer=gpu",
    "cpu": "trainer.device=cpu",
    "debug": "debug=quick",
    "verbose": "hydra.verbose=true",
    "v": "hydra.verbose=true",
    "seed": "seed={}",
}
NO_OPTION = ("experiment", "debug")  # groups of which no option has to be chosen


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
    starts = [k for k in top if k == leaf or (len(leaf) > 3 and k.startswith(leaf))]
    if starts and not group:
        return starts[:3]
    near = difflib.get_close_matches(key, known if group else top, n=1, cutoff=0.75)
    if near:
        return near
    leaves = {_leaf(k): k for k in known}
    return [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)]


def flag_as_argument(flag: str, value: str | None) -> str | None:
    """Returns the KEY=VALUE for --FLAG VALUE of other programs; None where nothing is near."""
    name, equals, given = flag.lstrip("-").partition("=")
    if not equals and (value is None or "=" in value or value.startswith("-")):
        value = None
    given = given if equals else value or "VALUE"
    name = name.replace("-", "_")
    name = LEAVES.get(name, name)
    if name == "device":
        given = ALIASES.get(given, (given,))[0]
    if name == "resume":
        return f"trainer.resume={given if given != 'VALUE' else 'RUN_DIR'}"
    if name in FLAGS:
        return FLAGS[name].format(given)
    if name in GROUPS:
        return f"{name}={given}"
    if name in all_keys():
        return f"{name}={given}"
    full = [key for key in all_keys() if key.replace(".", "_", 1) == name]  # --data-path
    same = full or [key for key in all_keys() if _leaf(key) == name]
    if len(name) < 2:
        return None
    if not same:
        names = [*FLAGS, *GROUPS, *map(_leaf, all_keys())]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
        return flag_as_argument(f"--{near[0]}={given}", None) if near else None
    if given == "VALUE" and same[0].startswith("tracking."):
        given = "true"
    return " or ".join(f"{key}={given}" for key in same[:3])


def near_argument(argument: str, before: str = "", after: str = "") -> str | None:
    """Returns the KEY=VALUE near an argument that is none; None where nothing is near.

    Args:
        before, after: the arguments beside it; "": there is none.
    """
    if argument in ("help", "version"):
        return f"elstm-train --{argument}"
    if before.endswith("=") and "=" not in argument:
        return f"{before}{argument}, without a space"
    if "=" in argument and argument.endswith(",") and after and "=" not in after:
        return f"{argument}{after}, without a space"
    for group, options in SCHEMAS.items():
        if argument in options:
            return f"{group}={argument}"
    key, equals, value = re.sub(r"\s*(==|:=|=|:)\s*", "=", argument, count=1).partition("=")
    key = key.strip("~+ ")
    if key not in (*GROUPS, *all_keys()):
        near = near_keys(key, [*GROUPS, *all_keys()]) if re.fullmatch(r"[\w.]+", key) else []
        if not near:
            return None
        key = near[0]
    if not equals:
        value = after.removeprefix("=")
        value = value if value and "=" not in value else "VALUE"
    meant = f"{key}={value.strip().rstrip(',')}"
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
    elsewhere = options_with(key)
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


def options_with(key: str) -> str:
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
    options = [str(option) for option in options]
    hint = did_you_mean(show(name), options) or ";"
    return f"{given}: there is no such {what}{hint} allowed: {', '.join(options) or 'none'}"


def as_sweep(key: str, value: object) -> str:
    """Returns a hint for [0, 1], and for 0..3 and 0-3, which mean a range; "" for other values."""
    listed = re.fullmatch(r"\[([\w., -]+)\]", str(value))
    if listed:
        return f"; for several values: -m {key}={listed[1].replace(' ', '')}"
    found = re.fullmatch(r"(\d{1,6})(?:\.\.|-|:)(\d{1,6})", str(value).strip())
    if not found or int(found[1]) >= int(found[2]):
        return ""
    return f"; for several values: -m '{key}=range({found[1]},{int(found[2]) + 1})'"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _initials(key: str) -> str:
    return "".join(part[:1] for part in _leaf(key).split("_"))
