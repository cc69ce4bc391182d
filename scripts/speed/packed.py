"""Compares the runner's training steps with packed batches to steps with plain ones.

Three variants take turns: plain batches of T steps; the same sequences, packed; and packed
sequences of T - 2 to T steps, which are sorted and padded, and whose indices are not cached yet.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from elstm.config.compose import Composer
from elstm.training.build import build_parts
from elstm.training.graph_step import batch_step
from elstm.training.state import StepSums


class Sizes(NamedTuple):
    """Holds the sizes of the sequences and of the layer."""

    steps: int
    batch: int
    features: int
    units: int


SIZES = (Sizes(28, 128, 28, 128), Sizes(25, 16, 12, 128), Sizes(100, 32, 6, 64))
MODELS = ("lstm", "gru", "ln_lstm", "bn_lstm", "elstm_bn")


def stepper(
    path: Path, model: str, sizes: Sizes, device: str, *, packed: bool
) -> Callable[[int], None]:
    """Returns a function that trains a number of steps, as elstm-train does, without records."""
    _, config = Composer().compose(
        [
            *("data=arrays", f"data.path={path}", f"data.batch_size={sizes.batch}"),
            *(f"model={model}", f"model.hidden_size={sizes.units}", f"trainer.device={device}"),
            *("trainer.cuda_graph=false", "hydra.mode=RUN"),
        ]
    )
    parts = build_parts(config, Accelerator(cpu=device == "cpu"), None)
    vars(parts.data)["unequal"] = packed  # takes the place of the cached property
    sums = StepSums(parts.accelerator.device)
    step = batch_step(config, parts, sums)

    def rows() -> Iterator[torch.Tensor]:
        epoch = 0
        while True:
            yield from parts.data.train_rows(0, epoch)
            epoch += 1

    order = rows()

    def run(count: int) -> None:
        parts.model.train()
        for batch in islice(order, count):
            step(batch)
        sums.pop_means(parts.accelerator, 1.0)  # waits for a GPU

    return run


def compare(model: str, sizes: Sizes, device: str, rounds: int) -> dict[str, Any]:
    """Times the variants in turns; returns the medians of their ratios over the rounds."""
    draw = np.random.default_rng(0)
    count = sizes.batch * 12
    values = draw.standard_normal((count, sizes.steps, sizes.features)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "series.npz"
        np.savez(path, X=values, y=np.arange(count) % 5)
        ways = [stepper(path, model, sizes, device, packed=packed) for packed in (False, True)]
        lengths = sizes.steps - draw.integers(0, 3, count)
        np.savez(path, X=values, y=np.arange(count) % 5, lengths=lengths)
        ways.append(stepper(path, model, sizes, device, packed=True))
    seconds: list[list[float]] = [[], [], []]
    count = 1
    for each in ways:
        each(3)
    while clock(ways[0], count) < 0.05:  # as many steps as a twentieth of a second allows
        count *= 2
    for turn in range(rounds):
        for place in range(3):
            which = (turn + place) % 3
            seconds[which].append(clock(ways[which], count) / count)
    row: dict[str, Any] = {"model": model, "size": "{} x {} x {}, {} units".format(*sizes)}
    row["plain_ms"] = 1e3 * statistics.median(seconds[0])
    for name, found in zip(("packed", "unequal"), seconds[1:], strict=True):
        ratios = [a / b for a, b in zip(found, seconds[0], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row |= {f"{name}_low": low, f"{name}_ratio": middle, f"{name}_high": high}
    return row


def clock(run: Callable[[int], None], count: int) -> float:
    """Returns the seconds of `count` steps.

    On one thread of a CPU it is the processor time of the process, which others change little.
    """
    now = time.perf_counter if torch.get_num_threads() > 1 else time.process_time
    start = now()
    run(count)
    return now() - start


def packed_steps(
    device: str, rounds: int, models: Sequence[str] = MODELS, sizes: Sequence[Sizes] = SIZES
) -> list[dict[str, Any]]:
    """Prints milliseconds of a plain step, and the ratios of the others to it with quartiles."""
    print("| model | steps x batch x features | plain, ms | packed / plain | unequal / plain |")
    print("|---" * 5 + "|")
    rows = []
    for size in sizes:
        for model in models:
            row = compare(model, size, device, rounds)
            rows.append(row)
            ratios = [
                f"{row[f'{name}_ratio']:.3f} ({row[f'{name}_low']:.3f}-{row[f'{name}_high']:.3f})"
                for name in ("packed", "unequal")
            ]
            print(
                f"| {model} | {row['size']} | {row['plain_ms']:.2f} | {' | '.join(ratios)} |",
                flush=True,
            )
    return rows
