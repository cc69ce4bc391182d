"""Describes the columns of TensorBoard's HPARAMS tab, settings and the four results of a run.

TensorBoard uses the first description that it finds for all runs. Every run therefore writes one
with the settings of all models and data sets, so that none hides a column that another run needs.
Without a description TensorBoard sorts the results by tag, among the curves.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from elstm.config.fields import leaves
from elstm.config.schema import SCHEMAS, Config, TrainerConfig, settings_without_effect
from elstm.config.values import types_of
from elstm.records.tags import TAGS

RESULTS = {  # by key of TAGS, in the order of the columns
    "best_val_accuracy": "best validation accuracy",
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "train_seconds": "training seconds",
}
FIRST = ("model", "data", "seed")  # columns that are shown in any case


def columns(changed: Collection[str]) -> Summary:
    """Returns the description of the columns.

    Args:
        changed: keys that the run's command sets. The tab shows these settings first.
    """
    first = {*FIRST, *changed}
    settings = [
        api_pb2.HParamInfo(name=key, type=kind, differs=key in first)
        for key, kind in _settings().items()
    ]
    for info in settings:
        if info.name == "model":  # with a box for each, which shows or hides its runs
            info.domain_discrete.extend(SCHEMAS["model"])
    results = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=TAGS[key]), display_name=text)
        for key, text in RESULTS.items()
    ]
    content = HParamsPluginData(
        experiment=api_pb2.Experiment(hparam_infos=settings, metric_infos=results)
    )
    described = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=described)])


@lru_cache
def _settings() -> dict[str, Any]:
    """Returns the settings that `elstm.records.descriptions.hparams` may name, and their types."""
    left_out = settings_without_effect()
    owners = [("", Config), ("trainer.", TrainerConfig)]
    for group, schemas in SCHEMAS.items():
        owners += [(f"{group}.", schema) for schema in schemas.values()]
    found: dict[str, set[type]] = {group: {str} for group in SCHEMAS}
    for prefix, owner in owners:
        for name, holder, field in leaves(owner):
            key = f"{prefix}{name}"
            if key not in left_out and (prefix or name == "seed") and name != "name":
                found.setdefault(key, set()).update(types_of(holder, field.name))
    numbers = {int, float, type(None)}
    return {
        key: api_pb2.DATA_TYPE_FLOAT64 if types <= numbers else api_pb2.DATA_TYPE_STRING
        for key, types in found.items()
    }
