"""Completes the configs of older runs with the settings that were added later."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from elstm.config.fields import leaf
from elstm.config.removed import REMOVED
from elstm.config.schema import MISSING, SCHEMAS, TrainerConfig
from elstm.files.bounded import Config, Value


def completed(configs: Sequence[Config]) -> list[Config]:
    """Returns the configs with the keys that those of an older version lack.

    The default of a new key is the behaviour of the older version.

    If no schema of this version has a key, its default is the value of all other runs, if they
    agree. Keys of different models, optimizers and so on, which the `name` or `source` of their
    group distinguishes, are independent of each other.
    """
    values: dict[tuple[str, Value], set[Value]] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key, _owner(config, key)].add(value)
    filled = {
        place: default
        for place, found in values.items()
        if (default := _default(*place, found)) is not MISSING
    }
    return [
        {**{k: value for (k, of), value in filled.items() if of == _owner(config, k)}, **config}
        for config in configs
    ]


def _owner(config: Config, key: str) -> Value:
    """Returns the option of the key's group that a config has."""
    group = key.partition(".")[0]
    return config.get(f"{group}.source", config.get(f"{group}.name"))


def _default(key: str, owner: Value, found: set[Value]) -> Any:
    """Returns the value that a config without `key` implies, or MISSING if none is known."""
    if key in REMOVED:
        return REMOVED[key][0]
    section, _, name = key.partition(".")
    schema = TrainerConfig if section == "trainer" else SCHEMAS.get(section, {}).get(str(owner))
    found_leaf = leaf(schema, name) if schema else None
    if found_leaf is not None and found_leaf[1].default is not dataclasses.MISSING:
        return found_leaf[1].default
    return next(iter(found)) if len(found) == 1 else MISSING


def data_settings(config: Config, keys: Iterable[str]) -> Config:
    """Returns those settings of the data; an older run has a new one's default (`_default`)."""
    owner = _owner(config, "data")
    found = {k: config[k] if k in config else _default(k, owner, set()) for k in keys}
    return {key: value for key, value in found.items() if value != MISSING or key in config}
