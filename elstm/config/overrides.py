"""Parses and checks the arguments of a command line, before Hydra composes them.

It refuses `_target_` and similar keys, which Hydra's instantiate would execute. It also refuses
resolvers, and settings of Hydra itself other than those in HYDRA_KEYS.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, RangeSweep
from hydra.errors import OverrideParseException

from elstm.config.help import GROUPS
from elstm.config.hints import (
    NO_OPTION,
    all_keys,
    near_argument,
    unknown_key,
    unknown_option,
)
from elstm.config.hydra_private import ConfigLoaderImpl
from elstm.config.removed import REMOVED
from elstm.config.schema import SCHEMAS, SweepConfig, TrackingConfig
from elstm.errors import UserError, in_full, show, show_key, suggestion

CODE = re.compile(r"_(target|partial|args|recursive|convert)_", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{[A-Za-z_]\w*(\.\w+)*\}", re.ASCII)
# Groups that have no options.
KEYS_OF: dict[str, type[Any]] = {"tracking": TrackingConfig, "sweep": SweepConfig}
# Settings of Hydra that are allowed. Others (callbacks, logging, environment...) can run code or
# change the layout of run folders.
HYDRA_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.mode", "hydra.verbose")
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
HYDRA_NODES = ("hydra.launcher.", "hydra.sweeper.")
PATH_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.launcher.submitit_folder", "data.root",
             "data.path", "trainer.init_from")  # fmt: skip
_HOME = re.compile(r"""(?:(?<=^)|(?<=[,(]))([ ]*['"]?)(~[\w.-]*)(?=[/'",)]|$)""", re.ASCII)
# Options of those groups that need a package, and the extra of elstm that installs it.
EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
BUILT_ON = {"slurm": "submitit_slurm"}  # in conf/hydra/


class OverrideParser:
    """Parses overrides with Hydra's grammar, and checks each against keys and options.

    Args:
        loader: knows the options of all groups.
    """

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self._loader = loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._options: dict[str, list[str]] = {}

    def parse(self, arguments: Sequence[str], *, sweep: bool = False) -> list[Override]:
        """Parses the overrides of a command line and checks them one by one.

        Args:
            sweep: whether several values for a key are allowed.

        Raises:
            UserError: naming the argument.
        """
        around = ["", *arguments, ""]
        return [
            self.parse_one(argument, sweep=sweep, before=before, after=after)
            for before, argument, after in zip(around, arguments, around[2:], strict=False)
        ]

    def parse_one(
        self, argument: str, *, sweep: bool, before: str = "", after: str = ""
    ) -> Override:
        """Parses one argument.

        Args:
            sweep: whether several values are allowed.
            before, after: the arguments beside it, which a hint may join with it.

        Raises:
            UserError: it is wrong.
        """
        if len(argument) > 10_000:
            raise UserError(f"{show(argument)}: the argument is too long")
        if not argument.isprintable():
            raise UserError(f"'{show(argument)}' holds characters that cannot be printed")
        code = CODE.search(argument)
        if code:
            raise UserError(
                f"{show(argument)}: {code[0]} is refused everywhere: "
                "configs hold values, never code"
            )
        if "${" in _REFERENCE.sub("", argument):
            raise UserError(
                f"{show(argument)}: only ${{other.key}} is allowed as an interpolation, no resolver"
            )
        try:
            override = self._parser.parse_override(argument)
        except Exception as error:
            meant = near_argument(argument, before, after)
            if meant is not None:
                raise UserError(
                    f"cannot read '{show(argument)}': did you mean {in_full(meant)}? "
                    "write KEY=VALUE"
                ) from error
            if "=" not in argument:
                raise UserError(
                    f"cannot read '{show(argument)}': write KEY=VALUE or GROUP=OPTION; "
                    "elstm-train --help lists the groups and their options"
                ) from error
            reason = error.args[0] if isinstance(error, OverrideParseException) else error
            lines = [line for line in str(reason).splitlines() if "See http" not in line]
            raise UserError(
                f"cannot read '{show(argument)}': {show(' '.join(lines[1:] or lines))}; "
                "write KEY=VALUE, and quote a VALUE with special characters: 'KEY=\"VALUE\"'"
            ) from error
        override.config_loader = self._loader  # for glob
        key = override.key_or_group
        if not key.strip():
            raise UserError(f"'{show(argument)}' names no key; write KEY=VALUE")
        if len(key.encode()) > 200:  # Hydra searches for a file of that name
            raise UserError(f"{show_key(key)}: there is no such key")
        if key in REMOVED:  # Hydra's message for +KEY=VALUE would not name the commit
            raise unknown_key(key, ())
        if override.is_delete():
            raise UserError(
                f"{show(argument)}: a key cannot be deleted from the config; set KEY=VALUE"
            )
        if override.package is not None:
            raise UserError(
                f"{show(argument)}: no @package is allowed, as each option has its place"
            )
        if override.is_sweep_override() and not sweep:
            raise UserError(
                f"{show(argument)}: several values need a sweep: "
                f"elstm-train -m {in_full(shlex.quote(argument))}; "
                "a comma that is no separator is quoted: 'KEY=\"A,B\"'"
            )
        group_of_one = key in GROUPS
        added = override.is_add() and not override.is_force_add() and key in all_keys()
        if added or (group_of_one and (override.is_add() or override.is_force_add())):
            plain = argument.lstrip("+")
            raise UserError(f"{show(argument)}: {key} exists already: write {in_full(plain)}")
        if key in KEYS_OF and not isinstance(override.value(), dict):
            raise UserError(
                f"{show(argument)}: {key} has keys and no options: write one of "
                f"{', '.join(f'{key}.{each.name}=VALUE' for each in fields(KEYS_OF[key]))}"
            )
        if override.is_hydra_override() or key == "hydra":
            self._check_hydra(override, argument)
        elif self.options(key):
            for value in values(override):
                self._check_option(override, value)
        elif key in ("data.source", *(f"{group}.name" for group in SCHEMAS if group != "data")):
            raise choose_option(argument)
        elif "/" in key or key == "schema":
            raise UserError(unknown_option(show_key(key), "group", key, GROUPS))
        return override

    def _check_hydra(self, override: Override, argument: str) -> None:
        key = override.key_or_group
        if override.is_sweep_override():
            raise UserError(f"{show(argument)}: a sweep cannot vary Hydra's own settings")
        if key in HYDRA_GROUPS:
            for value in values(override):
                self._check_option(override, value)
        elif not (key in HYDRA_KEYS or key.startswith(HYDRA_NODES)):
            known = [*HYDRA_GROUPS, *HYDRA_KEYS]
            names = ", ".join([*known, *(f"{node}*" for node in HYDRA_NODES)])
            near = suggestion(difflib.get_close_matches(key, known, n=1, cutoff=0.75))
            raise UserError(
                f"{show(argument)}: only these settings of Hydra can be set: {names}{near}"
            )
        if key == "hydra.verbose" and not isinstance(override.value(), bool | str):
            raise UserError(f"{show(argument)}: has to be true, false or a logger's name")

    def options(self, group: str) -> list[str]:
        """Lists the options of a config group; there are none if there is no such group."""
        if not re.fullmatch(r"\w+(/\w+)*", group, re.ASCII) or group.split("/")[0] == "schema":
            return []
        if group not in self._options:
            found = self._loader.get_group_options(group, ObjectType.CONFIG)
            self._options[group] = sorted(found)
        return self._options[group]

    def _check_option(self, override: Override, value: Any) -> None:
        group = override.key_or_group
        if isinstance(value, dict):  # model={hidden_size: 64} sets keys
            for name in {"name", "source"} & value.keys() if group in SCHEMAS else ():
                if (group, name) != ("data", "name"):  # own data may have any name
                    line = show(override.input_line)
                    raise UserError(f"{line}: choose with {group}={show(value[name])}")
            return
        if value is None and group in NO_OPTION:
            return
        options = self.options(group)
        base = BUILT_ON.get(value, value) if isinstance(value, str) else None
        if group in HYDRA_GROUPS and base in EXTRAS and base not in options:
            raise UserError(f"{group}={value} needs a package: pip install 'elstm[{EXTRAS[base]}]'")
        if not isinstance(value, str) or value.removesuffix(".yaml") not in options:
            raise UserError(
                unknown_option(f"{show_key(group)}={show(value)}", group, value, options)
            )


def choose_option(argument: str) -> UserError:
    """Returns the error for an argument that sets the name of a group's option."""
    group, name = argument.lstrip("+").partition(".")[0], show(argument.partition("=")[2])
    return UserError(f"{show(argument)}: choose with {group}={name}")


def without_no_option(arguments: Sequence[str]) -> list[str]:
    """Drops experiment=null and debug=null, which Hydra does not accept.

    Each is the default, so it cancels the arguments of its group before it.
    """
    kept: list[str] = []
    for argument in arguments:
        group, _, value = argument.lstrip("+").partition("=")
        if group in NO_OPTION and value.strip().lower() == "null":
            kept = [other for other in kept if other.lstrip("+").partition("=")[0] != group]
        else:
            kept.append(argument)
    return kept


def with_home(arguments: Sequence[str]) -> list[str]:
    """Replaces ~ by the home folder where a value is a path.

    A shell does not do it, because the value follows a "=" or is in quotes.

    Raises:
        UserError: there is no such home.
    """

    def expand(argument: str) -> str:
        key, _, value = argument.partition("=")
        if key.lstrip("+") not in PATH_KEYS:
            return argument

        def home(match: re.Match[str]) -> str:
            try:
                folder = str(Path(match[2]).expanduser())
            except RuntimeError as error:
                raise UserError(f"{show(argument)}: {error}") from error
            quote = match[1].strip()
            if quote:
                folder = folder.replace(quote, f"\\{quote}")
            else:
                folder = re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", folder)
            return f"{match[1]}{folder}"

        return f"{argument[: -len(value)]}{_HOME.sub(home, value)}" if value else argument

    return [expand(argument) for argument in arguments]


def values(override: Override) -> list[Any]:
    """Returns the value of an override, or all values of a sweep."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [v.text if isinstance(v, QuotedString) else v for v in value.list]
    if isinstance(value, RangeSweep | Glob):
        return []  # numbers, and options that exist
    return [value]
