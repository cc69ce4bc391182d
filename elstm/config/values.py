"""Checks single values against their fields, and describes the allowed values in words."""

from __future__ import annotations

import math
from dataclasses import Field
from functools import cache
from typing import Any, get_args, get_type_hints

from elstm.config.fields import MISSING, leaf, leaves
from elstm.config.hints import as_sweep
from elstm.config.schema import Config
from elstm.errors import UserError, did_you_mean, show

_TYPES = {bool: "true or false", float: "a number", int: "an integer", str: "text"}
_MAX_INT = 2**31 - 1


def check_fields(node: Any, prefix: str) -> None:
    """Raises UserError naming the first field of a dataclass whose value is wrong."""
    for name, value in vars(node).items():
        if not fits(value, type(node), name):
            raise wrong_value(f"{prefix}.{name}", value, type(node), name)


def number_type(config: Config, key: str) -> type[int] | type[float] | None:
    """Returns the type of number that a key allows, float if it allows both, or None."""
    group, _, name = key.partition(".")
    found = leaf(type(getattr(config, group)), name) if name else (Config, _field(Config, key))
    assert found is not None
    types = types_of(found[0], found[1].name)
    return next((kind for kind in (float, int) if kind in types), None)


@cache
def _hints(owner: Any) -> dict[str, tuple[Any, ...]]:
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(owner).items()}


def types_of(owner: Any, name: str) -> tuple[Any, ...]:
    """Returns the types that a field allows."""
    return _hints(owner)[name]


def _field(owner: type[Any], name: str) -> Field[Any]:
    found: Field[Any] = owner.__dataclass_fields__[name]
    return found


def fits(value: Any, owner: type[Any], name: str) -> bool:
    """Returns whether a field allows a value."""
    rule, types = _field(owner, name).metadata, types_of(owner, name)
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
    """Returns whether a number neither overflows nor becomes 0 in float32, the type of runs."""
    return not value or 2.0**-126 <= abs(value) < 2.0**128 - 2.0**103


def allowed(owner: type[Any], name: str, key: str = "") -> str:
    """Describes the values that a field allows: "an integer at least 1".

    Args:
        key: of the field, with its group.
    """
    rule, types = _field(owner, name).metadata, types_of(owner, name)
    null = " or null" if type(None) in types else ""
    if "nested" in rule:
        keys = (f"{key or name}.{inner}" for inner, _, _ in leaves(rule["nested"]))
        return f"set by its keys {', '.join(keys)}"
    if "choices" in rule:
        return f"one of {', '.join(map(show, rule['choices']))}{null}"
    kinds = [text for kind, text in _TYPES.items() if kind in types]
    if float in types:
        kinds = [_TYPES[float]]  # an integer is a number, and texts are in number_or
    kind = " or ".join(kinds)
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [f"{words[k]} {rule[k]:,}" for k in words if rule.get(k) is not None]
    text = f"{kind} {' and '.join(bounds)}" if bounds else kind
    return " or ".join([text, *rule.get("number_or", ())]) + null


def wrong_value(key: str, value: Any, owner: type[Any], name: str) -> UserError:
    """Returns the error for a value that a field does not allow."""
    if value == MISSING:
        return UserError(f"{key} has to be given: {allowed(owner, name)}")
    message = f"{key}={show(value)}: has to be {allowed(owner, name, key)}"
    if isinstance(value, float) and not math.isfinite(value):
        message += ", and finite"
    elif isinstance(value, float) and not _in_float32(value):
        message += ", and within the range of float32"
    choices = _field(owner, name).metadata.get("choices", ())
    if not choices:
        return UserError(message + as_sweep(key, value))
    return UserError(message + did_you_mean(show(value), map(show, choices)))
