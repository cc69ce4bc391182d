"""Small runs on the digits, and their records without the clocks: for comparing runs bit by bit."""

from __future__ import annotations

import csv
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from elstm.config.schema import (
    AdamConfig,
    BNLSTMConfig,
    Config,
    DigitsConfig,
    ELSTMBNConfig,
    GRUConfig,
    LayerNormLSTMConfig,
    LSTMConfig,
    ModelConfig,
    SchedulerConfig,
    TrainerConfig,
)
from elstm.records import pictures
from elstm.records.tracking import CLOCK_COLUMNS, TAGS

MODELS: dict[str, Callable[..., ModelConfig]] = {
    "lstm": LSTMConfig,
    "gru": GRUConfig,
    "ln_lstm": LayerNormLSTMConfig,
    "bn_lstm": BNLSTMConfig,
    "bn_lstm_input": partial(
        ELSTMBNConfig, name="bn_lstm_input", normalize_hidden=False, cell_norm="none"
    ),
    "elstm_bn": ELSTMBNConfig,
}
CLOCKS = {"train_seconds", "wall_seconds", "began", "files"}  # of a checkpoint


def small_config(
    name: str = "elstm_bn",
    *,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    scheduler: SchedulerConfig | None = None,
    lr: float = 1e-2,
    seed: int = 0,
    **trainer: Any,
) -> Config:
    """5 steps an epoch, on one thread; 2 epochs unless `trainer` says otherwise."""
    data = {"pixels_per_step": 8, "batch_size": 256, **(data or {})}
    trainer = {"max_epochs": 2, "threads": 1, "device": "cpu", "progress": False, **trainer}
    return Config(
        model=MODELS[name](hidden_size=8, **(model or {})),
        data=DigitsConfig(name="digits", **data),
        optimizer=AdamConfig(lr=lr),
        scheduler=scheduler or SchedulerConfig(),
        trainer=TrainerConfig(**trainer),
        seed=seed,
    )


def rows(run_dir: Path) -> list[dict[str, str]]:
    """metrics.csv, without the clocks."""
    with (run_dir / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in CLOCK_COLUMNS} for row in csv.DictReader(file)
        ]


def events(run_dir: Path) -> list[tuple[int, str, bytes]]:
    """(step, tag, value) that TensorBoard shows of the event files, in order, without the clocks.

    A SessionLog.START makes it drop what it has from that step on.
    """
    found: list[tuple[int, str, bytes]] = []
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                found = [e for e in found if e[0] < event.step]
            found += [(event.step, v.tag, v.SerializeToString()) for v in event.summary.value]
    clocks = {TAGS[column] for column in CLOCK_COLUMNS if column in TAGS}
    return [e for e in found if e[1] not in clocks and not e[1].startswith("_hparams_")]


def last(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)


def assert_same_runs(a: Path, b: Path) -> None:
    """The same weights, states and records, bit by bit."""
    for name in ("last", "best"):
        path = Path("checkpoints") / f"{name}.pt"
        one, other = (torch.load(d / path, weights_only=True) for d in (a, b))
        assert differences(one, other) == []
    assert rows(a) == rows(b)
    assert events(a) == events(b)
    for file in ("norms.csv", "over_time.csv"):
        one, other = (d / file for d in (a, b))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {a.keys() ^ b.keys()}"]
        keys = [k for k in a if k not in CLOCKS]
        return [d for k in keys for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [where]
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}[{i}]")]
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return []
    return [] if a == b else [f"{where}: {a} {b}"]


def at(owner: Any, name: str, number: int, action: Callable[[], None]) -> Callable[..., Any]:
    """`owner.name`, with `action` after its call of that number, counted from 1."""
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if next(calls) == number:
            action()
        return result

    return wrapped


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def no_picture(*_: Any) -> bytes:
    return b"a picture"


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Replaces all pictures of a run, since matplotlib takes most of the time of a tiny one."""
    for name in ("gradient_figure", "confusion_figure", "mistakes_figure", "examples_figure"):
        patch.setattr(pictures, name, no_picture)
