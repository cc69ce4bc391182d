"""Checks configs and builds the typed ones. An error names the key, its value and the allowed ones.

A config is a flat mapping here, "model.hidden_size" -> 128, whether Hydra composed it or a run
folder holds it. Both pass the same checks. Nothing in it is executed. This module resolves
interpolations, which may only name another key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from elstm.config import removed
from elstm.config.data_options import (
    DATA_NAME,
    DATA_ROOT,
    AugmentPicturesConfig,
    UserDataConfig,
)
from elstm.config.fields import MISSING, leaf, leaf_values
from elstm.config.hints import keys_of, unknown_key, unknown_option
from elstm.config.schema import (
    SCHEMAS,
    BNLSTMConfig,
    Config,
    DigitsConfig,
    ELSTMBNConfig,
    GRUConfig,
    LayerNormLSTMConfig,
    ModelConfig,
    SGDConfig,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
)
from elstm.config.values import check_fields, fits, types_of, wrong_value
from elstm.data.catalog import DATA_SETS, check_sizes, name_from_path
from elstm.errors import UserError, show, show_key

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}", re.ASCII)
MAX_RESOLVED = 10_000  # characters of a value: a few keys could unfold into gigabytes


def config_from(flat: Mapping[str, Any], *, stored: bool = False) -> Config:
    """Builds the typed config of a flat mapping; keys that are missing keep their defaults.

    Args:
        stored: whether the mapping is the config of a run folder, which may have removed settings.

    Raises:
        UserError: an unknown key, a wrong value, or an interpolation that names no key.
    """
    rest = resolve(flat)
    if stored:
        rest = _without_removed(rest)
    groups: dict[str, Any] = {}
    for group in SCHEMAS:
        groups[group] = _take(_schema(group, option_name(rest, group)), group, rest)
    groups["trainer"] = _take(TrainerConfig, "trainer", rest)
    groups["tracking"] = _take(TrackingConfig, "tracking", rest)
    groups["sweep"] = _take(SweepConfig, "sweep", rest)
    config = Config(**groups, seed=rest.pop("seed", 0))
    for key in rest:
        raise unknown_key(key, keys_of(config))
    validate(config)
    return config


def model_from(flat: Mapping[str, Any]) -> ModelConfig:
    """Builds the typed config of a model alone, from its settings as a checkpoint holds them.

    Raises:
        UserError: an unknown key, or a wrong value.
    """
    rest = _without_removed(flat)
    model: ModelConfig = _take(_schema("model", option_name(rest, "model")), "model", rest)
    for key in rest:
        raise UserError(f"there is no setting {show_key(key)}")
    check_fields(model, "model")
    return model


def _without_removed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Drops removed settings that have their defaults; raises UserError at another value."""
    for key, value in flat.items():
        if key in removed.REMOVED and not removed.is_default(key, value):
            raise UserError(
                f"{key}={show(value)}: this setting was removed, so this version of elstm cannot "
                "load the run; the last commit that supports it is "
                f"{removed.REMOVED[key][1]}: check out that commit"
            )
    dropped = {*removed.REMOVED}
    if flat.get("data.name") == "digits":
        dropped.add("data.root")  # earlier versions stored it for every data set
    return {key: value for key, value in flat.items() if key not in dropped}


def option_name(flat: Mapping[str, Any], group: str) -> Any:
    """Returns the option of a group in a config: its `name`, or for user data its `source`."""
    name = flat.get(f"{group}.name", MISSING)
    return flat.get(f"{group}.source", name)


def _schema(group: str, name: Any) -> type[Any]:
    """Returns the dataclass of a group's option."""
    if name == MISSING:
        raise UserError(f"{group}.name has to be given: choose it with {group}=OPTION")
    schemas = SCHEMAS[group]
    if not isinstance(name, str) or name not in schemas:
        raise UserError(unknown_option(f"{group}.name={show(name)}", group, name, schemas))
    return schemas[name]


def _take(schema: type[Any], prefix: str, flat: dict[str, Any]) -> Any:
    """Moves the keys of `schema` out of `flat` into an instance of it."""
    values: dict[str, Any] = {}
    for each in fields(schema):
        key, inner = f"{prefix}.{each.name}", each.metadata.get("nested")
        if inner is not None:
            values[each.name] = _take(inner, key, flat)
        elif key in flat:
            values[each.name] = flat.pop(key)
    for name, value in values.items():
        kinds = types_of(schema, name)
        if type(value) is int and float in kinds and abs(value) < 2**53:
            values[name] = float(value)
        elif type(value) is int and int not in kinds and str in kinds:
            values[name] = show(value)  # data.path=2020, as Hydra composes it
    return schema(**values)


def resolve(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces ${other.key} by its value, and the default of data.root by the environment's."""
    known: dict[str, Any] = {}

    def value_of(key: str, depth: int) -> Any:
        if key not in known:
            known[key] = found_for(key, depth)
        return known[key]

    def found_for(key: str, depth: int) -> Any:
        value = flat[key]
        if not isinstance(value, str) or "${" not in value:
            return value
        if key == "data.root" and value == DATA_ROOT:
            return os.environ.get("ELSTM_DATA") or "data"
        if key == "data.name" and value == DATA_NAME and "data.path" in flat:
            return name_from_path(value_of("data.path", depth + 1))
        given = f"{show_key(key)}={show(value)}"
        if "${" in _REFERENCE.sub("", value):
            raise UserError(
                f"{given}: only ${{other.key}} is allowed here, with a full key and no resolver"
            )
        for name in _REFERENCE.findall(value):
            if name not in flat:
                raise UserError(f"{given}: there is no key {show(name)}")
        if depth > 10:
            raise UserError(f"{given}: the interpolation leads back to itself")
        single = _REFERENCE.fullmatch(value)
        if single:
            return value_of(single[1], depth + 1)
        parts = [str(value_of(name, depth + 1)) for name in _REFERENCE.findall(value)]
        if sum(map(len, parts)) > MAX_RESOLVED:
            raise UserError(f"{given}: the interpolations make a text that is too long")
        return _REFERENCE.sub(lambda m: str(value_of(m[1], depth + 1)), value)

    return {key: value_of(key, 0) for key in flat}


def validate(config: Config) -> None:
    """Raises UserError naming the first key whose value is wrong."""
    for group in SCHEMAS:
        node = getattr(config, group)
        option = getattr(node, "source", getattr(node, "name", MISSING))
        if type(node) is not _schema(group, option):
            raise UserError(f"{group}.name={node.name} does not fit {type(node).__name__}")
    for name, node in vars(config).items():
        if not is_dataclass(node):
            if not fits(node, Config, name):
                raise wrong_value(name, node, Config, name)
            continue
        for part, value in leaf_values(node).items():
            found = leaf(type(node), part)
            assert found is not None
            owner, field = found
            if not fits(value, owner, field.name):
                raise wrong_value(f"{name}.{part}", value, owner, field.name)
    _check_together(config)


def _check_user_data(data: UserDataConfig) -> None:
    """Checks the keys of user data and of cross-validation."""
    if not re.fullmatch(r"\w[\w.-]{0,199}", data.name, re.ASCII):
        raise UserError(
            f"data.name={show(data.name)}: it names folders, so it has to start with a letter or "
            "digit and to consist of letters, digits, _, - and ."
        )
    for name in ("path", "id", "label", "group"):
        if getattr(data, name, None) == "":
            raise UserError(f"data.{name} has to be given")
    if (data.folds is None) != (data.fold is None):
        raise UserError("data.folds=K and data.fold=0 ... K - 1 have to be given together")
    if data.folds is not None and data.fold is not None and data.fold >= data.folds:
        raise UserError(
            f"data.fold={data.fold}: has to be at most {data.folds - 1} with "
            f"data.folds={data.folds}"
        )


def _check_gain(model: ELSTMBNConfig) -> None:
    if model.cell_norm == "center" and model.gamma_c is not None:
        raise UserError(
            f"model.gamma_c={show(model.gamma_c)} cannot be combined with model.cell_norm=center, "
            "which does not scale: leave it out, or write model.gamma_c=null"
        )


def _check_together(config: Config) -> None:
    """Checks keys whose values depend on each other."""
    data = config.data
    augment = getattr(data, "augment", None)
    pictures = augment if isinstance(augment, AugmentPicturesConfig) else None
    if pictures and pictures.fill and not (pictures.shift or pictures.rotation):
        raise UserError(
            f"data.augment.fill={pictures.fill} needs data.augment.shift or "
            "data.augment.rotation above 0, which bring something in"
        )
    if isinstance(data, UserDataConfig):
        _check_user_data(data)
    elif isinstance(data, DigitsConfig):
        source = DATA_SETS[data.name]
        check_sizes(data, source.pixels, source.train_images)
    model = config.model
    if config.trainer.sync_batch_stats and isinstance(model, BNLSTMConfig):
        if model.recompute:
            raise UserError(
                "model.recompute=true cannot be combined with trainer.sync_batch_stats=true: "
                "choose one"
            )
        if model.backend not in ("auto", "reference"):
            raise UserError(
                f"model.backend={show(model.backend)} cannot be combined with "
                "trainer.sync_batch_stats=true: allowed are auto and reference"
            )
        if config.trainer.compile:
            raise UserError(
                "trainer.compile=true cannot be combined with trainer.sync_batch_stats=true: the "
                "compiler cannot trace the exchange between the processes"
            )
    averaged = config.trainer.ema_decay is not None
    if averaged and not config.trainer.recompute_batches and isinstance(model, BNLSTMConfig):
        raise UserError(
            "trainer.ema_decay cannot be combined with trainer.recompute_batches=0, because "
            "averaged weights need recomputed statistics: set trainer.recompute_batches=1 or "
            "trainer.ema_decay=null"
        )
    if isinstance(model, ELSTMBNConfig):
        _check_gain(model)
    limited = {GRUConfig: ("auto", "reference"), LayerNormLSTMConfig: ("cpu", "auto", "reference")}
    allowed = limited.get(type(model), (model.backend,))
    if model.backend not in allowed:
        raise UserError(
            f"model.backend={model.backend} cannot be combined with model={model.name}: allowed "
            f"are {', '.join(allowed[:-1])} and {allowed[-1]}"
        )
    trainer = config.trainer
    if trainer.overfit_batches is not None and trainer.overfit_batches % trainer.accumulate:
        raise UserError(
            f"trainer.overfit_batches={trainer.overfit_batches} has to be a multiple of "
            f"trainer.accumulate={trainer.accumulate}, the batches of a step"
        )
    if not config.trainer.init_head and config.trainer.init_from is None:
        raise UserError("trainer.init_head=false needs trainer.init_from=RUN_OR_CHECKPOINT")
    optimizer = config.optimizer
    if isinstance(optimizer, SGDConfig) and optimizer.nesterov and not optimizer.momentum:
        raise UserError("optimizer.nesterov=true needs optimizer.momentum above 0")
