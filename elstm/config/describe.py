"""Describes keys: `elstm-train --help KEY`, `--help GROUP`, and comments in `--cfg job --help`."""

from __future__ import annotations

import re
import textwrap
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from elstm.config.fields import MISSING, description, leaf
from elstm.config.help import GROUPS, find_config_dir, options
from elstm.config.hints import all_keys, unknown_key
from elstm.config.schema import (
    SCHEMAS,
    Config,
    SearchConfig,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
)
from elstm.config.values import allowed
from elstm.errors import show
from elstm.files.bounded import read_config

# The keys that have one dataclass, whichever option is chosen.
OWNERS: dict[str, type[Any]] = {
    "": Config, "trainer": TrainerConfig, "tracking": TrackingConfig, "sweep": SweepConfig,
    "hydra.sweeper": SearchConfig,
}  # fmt: skip


def describe(topic: str, extra_dir: Path | None = None) -> str:
    """Describes the keys of a group, or one key, or the options of a group without keys.

    Args:
        extra_dir: that of --config-dir.

    Raises:
        UserError: there is no such key or group.
    """
    searched = [f"hydra.sweeper.{field.name}" for field in fields(SearchConfig)[1:]]  # no _target_
    group = topic.rstrip(".*")
    known = [*all_keys(), *searched]
    keys = [k for k in known if k == topic or k.startswith(f"{group}.")]
    if not keys and group in GROUPS:
        return "".join(options(find_config_dir(), extra_dir, [group])).rstrip("\n")
    if not keys:
        raise unknown_key(topic, [*known, *GROUPS])
    return "\n".join(line for key in keys for line in _lines(key))


def commented(text: str, config: Config, package: str | None) -> str:
    """Writes the description of each key, and its allowed values, above its line.

    Args:
        text: YAML as Hydra prints a config, of which `config` is the typed one.
        package: the group of the text; None: all groups.
    """
    lines: list[str] = []
    path = outer = package.split(".") if package else []
    for line in text.splitlines():
        indent, name = re.match(r"( *)(\w*)", line).groups()  # type: ignore[union-attr]
        if name and line.startswith(f"{indent}{name}:"):
            path = [*path[: len(outer) + len(indent) // 2], name]
            owner = _holder(config, path)
            if owner is not None and description(owner, name):
                comment = f"{description(owner, name)} It takes {allowed(owner, name)}."
                start = f"{indent}# "
                lines += textwrap.wrap(
                    comment, 80, initial_indent=start, subsequent_indent=start,
                    break_long_words=False, break_on_hyphens=False,
                )  # fmt: skip
        lines.append(line)
    return "\n".join(lines)


def _holder(config: Config, path: list[str]) -> type[Any] | None:
    """Returns the dataclass of a setting, or None where `path` leads to none."""
    node: Any = config
    for name in path[:-1]:
        node = getattr(node, name, None)
    owner: type[Any] = type(node)
    known = path[-1] in getattr(owner, "__dataclass_fields__", ())
    return None if not known or is_dataclass(getattr(node, path[-1])) else owner


def _lines(key: str) -> list[str]:
    """Returns a key's description, allowed values and defaults, for each kind of option."""
    group = max((each for each in (*OWNERS, *SCHEMAS) if key.startswith(f"{each}.")), default="")
    name = key.removeprefix(f"{group}.")
    schemas = SCHEMAS.get(group) or {"": OWNERS[group]}
    kinds: dict[tuple[str, str], list[str]] = {}
    for option, schema in schemas.items():
        found = leaf(schema, name)
        if found is not None:
            owner, field = found
            taken = f"{allowed(owner, field.name)}; {_default(field, group, name, option)}"
            kinds.setdefault((description(owner, field.name), taken), []).append(option)
    lines, text_before = [key], ""
    for (text, taken), names in kinds.items():
        if text != text_before:
            lines += _wrapped(text)
        lines += _wrapped(taken, "      ")
        if len(names) < len(schemas):
            lines += _wrapped(f"with {group}={', '.join(names)}", "      ")
        text_before = text
    return lines


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    """Breaks a text into lines of at most 80 columns, from the second on with this indent."""
    return textwrap.wrap(
        text, 80, initial_indent="    ", subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _default(field: Field[Any], group: str, name: str, option: str) -> str:
    """Returns the default of a key, from the option's file in conf/ or else from the field."""
    path = find_config_dir() / group / f"{option or 'default'}.yaml"
    values = read_config(path) if group and path.is_file() else {}
    value = values.get(name, field.default)
    return "no default" if value == MISSING else f"default {show(value)}"
