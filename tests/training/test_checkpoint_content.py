"""Every value of a checkpoint is checked before torch uses it, and a mutated one is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import at, last, send, small_config, without_pictures

from elstm.config.schema import (
    AdamConfig,
    Config,
    OptimizerConfig,
    PlateauConfig,
    RMSpropConfig,
    SGDConfig,
)
from elstm.errors import UserError
from elstm.training import checkpoint, trained
from elstm.training import content as content_checks
from elstm.training.run import run
from elstm.training.snapshot import Snapshot
from elstm.training.step import TrainStep
from elstm.training.trained import check_fits

OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adam": AdamConfig(),
    "adamw": AdamConfig(name="adamw", weight_decay=0.1, decay_all=False),
    "rmsprop": RMSpropConfig(momentum=0.9),
    "sgd": SGDConfig(),
    "sgd_plain": SGDConfig(momentum=0.0),
}
# Values of which any is as good as another: what was measured, and not what is used.
MEASURED = {
    ".state.train_loss", ".state.train_seconds", ".state.wall_seconds", ".state.best_epoch",
    ".state.best_val_accuracy", ".state.waited", ".state.evaluated_step", ".window.began",
    ".window.norms", ".schedule.waited",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)


def resumed(config: Config, folder: Path) -> Snapshot:
    """A run that has restored its last checkpoint, before its first step."""
    taken: list[Snapshot] = []

    def restore(self: Snapshot, *_: Any) -> Any:
        taken.append(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "restore", restore)
        with pytest.raises(KeyboardInterrupt):
            run(config, folder, resume=True)
    accelerator = SimpleNamespace(  # Accelerate has forgotten the run's own
        device=torch.device("cpu"), num_processes=1, process_index=0, scaler=None
    )
    parts = taken[0].parts
    taken[0].parts = dataclasses.replace(
        parts, accelerator=accelerator, optimizer=parts.optimizer.optimizer
    )
    return taken[0]


def refused(config: Config, snapshot: Snapshot, content: dict[str, Any]) -> bool:
    """Tells whether a resume refuses a checkpoint, with the one error that is allowed."""
    try:
        checkpoint._check_plain(content, 10**9)
        check_fits(content, config)
    except ValueError as error:
        message = str(error)
    else:
        try:
            snapshot.restore(content, snapshot.config)
        except UserError as error:
            message = str(error)
        else:
            return False
    return "Error" not in message and len(message) < 500


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Path, container, key and value of every leaf."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        place = f"{path}.{key}"
        if isinstance(item, dict | list):
            yield place, value, key, item
            yield from leaves(item, place)
        else:
            yield place, value, key, item


def mutations(value: Any) -> Iterator[Any]:
    """Values of another type, shape, sign or size."""
    yield from (None, "x\x1b[31m", [], {}, [torch.zeros(2)], torch.zeros(2, 3), True, 1.5, -7)
    yield from (2**70, -(2**70), 10**400, math.inf, -1e30)
    if isinstance(value, Tensor):
        yield value.double() if value.dtype != torch.float64 else value.half()
        yield value.flatten()[:1]
        yield torch.cat((value.flatten(), value.flatten()))
        yield value[None]
        if value.is_floating_point():
            yield torch.full_like(value, math.nan)
            yield torch.full_like(value, -math.inf)
    elif isinstance(value, float):
        yield from (math.nan, torch.tensor(value))
    elif isinstance(value, int):
        yield from (value + 1, float(value), torch.tensor(value))
    elif isinstance(value, dict | list):
        for shorter in (copy.copy(value),):
            if shorter:
                shorter.pop(next(iter(shorter))) if isinstance(shorter, dict) else shorter.pop()
                yield shorter


def is_of_its_own_kind(place: str) -> bool:
    """Returns whether a value is not one of many alike; only the first few of each kind are."""
    group, _, rest = place[1:].partition(".")
    if group == "model":
        return rest.endswith("_l0") or "norm_c" in rest or not rest
    if group == "ema":
        return rest in ("", "decay", "model", "model.head.bias", "model.rnn.norm_c_l0.running_var")
    number = rest.rpartition("state.")[2].partition(".")[0] if group == "optimizer" else "0"
    if rest.startswith("param_groups.0.params."):
        return rest.endswith("params.0")
    if group == "settings":
        return rest in ("", "seed", "model.eps", "model.cell_norm", "optimizer.lr")
    return number in ("state", "0", "3") and not rest.startswith("class_names.")


def is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and repr(a) == repr(b)


def content_of(snapshot: Snapshot, files: Any) -> dict[str, Any]:
    return {**snapshot.content(files), "format": checkpoint.FORMAT, "version": checkpoint.VERSION}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_mutated_value_is_refused_or_has_no_part_in_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, function in ((trained, "_build"), (content_checks, "_state_after_a_step")):
        original = getattr(module, function)  # the same each time
        known: list[Any] = []

        def once(*args: Any, original: Any = original, known: list[Any] = known) -> Any:
            if not known:
                known.append(original(*args))
            return known[0]

        monkeypatch.setattr(module, function, once)
    config = dataclasses.replace(
        small_config(
            "elstm_bn" if name == "adam" else "lstm",
            max_epochs=3,
            log_every=2,
            scheduler=PlateauConfig() if name == "adam" else None,
            ema_decay=0.9 if name == "adam" else None,
        ),
        optimizer=OPTIMIZERS[name],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 8, send(signal.SIGTERM)))
        run(config, tmp_path)
    whole = last(tmp_path)
    assert whole["window"]["steps"] > 0
    snapshot = resumed(config, tmp_path)
    assert not refused(config, snapshot, whole)
    clean = snapshot.content(whole["files"])
    taken, places = [], [place for place, *_ in leaves(whole)]
    if name != "adam":  # what the first one does not have
        places = [place for place in places if place.startswith((".optimizer", ".schedule"))]
    for place in filter(is_of_its_own_kind, places):
        value = next(v for p, _, _, v in leaves(whole) if p == place)
        for mutant in mutations(value):
            content = _with(whole, place, mutant)
            if is_same(mutant, value) or refused(config, snapshot, content):
                continue
            if place not in MEASURED and not _equal(clean, snapshot.content(whole["files"])):
                taken.append(f"{place}: {mutant!r:.80}")
    assert taken == []
    assert not refused(config, snapshot, whole)
    assert _equal(clean, snapshot.content(whole["files"]))


def _with(content: dict[str, Any], place: str, mutant: Any) -> dict[str, Any]:
    """A copy with another value at one place."""
    result = _copy(content)
    for path, container, key, _ in leaves(result):
        if path == place:
            container[key] = mutant
            return result
    raise AssertionError(place)


def _copy(value: Any) -> Any:
    """Copies the containers alone."""
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return is_same(a, b)
