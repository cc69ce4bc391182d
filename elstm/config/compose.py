"""Composes the arguments of a command line into a typed config, or raises one error message.

Arguments are checked before Hydra composes them, and the full config before anything runs.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from elstm.cli import summary
from elstm.config.check import config_from
from elstm.config.data_options import UserDataConfig
from elstm.config.extras import require_extras
from elstm.config.fields import MISSING
from elstm.config.help import CONFIG_DIR, find_config_dir, find_extra_dir
from elstm.config.hydra_nodes import Folder, register
from elstm.config.hydra_private import (
    Callbacks,
    ConfigLoaderImpl,
    Hydra,
    create_config_search_path,
)
from elstm.config.messages import explain
from elstm.config.overrides import CODE, OverrideParser, choose_option, without_no_option
from elstm.config.schema import Config
from elstm.errors import UserError, show, show_key

CONFIG_NAME = "config"
NO_GROUPS = ("study",)  # conf/study: read by scripts/study.py


register()


class _Loader(ConfigLoaderImpl):
    """Hides the folders of conf/ that are not config groups.

    Hydra takes every folder for a group and would offer it in completions and errors.
    """

    def get_group_options(self, group_name: str, *args: Any, **filters: Any) -> list[str]:
        if group_name.partition("/")[0] in NO_GROUPS:
            return []
        options = super().get_group_options(group_name, *args, **filters)
        return options if group_name else [name for name in options if name not in NO_GROUPS]


class Composer:
    """Composes configs with Hydra and checks them.

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
            folder = find_extra_dir(extra_dir)
            self.search_path.prepend(
                CONFIG_DIR, f"config-dir://{folder}", SearchPathQuery("schema")
            )
        Plugins.instance().register(Folder)
        self.loader = _Loader(self.search_path)
        self._overrides = OverrideParser(self.loader)

    def hydra(self) -> Hydra:
        """Returns Hydra itself, over the same search path."""
        return Hydra("train", self.loader)

    def hydra_context(self) -> HydraContext:
        """Returns the context that plugins of launchers and sweepers need."""
        return HydraContext(config_loader=self.loader, callbacks=Callbacks())

    # --- the arguments

    def parse(self, arguments: Sequence[str], *, sweep: bool = False) -> list[Override]:
        """Parses and checks arguments; see OverrideParser.parse."""
        return self._overrides.parse(arguments, sweep=sweep)

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
        """Returns a function that maps arguments with one value each to the typed config.

        It does what `compose` does in a fraction of the time for many configs: Hydra composes each
        choice of options once, and no argument is parsed twice.
        """
        trees: dict[tuple[str, ...], DictConfig] = {}
        parsed: dict[str, Override] = {}

        def config(arguments: Sequence[str]) -> Config:
            for argument in arguments:
                if argument not in parsed:
                    parsed[argument] = self._overrides.parse_one(argument, sweep=False)
            overrides = [parsed[argument] for argument in without_no_option(arguments)]
            chosen = tuple(
                o.input_line or ""
                for o in overrides
                if self._overrides.options(o.key_or_group) and isinstance(o.value(), str | None)
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
        """Composes Hydra's tree, without a check against ranges."""
        try:
            cfg = self.loader.load_configuration(
                CONFIG_NAME, without_no_option(arguments), mode, validate_sweep_overrides=False
            )
        except Exception as error:
            raise explain(error, arguments) from error
        if self.extra_dir is not None:
            self._check_foreign(cfg, arguments, mode)
        return cfg

    def _check_foreign(self, cfg: DictConfig, arguments: Sequence[str], mode: RunMode) -> None:
        """Raises UserError if --config-dir changes settings of Hydra."""
        own = Composer().load([a for a in arguments if a.lstrip("+").startswith("hydra")], mode)
        ignored = ("runtime", "overrides", "job")
        ours, theirs = plain(own.hydra), plain(cfg.hydra)
        for key in sorted({*ours, *theirs} - set(ignored)):
            if ours.get(key, MISSING) != theirs.get(key, MISSING):
                raise UserError(
                    f"--config-dir {show(self.extra_dir)}: its files change hydra.{show(key)}, "
                    "which only the command line may change"
                )
        for key in ("chdir", "env_set", "env_copy", "config"):
            if ours["job"].get(key) != theirs["job"].get(key):
                raise UserError(
                    f"--config-dir {show(self.extra_dir)}: its files change hydra.job.{key}, "
                    "which cannot be changed"
                )


def _check_data_name(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """Raises UserError if a published data set gets another name."""
    if "source" in (cfg.get("data") or {}):
        return
    for override in overrides:
        given, line = override.value(), override.input_line or ""
        if override.key_or_group == "data.name":
            raise choose_option(line)
        if override.key_or_group == "data" and isinstance(given, dict) and "name" in given:
            raise UserError(f"{show(line)}: choose with data={show(given['name'])}")


def name_override(data: UserDataConfig) -> str:
    """Returns the argument that stores the name of user data, which is derived from `data.path`.

    A run then keeps its name if its data or the current folder move later.
    """
    return f'data.name="{data.name}"'


def _apply(override: Override, cfg: DictConfig) -> None:
    """Sets a key of a composed config, as Hydra does it."""
    key, value = override.key_or_group, override.value()
    if override.is_add() and _exists(cfg, key) and not isinstance(value, dict | list):
        raise UserError(f"{show(override.input_line)}: the key exists; leave out the +")
    adds = override.is_add() or override.is_force_add()
    try:
        OmegaConf.update(cfg, key, value, merge=True, force_add=adds)
    except OmegaConfBaseException as error:
        text = f"Could not override '{key}': {override.input_line}"
        raise ConfigCompositionException(text) from error


def _exists(cfg: DictConfig, key: str) -> bool:
    """Returns whether a key has a value, without resolving it: other keys may not be given yet."""
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, group) if group else cfg
    if not isinstance(node, DictConfig):
        return False
    return OmegaConf.is_interpolation(node, name) or OmegaConf.select(node, name) is not None


def typed(cfg: DictConfig) -> Config:
    """Returns the typed config of a tree that Hydra composed.

    Raises:
        UserError: naming the key, or a package that it needs.
    """
    config = config_from(flatten(cfg))
    if config.trainer.resume is not None:  # elstm-train reads it before anything is composed
        raise UserError(
            f"trainer.resume={show(config.trainer.resume)} has to be an argument of its own, "
            "trainer.resume=RUN_DIR, because a resumed run has the config in its folder"
        )
    require_extras(config.tracking)
    return config


def plain(cfg: DictConfig) -> dict[Any, Any]:
    """Returns a tree of dictionaries; interpolations stay as they are written."""
    tree = OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)
    assert isinstance(tree, dict)
    return tree


def flatten(cfg: DictConfig) -> dict[str, Any]:
    """Returns a config without its `hydra`, flat: "model.hidden_size" -> 128."""
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
