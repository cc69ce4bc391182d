"""Identifies a config by the settings that affect the result, so that finished runs are found."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from elstm.config.fields import leaf_values, leaves
from elstm.config.schema import SAME_LAYER, Config, settings_without_effect


def identity(config: Config, fingerprint: str | None = None, source: str | None = None) -> str:
    """Returns a text that is the same for all configs whose runs have the same result.

    Args:
        fingerprint: the checksum of user data, since `data.path` does not depend on the content.
        source: the checksum of the checkpoint in trainer.init_from, for the same reason.

    Settings at their defaults are left out. A setting that a later version adds therefore leaves
    the identity of earlier runs as it is.
    """
    left_out = settings_without_effect()
    found: dict[str, Any] = {}
    for group, value in vars(config).items():
        if not is_dataclass(value):
            found[group] = value
        elif group not in left_out:
            values = leaf_values(value)
            for name, _, each in leaves(type(value)):
                key, setting = f"{group}.{name}", values[name]
                if key not in left_out and (name == "name" or setting != each.default):
                    found[key] = setting
    if fingerprint is not None:
        found["data.fingerprint"] = fingerprint
    if source is not None:
        found["trainer.init_from"] = source
    name = config.model.name
    return repr(sorted({**found, "model.name": SAME_LAYER.get(name, name)}.items()))
