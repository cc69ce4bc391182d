"""Lists settings that no longer exist, with their defaults and the last commit that has each.

A run folder keeps the full config of its time. A removed setting at its default changed nothing, so
such a run still loads. At any other value the run cannot be repeated by this version.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# key: (default, the last commit that supports it)
REMOVED: dict[str, tuple[Any, str]] = {
    "model.renorm": (False, "d8d01eb"),
    "model.renorm_start": (100, "d8d01eb"),
    "model.renorm_ramp": (500, "d8d01eb"),
    "model.ghost_batch_size": (None, "d8d01eb"),
    "trainer.on_nonfinite": ("stop", "d8d01eb"),
}


def is_default(key: str, value: Any) -> bool:
    """Returns whether a removed setting has its default; 0 is not False, as YAML keeps types."""
    default, _ = REMOVED[key]
    return type(value) is type(default) and value == default


def find(key: str, known: Iterable[str]) -> str | None:
    """Returns the removed setting that `key` names, with or without the right group.

    A name that a present setting has, in any group, names no removed setting.
    """
    if key in REMOVED:
        return key
    leaf = key.rpartition(".")[2]
    if any(name.rpartition(".")[2] == leaf for name in known):
        return None
    return next((name for name in REMOVED if name.rpartition(".")[2] == leaf), None)
