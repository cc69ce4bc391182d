"""What only the TensorBoard event file holds: γ, cell statistics, and quantities over time steps.

Of a histogram the count, sum and sum of squares are exact: they give mean and standard deviation.
A vector over the T time steps is read from tags `over_time/...` that hold a tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from elstm.reporting.files import Damaged, open_bytes

MAX_BYTES = 256_000_000
MAX_RECORD = 16_000_000  # a picture has about 30,000
MAX_STEPS = 100_000  # points of a series, and time steps of a vector


@dataclass
class Series:
    """A histogram's course over training: lists over its points."""

    step: list[int] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    sd: list[float] = field(default_factory=list)  # over the units


@dataclass
class Events:
    """Of one run. Keys are tags, such as gamma/norm_c_l0 and over_time/gradient."""

    histograms: dict[str, Series] = field(default_factory=dict)
    over_time: dict[str, np.ndarray] = field(default_factory=dict)  # (T,), the latest


def read_events(run_dir: Path) -> Events:
    """The event files of a run folder; what is damaged or still being written is left out."""
    # A second to import; needed only here.
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    events = Events()
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        try:
            for record in _records(path):
                event = Event.FromString(record)
                for value in event.summary.value:
                    kind = value.WhichOneof("value")
                    if kind == "histo" and value.histo.num > 0:
                        _add(events.histograms, value.tag, event.step, value.histo)
                    elif kind == "tensor" and value.tag.startswith("over_time/"):
                        vector = _vector(value.tensor)
                        if vector is not None:
                            events.over_time[value.tag] = vector
        except (Damaged, DecodeError):
            continue
    return events


def _records(path: Path) -> Iterator[bytes]:
    """TFRecord: length (8 bytes), its checksum (4), content, its checksum (4)."""
    with open_bytes(path, MAX_BYTES) as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if length > MAX_RECORD:
                return
            content = file.read(length)
            if len(content) < length or len(file.read(4)) < 4:
                return
            yield content


def _add(histograms: dict[str, Series], tag: str, step: int, histogram: object) -> None:
    n, total, squares = (float(getattr(histogram, k)) for k in ("num", "sum", "sum_squares"))
    series = histograms.setdefault(tag, Series())
    mean = total / n
    if not (np.isfinite(mean) and np.isfinite(squares)) or len(series.step) >= MAX_STEPS:
        return
    series.step.append(step)
    series.mean.append(mean)
    series.sd.append(float(np.sqrt(max(squares / n - mean**2, 0.0))))


def _vector(tensor: object) -> np.ndarray | None:
    """A float32 vector, by content or by value; None: something else."""
    content = getattr(tensor, "tensor_content", b"")
    if content and len(content) % 4 == 0 and getattr(tensor, "dtype", 0) == 1:  # DT_FLOAT
        vector = np.frombuffer(content, dtype="<f4").astype(float)
    else:
        vector = np.array(getattr(tensor, "float_val", ()), dtype=float)
    return vector if 0 < len(vector) <= MAX_STEPS and np.isfinite(vector).all() else None
