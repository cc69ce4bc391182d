"""Registers with Hydra the dataclasses onto which YAML is merged, and resolvers of folder names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import version
from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf

from elstm.config.fields import MISSING
from elstm.config.hydra_private import FileConfigSource
from elstm.config.run_folder import run_changes, run_name
from elstm.config.schema import SCHEMAS, SearchConfig, SweepConfig, TrackingConfig, TrainerConfig
from elstm.data.catalog import name_from_path
from elstm.files.bounded import Damaged, read_config


@dataclass
class Root:
    """Holds the root onto which YAML is merged; each group has its own schema."""

    model: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0


@dataclass
class SearchNode(SearchConfig):
    params: Any = None  # the keys that the search varies, if an experiment's file lists them


class Folder(FileConfigSource):
    """Reads --config-dir as Hydra does, but checks its files first."""

    @staticmethod
    def scheme() -> str:
        return "config-dir"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        try:
            read_config(path)  # refuses large files, aliases that unfold into a huge tree, and tags
        except Damaged as error:
            raise ConfigLoadError(f"--config-dir {self.path}: {error}") from error
        return super().load_config(config_path)


def register() -> None:
    """Registers the schemas and the resolvers; a second call changes nothing."""
    version.setbase("1.3")
    store = ConfigStore.instance()
    # Hydra copies the full store in each composition, a sixth of its time, although it also copies
    # each schema that it loads from it. A singleton needs no copy.
    store.__dict__["__deepcopy__"] = lambda _: store
    store.store(name="schema", node=Root, provider="elstm")
    store.store(group="schema", name="search", node=SearchNode, provider="elstm")
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema, provider="elstm")
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("run_changes", run_changes, replace=True)
    OmegaConf.register_new_resolver("data_name", name_from_path, replace=True)


register()
