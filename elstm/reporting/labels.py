"""Names groups by the settings in which they differ."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from elstm.files.bounded import Config, Value, one_line

T = TypeVar("T")


def differing_keys(configs: Sequence[Config]) -> list[str]:
    """Returns the keys with different values, in order; absence counts as a value."""
    keys = dict.fromkeys(key for config in configs for key in config)
    absent = object()
    first = configs[0]
    return sorted(
        key
        for key in keys
        if any(config.get(key, absent) != first.get(key, absent) for config in configs)
    )


def naming_keys(configs: Sequence[Config]) -> list[str]:
    """Returns the differing keys that no other one implies, as Adam implies beta1."""
    keys = differing_keys(configs)

    def follows(key: str) -> bool:
        name = key.rpartition(".")[0] + ".name"
        if key == name or name not in keys:
            return False
        values: dict[Value, set[object]] = defaultdict(set)
        for config in configs:
            values[config.get(name)].add(config.get(key, follows))  # itself: absent
        return all(len(of_name) == 1 for of_name in values.values())

    return [key for key in keys if not follows(key)]


def make_label(name: str, settings: Config, keys: Sequence[str]) -> str:
    """Returns the name, then each differing setting under its shortest unambiguous name."""
    shown = [key for key in keys if key in settings and key not in ("model.name", "data.name")]
    names = short_names(settings) if shown else {}
    return " ".join([name, *(f"{names[key]}={show_value(settings[key])}" for key in shown)])


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Returns for each dotted key its last part, or as many as make it unambiguous."""
    # optimizer.name -> optimizer, unless that is a key as well
    shown = {key: key.removesuffix(".name") or key for key in keys}
    taken = Counter(shown.values())
    shown = {key: name if taken[name] == 1 else key for key, name in shown.items()}
    ends = Counter(tail for name in shown.values() for tail in _tails(name))
    return {key: _short_name(name, ends) for key, name in shown.items()}


def _short_name(name: str, ends: Counter[str]) -> str:
    for tail in _tails(name)[:-1]:
        if ends[tail] == 1:  # no other key ends with it
            return one_line(tail, 30)
    return one_line(name, 40)


def _tails(key: str) -> list[str]:
    """Returns the last part of a dotted key, the last two parts, ..., the key."""
    parts = key.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def show_value(value: Value) -> str:
    """Returns a setting as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.10g}"
    return one_line(value, 30)


def natural_key(text: str) -> list[tuple[int, float, str]]:
    """Returns a sorting key that puts lr=0.003 before lr=0.01 and 2 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(1, float(p), "") if i % 2 else (0, 0.0, p) for i, p in enumerate(parts)]


def make_unique(items: Iterable[T], get: Callable[[T], str], put: Callable[[T, str], None]) -> None:
    """Numbers the later ones of items that have the same name."""
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    for item in items:
        name = get(item)
        while get(item) in taken:
            counts[name] += 1
            put(item, f"{name} ({counts[name] + 1})")
        taken.add(get(item))
