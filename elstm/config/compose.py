"""Composes the arguments of a command line into a typed config, or raises one error message.

Hydra composes. Arguments are checked before that, and the full config before anything runs. Three
things are refused: `_target_` and similar keys, which Hydra's instantiate would execute; resolvers;
and settings of Hydra itself other than those in HYDRA_KEYS.
"""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from elstm.cli import summary
from elstm.config.check import config_from
from elstm.config.data_options import OwnDataConfig
from elstm.config.fields import MISSING
from elstm.config.help import GROUPS, find_config_dir
from elstm.config.hints import all_keys, no_such, unknown_key
from elstm.config.hydra_nodes import Folder, register
from elstm.config.hydra_private import (
    Callbacks,
    ConfigLoaderImpl,
    Hydra,
    create_config_search_path,
)
from elstm.config.messages import explain
from elstm.config.removed import REMOVED
from elstm.config.schema import SCHEMAS, Config
from elstm.errors import UserError, show, show_key

CONFIG_NAME = "config"
CODE = re.compile(r"_(target|partial|args|recursive|convert)_", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{[A-Za-z_]\w*(\.\w+)*\}", re.ASCII)
# What may be set of Hydra itself; the rest (callbacks, logging, environment...) can run code or
# would break what a run folder promises.
HYDRA_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.mode", "hydra.verbose")
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
HYDRA_NODES = ("hydra.launcher.", "hydra.sweeper.")
PATH_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.launcher.submitit_folder", "data.root",
             "data.path", "trainer.init_from")  # fmt: skip
_HOME = re.compile(r"""(?:(?<=^)|(?<=[,(]))([ ]*['"]?)(~[\w.-]*)(?=[/'",)]|$)""", re.ASCII)
NO_OPTION = ("experiment", "debug")  # groups from which none need be chosen, and none is by default
NO_GROUPS = ("study",)  # conf/study: read by scripts/study.py
# Options of those groups that come with a package, and elstm's extra that brings it.
EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
BUILT_ON = {"slurm": "submitit_slurm"}  # in conf/hydra/


register()


class _Loader(ConfigLoaderImpl):
    """Hydra's loader without the folders of conf/ that are no config groups.

    Hydra takes every folder for a group and would offer it in completions and errors.
    """

    def get_group_options(self, group_name: str, *args: Any, **filters: Any) -> list[str]:
        if group_name.partition("/")[0] in NO_GROUPS:
            return []
        options = super().get_group_options(group_name, *args, **filters)
        return options if group_name else [name for name in options if name not in NO_GROUPS]


class Composer:
    """Composes and checks.

    Args:
        extra_dir: --config-dir, a folder with further options of the groups.

    Raises:
        UserError: there is no such folder, or a Hydra plugin that cannot be imported.
    """

    def __init__(self, extra_dir: str | None = None) -> None:
        self.extra_dir = extra_dir
        config_dir = find_config_dir()
        try:
            self.search_path = create_config_search_path(str(config_dir))  # imports all plugins
        except Exception as error:
            raise UserError(
                f"a Hydra plugin in this environment cannot be imported: {summary(error)}, in "
                f"{traceback.extract_tb(error.__traceback__)[-1].filename}; upgrade or uninstall it"
            ) from error
        if extra_dir is not None:
            try:
                folder = Path(extra_dir).expanduser().absolute()
            except RuntimeError as error:  # ~somebody without a home
                raise UserError(f"--config-dir {show(extra_dir)}: {error}") from error
            if not folder.is_dir():
                raise UserError(f"--config-dir {show(extra_dir)}: there is no such folder")
            self.search_path.prepend(
                "command-line", f"config-dir://{folder}", SearchPathQuery("schema")
            )
        Plugins.instance().register(Folder)
        self.loader = _Loader(self.search_path)
        self._options: dict[str, list[str]] = {}
        self.parser = OverridesParser.create(config_loader=self.loader)

    def hydra(self) -> Hydra:
        """Hydra itself, over the same search path."""
        return Hydra("train", self.loader)

    def hydra_context(self) -> HydraContext:
        """What the plugins of launchers and sweepers need."""
        return HydraContext(config_loader=self.loader, callbacks=Callbacks())

    # --- the arguments

    def parse(self, arguments: Sequence[str], *, sweep: bool = False) -> list[Override]:
        """The overrides of a command line, checked one by one.

        Args:
            sweep: several values for a key are allowed.

        Raises:
            UserError: naming the argument.
        """
        return [self._parse(argument, sweep) for argument in arguments]

    def _parse(self, argument: str, sweep: bool) -> Override:
        if len(argument) > 10_000:
            raise UserError(f"{show(argument)}: too long")
        if not argument.isprintable():
            raise UserError(f"'{show(argument)}': holds characters that cannot be printed")
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
            override = self.parser.parse_override(argument)
        except Exception as error:
            reason = error.args[0] if isinstance(error, OverrideParseException) else error
            lines = [line for line in str(reason).splitlines() if "See http" not in line]
            raise UserError(
                f"cannot read '{show(argument)}': {show(' '.join(lines[1:] or lines))}; "
                "write KEY=VALUE, and quote a VALUE with special characters: 'KEY=\"VALUE\"'"
            ) from error
        override.config_loader = self.loader  # for glob
        key = override.key_or_group
        if not key.strip():
            raise UserError(f"'{show(argument)}': names no key; write KEY=VALUE")
        if len(key.encode()) > 200:  # Hydra looks for a file of that name
            raise UserError(f"{show_key(key)}: there is no such key")
        if key in REMOVED:  # Hydra's message for +KEY=VALUE would not say so
            raise unknown_key(key, ())
        if override.is_delete():
            raise UserError(
                f"{show(argument)}: nothing can be taken out of the config; set KEY=VALUE"
            )
        if override.package is not None:
            raise UserError(f"{show(argument)}: options have their place, no @package can be given")
        if override.is_sweep_override() and not sweep:
            raise UserError(
                f"{show(argument)}: several values are a sweep: elstm-train -m {show(argument)}; "
                "a comma that is no separator is quoted: 'KEY=\"A,B\"'"
            )
        group_of_one = key in SCHEMAS or key == "trainer"
        if (
            override.is_add()
            and not override.is_force_add()
            and (group_of_one or key in all_keys())
        ):
            raise UserError(f"{show(argument)}: {key} is there already: write {show(argument[1:])}")
        if override.is_hydra_override() or key == "hydra":
            self._check_hydra(override, argument)
        elif self.options(key):
            for value in values(override):
                self._check_option(override, value)
        elif re.fullmatch(rf"({'|'.join(SCHEMAS)})\.name", key) and key != "data.name":
            raise _choose(argument)
        elif "/" in key or key == "schema":
            raise UserError(no_such(show_key(key), "group", key, GROUPS))
        return override

    def _check_hydra(self, override: Override, argument: str) -> None:
        key = override.key_or_group
        if override.is_sweep_override():
            raise UserError(f"{show(argument)}: a sweep cannot vary Hydra's own settings")
        if key in HYDRA_GROUPS:
            for value in values(override):
                self._check_option(override, value)
        elif not (key in HYDRA_KEYS or key.startswith(HYDRA_NODES)):
            names = ", ".join([*HYDRA_GROUPS, *HYDRA_KEYS, *(f"{node}*" for node in HYDRA_NODES)])
            raise UserError(f"{show(argument)}: of Hydra's own settings these can be set: {names}")
        if key == "hydra.verbose" and not isinstance(override.value(), bool | str):
            raise UserError(f"{show(argument)}: has to be true, false or a logger's name")

    def options(self, group: str) -> list[str]:
        """The options of a config group; empty if there is no such group."""
        if not re.fullmatch(r"\w+(/\w+)*", group, re.ASCII) or group.split("/")[0] == "schema":
            return []
        if group not in self._options:
            found = self.loader.get_group_options(group, ObjectType.CONFIG)
            self._options[group] = sorted(found)
        return self._options[group]

    def _check_option(self, override: Override, value: Any) -> None:
        group = override.key_or_group
        if isinstance(value, dict):
            return  # model={hidden_size: 64} sets keys
        if value is None and group in NO_OPTION:
            return
        options = self.options(group)
        base = BUILT_ON.get(value, value) if isinstance(value, str) else None
        if group in HYDRA_GROUPS and base in EXTRAS and base not in options:
            raise UserError(f"{group}={value} needs a package: pip install 'elstm[{EXTRAS[base]}]'")
        if not isinstance(value, str) or value.removesuffix(".yaml") not in options:
            raise UserError(no_such(f"{show_key(group)}={show(value)}", group, value, options))

    # --- the config

    def compose(
        self, arguments: Sequence[str], *, sweep: bool = False
    ) -> tuple[DictConfig, Config]:
        """Parses, composes and checks a single run: Hydra's tree and the typed config.

        Args:
            sweep: each argument has one value, but Hydra's tree is that of a sweep.

        Raises:
            UserError: naming the key.
        """
        overrides = self.parse(arguments)
        cfg = self.load(arguments, RunMode.MULTIRUN if sweep else RunMode.RUN)
        _check_data_name(overrides, cfg)
        return cfg, typed(cfg)

    def many(self) -> Callable[[Sequence[str]], Config]:
        """Returns a function from arguments with one value each to the typed config.

        It does what `compose` does in a fraction of the time for many configs: Hydra composes each
        choice of options once, and no argument is parsed twice.
        """
        trees: dict[tuple[str, ...], DictConfig] = {}
        parsed: dict[str, Override] = {}

        def config(arguments: Sequence[str]) -> Config:
            for argument in arguments:
                if argument not in parsed:
                    parsed[argument] = self._parse(argument, sweep=False)
            overrides = [parsed[argument] for argument in without_no_option(arguments)]
            chosen = tuple(
                o.input_line or ""
                for o in overrides
                if self.options(o.key_or_group) and isinstance(o.value(), str | None)
            )
            if chosen not in trees:
                trees[chosen] = self.load(chosen, RunMode.RUN)
                with open_dict(trees[chosen]):
                    del trees[chosen]["hydra"]
            cfg = copy.deepcopy(trees[chosen])
            _check_data_name(overrides, cfg)
            try:
                for override in overrides:
                    if override.input_line not in chosen:
                        _apply(override, cfg)
            except UserError:
                raise
            except Exception as error:
                raise explain(error) from error
            return typed(cfg)

        return config

    def load(self, arguments: Sequence[str], mode: RunMode) -> DictConfig:
        """Hydra's tree, not yet checked against ranges."""
        try:
            cfg = self.loader.load_configuration(
                CONFIG_NAME, without_no_option(arguments), mode, validate_sweep_overrides=False
            )
        except Exception as error:
            raise explain(error) from error
        if self.extra_dir is not None:
            self._check_foreign(cfg, arguments, mode)
        return cfg

    def _check_foreign(self, cfg: DictConfig, arguments: Sequence[str], mode: RunMode) -> None:
        """A --config-dir may add options of elstm's groups; it may not touch Hydra's settings."""
        own = Composer().load([w for w in arguments if w.lstrip("+").startswith("hydra")], mode)
        ignored = ("runtime", "overrides", "job")
        ours, theirs = plain(own.hydra), plain(cfg.hydra)
        for key in sorted({*ours, *theirs} - set(ignored)):
            if ours.get(key, MISSING) != theirs.get(key, MISSING):
                raise UserError(
                    f"--config-dir {show(self.extra_dir)}: its files change hydra.{show(key)}, "
                    "which only the command line may"
                )
        for key in ("chdir", "env_set", "env_copy", "config"):
            if ours["job"].get(key) != theirs["job"].get(key):
                raise UserError(
                    f"--config-dir {show(self.extra_dir)}: its files change hydra.job.{key}, "
                    "which cannot be changed"
                )


def _choose(argument: str) -> UserError:
    group, name = argument.lstrip("+").partition(".")[0], show(argument.partition("=")[2])
    return UserError(f"{show(argument)}: choose with {group}={name}")


def _check_data_name(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """Raises UserError where a published data set would get another name."""
    for override in overrides:
        if override.key_or_group == "data.name" and "source" not in (cfg.get("data") or {}):
            raise _choose(override.input_line or "")


def name_override(data: OwnDataConfig) -> str:
    """Returns the argument that stores the name of own data, which follows from `data.path`.

    With it a run keeps its name wherever its data and the current folder are later.
    """
    return f'data.name="{data.name}"'


def without_no_option(arguments: Sequence[str]) -> list[str]:
    """Drops experiment=null and debug=null, which Hydra does not take; the last one counts.

    Each is the default, so that it undoes the arguments of its group before it and can then go.
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

    A shell does not do it, since the value stands after a "=" and in quotes.

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
    """The value of an override, or each of a sweep's."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [v.text if isinstance(v, QuotedString) else v for v in value.list]
    if isinstance(value, RangeSweep | Glob):
        return []  # numbers, and options that are there
    return [value]


def _apply(override: Override, cfg: DictConfig) -> None:
    """Sets a key of a composed config, as Hydra does it."""
    key, value = override.key_or_group, override.value()
    exists = OmegaConf.select(cfg, key, throw_on_missing=False) is not None
    if override.is_add() and exists and not isinstance(value, dict | list):
        raise UserError(f"{show(override.input_line)}: the key exists; leave out the +")
    adds = override.is_add() or override.is_force_add()
    try:
        OmegaConf.update(cfg, key, value, merge=True, force_add=adds)
    except OmegaConfBaseException as error:
        text = f"Could not override '{key}': {override.input_line}"
        raise ConfigCompositionException(text) from error


def typed(cfg: DictConfig) -> Config:
    """The typed config of a tree that Hydra composed.

    Raises:
        UserError: naming the key.
    """
    return config_from(flatten(cfg))


def plain(cfg: DictConfig) -> dict[Any, Any]:
    """A tree of dictionaries; interpolations stay as they are written."""
    tree = OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)
    assert isinstance(tree, dict)
    return tree


def flatten(cfg: DictConfig) -> dict[str, Any]:
    """A config without its `hydra`, flat: "model.hidden_size" -> 128."""
    tree = plain(cfg)
    flat: dict[str, Any] = {}

    def visit(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                if CODE.search(str(name)):
                    raise UserError(
                        f"{show_key(key)}: {show(name)} is refused everywhere: configs hold "
                        "values, never code"
                    )
                visit(child, f"{key}.{name}" if key else str(name))
        else:
            flat[key] = node

    tree.pop("hydra", None)
    visit(tree, "")
    return flat
