"""Makes fields of the typed configs, with default, allowed values and the text of `--help KEY`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, field, fields
from typing import Any

MISSING: Any = "???"  # OmegaConf's mark for a value that has to be given

LARGE = 1_000  # above it, gates and norms overflow in float32
TINY = 1e-12  # the least eps of a norm, because its gradient holds eps to the power of -1.5


def setting(
    default: Any, *, help: str = "", affects_result: bool = True, affects_training: bool = True
) -> Any:
    """Makes a field that allows every value of its type.

    Args:
        default: the default; MISSING for a key that has to be given.
        help: the effect of the key, in plain sentences. "": as in the class that this one extends.
        affects_result: False for a key that only decides where files lie, what is shown or how
            often something is saved. Runs that differ in such keys alone have the same result.
        affects_training: False for a key that only decides where or how the same result is
            computed. Results may differ in their last bits; checkpoints and names of folders leave
            the key out.
    """
    return field(default=default, metadata=_metadata(help, affects_result, affects_training))


def bounded(
    default: Any, *, ge: float | None = None, gt: float | None = None,
    le: float | None = None, lt: float | None = None, help: str = "", affects_result: bool = True,
    affects_training: bool = True,
) -> Any:  # fmt: skip
    """Makes a field that allows a number within bounds, and None where the type allows it."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    marks = _metadata(help, affects_result, affects_training)
    return field(default=default, metadata={**bounds, **marks})


def choice(
    default: Any, *allowed: Any, help: str = "", affects_result: bool = True,
    affects_training: bool = True,
) -> Any:  # fmt: skip
    """Makes a field that allows one of the listed values."""
    marks = _metadata(help, affects_result, affects_training)
    return field(default=default, metadata={"choices": allowed, **marks})


def _metadata(help: str, affects_result: bool, affects_training: bool) -> dict[str, Any]:
    return {
        "help": help,
        "affects_result": affects_result,
        "affects_training": affects_result and affects_training,
    }


def nested(owner: type[Any]) -> Any:
    """Makes a field that holds nested settings, as data.augment holds data.augment.shift."""
    return field(default_factory=owner, metadata={"nested": owner})


def leaves(owner: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any], Field[Any]]]:
    """Yields name, dataclass and field of each setting; names of nested ones are dotted."""
    for each in fields(owner):
        inner = each.metadata.get("nested")
        if inner is None:
            yield f"{prefix}{each.name}", owner, each
        else:
            yield from leaves(inner, f"{prefix}{each.name}.")


def leaf(owner: type[Any], name: str) -> tuple[type[Any], Field[Any]] | None:
    """Returns dataclass and field of a setting, or None where `owner` has none of that name."""
    return next(((holder, each) for key, holder, each in leaves(owner) if key == name), None)


def leaf_values(node: Any) -> dict[str, Any]:
    """Returns the values of all settings; names of nested ones are dotted."""
    values: dict[str, Any] = {}
    for each in fields(node):
        value = getattr(node, each.name)
        if "nested" in each.metadata:
            values.update({f"{each.name}.{key}": v for key, v in leaf_values(value).items()})
        else:
            values[each.name] = value
    return values


def bias(default: float | str, *, help: str = "") -> Any:
    """Makes a field for a gate bias: a number, or "chrono" for log-uniform over the steps."""
    bounds = {"ge": -LARGE, "le": LARGE}
    return field(default=default, metadata={**bounds, "number_or": ("chrono",), "help": help})


def gamma(default: float | None, *, help: str = "") -> Any:
    """Makes a field for the initial value of a norm's gain."""
    return bounded(default, ge=-LARGE, le=LARGE, help=help)


def description(owner: type[Any], name: str) -> str:
    """Returns the help of a field, which a class shares with the class that it extends."""
    found = (each.__dict__.get("__dataclass_fields__", {}).get(name) for each in owner.__mro__)
    texts = (each.metadata.get("help") for each in found if each is not None)
    return next(filter(None, texts), "")
