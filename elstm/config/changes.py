"""Lists the settings of a run that an extension may change, and changes them in configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from elstm.config.check import config_from
from elstm.config.fields import leaf_values
from elstm.config.schema import Config

# With all of scheduler., these decide how a run continues; steps that were trained stay unchanged.
EXTENDING = (
    "trainer.max_epochs", "trainer.max_steps", "trainer.early_stopping_epochs", "optimizer.lr"
)  # fmt: skip


def may_extend(key: str) -> bool:
    """Returns whether an extension may change a key, or the option of a group."""
    return key in EXTENDING or key.partition(".")[0] == "scheduler"


def flat_config(config: Config) -> dict[str, Any]:
    """Returns a typed config with dotted keys."""
    flat: dict[str, Any] = {}
    for group, value in vars(config).items():
        if is_dataclass(value):
            flat.update({f"{group}.{name}": each for name, each in leaf_values(value).items()})
        else:
            flat[group] = value
    return flat


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns the config with other values; a new scheduler comes with all of its settings.

    Raises:
        UserError: a value is wrong, or there is no such key.
    """
    if not settings:
        return config
    flat = flat_config(config)
    if "scheduler.name" in settings:
        flat = {key: value for key, value in flat.items() if not key.startswith("scheduler.")}
    return config_from({**flat, **settings})


def changes(before: Config, after: Config) -> dict[str, list[Any]]:
    """Returns [old, new] of each key that differs; None stands for a missing key."""
    old, new = flat_config(before), flat_config(after)
    keys = dict.fromkeys([*old, *new])
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def extended_settings(config: Config) -> dict[str, Any]:
    """Returns the values of all settings that an extension may change."""
    return {key: value for key, value in flat_config(config).items() if may_extend(key)}
