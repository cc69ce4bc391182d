"""`elstm-train --help KEY` and `--help GROUP`: what keys take, and their defaults, by option."""

from __future__ import annotations

from dataclasses import MISSING, Field
from typing import Any

from elstm.config.check import allowed, show, unknown_key
from elstm.config.hints import all_keys
from elstm.config.schema import SCHEMAS, Config, SweepConfig, TrainerConfig


def describe(topic: str) -> str:
    """Lists the keys of a group, or one key.

    Raises:
        UserError: there is no such key or group.
    """
    group = topic.rstrip(".*")
    keys = [k for k in all_keys() if k == topic or k.startswith(f"{group}.")]
    if not keys:
        raise unknown_key(topic, all_keys())
    return "\n".join(line for key in keys for line in _lines(key))


def _lines(key: str) -> list[str]:
    """The key, and for each kind of value the options that take it, and their defaults."""
    group, _, name = key.rpartition(".")
    options: dict[str, type[Any]] = {"": TrainerConfig if group == "trainer" else SweepConfig}
    options = SCHEMAS.get(group, options if group else {"": Config})
    kinds: dict[str, list[str]] = {}
    for option, owner in options.items():
        field = owner.__dataclass_fields__.get(name)
        if field is not None:
            line = f"{allowed(owner, name)}; default {_default(field)}"
            kinds.setdefault(line, []).append(option)
    lines = [key]
    for line, names in kinds.items():
        lines.append(f"    {line}")
        if len(names) < len(options):
            lines.append(f"    with {group}={', '.join(names)}")
    return lines


def _default(field: Field[Any]) -> str:
    return "none" if field.default is MISSING else show(field.default)
