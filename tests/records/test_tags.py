"""The names of curves, histograms and pictures in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context as HParamsContext
from training_runs import small_config

from elstm.config.data_options import AugmentPicturesConfig
from elstm.models import SequenceClassifier
from elstm.nn import ELSTMBN
from elstm.records import tags, tracking
from elstm.records.descriptions import hparams
from elstm.records.hparams import RESULTS
from elstm.records.tracking import Tracker

POSITION = {"epoch": 0.5, "step": 7, "train_seconds": 1.5, "wall_seconds": 2.5}


def record(tracker: Tracker, step: int) -> None:
    at = {**POSITION, "step": step}
    tracker.log(at, dict.fromkeys(tags.SCALARS, 0.5))
    tracker.log_norms(SequenceClassifier(ELSTMBN(3, 4, max_steps=5), 2), at)
    tracker.log_picture("gradient", lambda: b"\x89PNG...", step)


def test_accuracy_and_loss_sort_first_and_diagnostics_last() -> None:
    groups = sorted({tag.partition("/")[0] for tag in tags.TAGS.values()})
    assert groups[:3] == ["accuracy", "loss", "optimization"]  # the first two are open
    for quantity in ("accuracy", "loss"):
        of_group = sorted(tag for tag in tags.TAGS.values() if tag.startswith(f"{quantity}/"))
        assert of_group == [f"{quantity}/{part}" for part in ("test", "train", "val", "val_raw")]


def experiment(logdir: Path) -> Any:
    """Returns what TensorBoard makes of the descriptions of all runs."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    flags = SimpleNamespace(hparams=None, generic_data="true")
    context = TBContext(data_provider=provider, logdir=str(logdir), flags=flags)
    backend = HParamsContext(context)
    tags = backend.hparams_metadata(RequestContext(), "")
    return backend.experiment_from_metadata(RequestContext(), "", True, tags, None)


def test_hparams_have_the_columns_of_all_models_and_the_results_in_order(tmp_path: Path) -> None:
    augmented = {"augment": AugmentPicturesConfig(shift=2)}
    for name, data in (("lstm", None), ("bn_lstm", augmented), ("gru", None)):
        (tmp_path / name).mkdir()
        tracker = Tracker(tmp_path / name)
        values = hparams(small_config(name, data=data))
        tracker.start(values, changed=["optimizer.lr"])
        tracker.close()
        found = experiment(tmp_path)
        columns = [info.name for info in found.hparam_infos]
        assert columns[:4] == ["data", "model", "optimizer.lr", "seed"]
        assert set(values) <= set(columns)
    assert "model.gamma_c" in columns
    assert "data.augment" not in columns  # a group, which has no value of its own
    assert [info.name.tag for info in found.metric_infos] == [
        "results/best_val_accuracy", "accuracy/test", "loss/test", "results/train_seconds",
    ]  # fmt: skip


def test_a_run_without_an_end_shows_no_results(tmp_path: Path) -> None:
    seen = {}
    for name in ("failed", "done"):
        (tmp_path / name).mkdir()
        tracker = Tracker(tmp_path / name)
        tracker.start({"seed": 1})
        tracker.log({**POSITION, "step": 1}, {"val_accuracy": 0.75})
        if name == "done":
            tracker.log(POSITION, {"test_accuracy": 0.5, "test_loss": 0.25})
            tracker.log_end(7, {"best_val_accuracy": 0.75, "train_seconds": 1.5})
        tracker.close()
        reader = EventAccumulator(str(tmp_path / name)).Reload()
        seen[name] = sorted(reader.Tags()["scalars"])
    assert seen["failed"] == ["accuracy/val"]
    results = {tags.TAGS[key] for key in RESULTS}
    assert results < set(seen["done"])
    assert not results & set(seen["failed"])


def test_a_run_with_the_earlier_tags_resumes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(tracking, "tags_after", lambda existing: {**tags.TAGS, **tags.EARLIER})
        tracker = Tracker(tmp_path)
        tracker.start({"seed": 1})
        record(tracker, 7)
        sizes = tracker.sizes()
        tracker.close()
    for step in (8, 9):  # a second resume too
        tracker = Tracker(tmp_path)
        tracker.start({"seed": 1}, sizes, step=step)
        record(tracker, step)
        sizes = tracker.sizes()
        tracker.close()
    reader = EventAccumulator(str(tmp_path)).Reload()
    assert set(reader.Tags()["scalars"]) == {
        tags.EARLIER.get(column, tag) for column, tag in tags.SCALARS.items()
    }
    for tag in reader.Tags()["scalars"]:
        assert [event.step for event in reader.Scalars(tag)] == [7, 8, 9], tag
    assert reader.Tags()["images"] == ["gradient/hidden"]
    kinds = {tag.rpartition("/")[0] for tag in reader.Tags()["histograms"]}
    assert kinds == {"gamma", "beta", "running_mean", "running_var"}


def test_a_run_that_has_both_kinds_of_earlier_tags_keeps_them() -> None:
    """It started before the first change of names, and was resumed before the second."""
    found = tags.tags_after({*tags.EARLIER.values(), *tags.BETWEEN.values()})
    assert found == {**tags.TAGS, **tags.EARLIER, **tags.BETWEEN}


def test_a_new_run_resumes_with_the_new_tags(tmp_path: Path) -> None:
    sizes = None
    for step in (7, 8):
        tracker = Tracker(tmp_path)
        tracker.start({"seed": 1}, sizes, step=step)
        record(tracker, step)
        sizes = tracker.sizes()
        tracker.close()
    reader = EventAccumulator(str(tmp_path)).Reload()
    assert set(reader.Tags()["scalars"]) == set(tags.SCALARS.values())
    assert [event.step for event in reader.Scalars("accuracy/val")] == [7, 8]
