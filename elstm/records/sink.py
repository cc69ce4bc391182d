"""Defines the interface of trackers beside TensorBoard, such as Weights & Biases and MLflow.

Each one is a `Sink` in a separate file, which alone imports its package. elstm/records/feeds.py
calls it. A further tracker is such a file, an entry in `SINKS` there, a field of `TrackingConfig`
and an extra of the same name in pyproject.toml.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Description:
    """Holds what a tracker shows of a run beside its curves."""

    name: str  # elstm_bn/lr-0.003_seed-1
    group: str  # the data set
    folder: Path
    hparams: Mapping[str, int | float | str]


@dataclass(frozen=True)
class Point:
    """Holds the measurements of a step by tag; a picture is the bytes of a PNG."""

    step: int
    values: Mapping[str, float | bytes]
    when: float = field(default_factory=time.time)  # seconds since 1970


class Sink(Protocol):
    """Shows runs. All methods are called from one thread, and may fail with any exception."""

    title: str

    def open(self, run: Description, known: str | None) -> str:
        """Starts a run, or continues the one of the id `known`; returns the run's id.

        An id other than `known` means that the tracker has nothing of the run yet.

        Raises:
            UserError: a setting is wrong, so that later attempts would fail too.
        """

    def log(self, points: Sequence[Point], first_row: int) -> None:
        """Sends points. `first_row` is the number of points that were sent before."""

    def close(self, state: str) -> None:
        """Ends the run as done, failed, interrupted or pruned."""
