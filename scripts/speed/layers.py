"""Layers against torch.nn.LSTM, in the same process and in turns: time, memory, scaling."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from elstm.nn import BACKENDS, BNLSTM, ELSTMBN, LSTM

SHAPES = {"rows": (28, 128, 28, 128), "pixels": (784, 100, 1, 100), "wide": (100, 64, 512, 512)}
BASELINE = "torch.nn.LSTM"
Shape = tuple[int, int, int, int]  # T, B, I, H


CLASSES: dict[str, Any] = {"LSTM": LSTM, "BNLSTM": BNLSTM, "ELSTMBN": ELSTMBN}


def layer(name: str, shape: Shape, device: str) -> torch.nn.Module:
    """ "BNLSTM reference": a class and a backend.

    With "recompute" the layer has that option; with "compiled" it runs through torch.compile.
    """
    steps, _, inputs, units = shape
    kind, *options = name.split()
    if kind == BASELINE:
        return torch.nn.LSTM(inputs, units).to(device)
    backend = {"torch": "auto"}.get(options[0], options[0])  # what `auto` of an LSTM may be
    arguments: dict[str, Any] = {"max_steps": steps, "recompute": "recompute" in options}
    built = CLASSES[kind](inputs, units, backend=backend, **arguments).to(device)
    return torch.compile(built) if "compiled" in options else built  # type: ignore[return-value]


def work(name: str, shape: Shape, device: str, train: bool) -> Callable[[], None]:
    """A function that does one training step or one eval pass."""
    steps, batch, inputs, units = shape
    torch.manual_seed(0)
    module = layer(name, shape, device).train(train)
    x = torch.randn(steps, batch, inputs, device=device, requires_grad=train)
    gradient = torch.randn(steps, batch, units, device=device)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x)[0].backward(gradient)

    def infer() -> None:
        with torch.no_grad():
            module(x)

    return step if train else infer


def seconds(run: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def against_baseline(
    name: str, shape: Shape, device: str, train: bool, budget: float
) -> dict[str, Any]:
    """Alternating rounds of the layer and torch.nn.LSTM for about `budget` seconds."""
    ours, theirs = work(name, shape, device, train), work(BASELINE, shape, device, train)
    for run in (ours, theirs, ours, theirs):
        seconds(run, device)
    mine: list[float] = []
    base: list[float] = []
    while len(mine) < 5 or sum(mine) + sum(base) < budget:
        mine.append(seconds(ours, device))
        base.append(seconds(theirs, device))
    ratios = [a / b for a, b in zip(mine, base, strict=True)]
    return {
        "rounds": len(mine),
        "ms": 1e3 * statistics.median(mine),
        "baseline_ms": 1e3 * statistics.median(base),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def _peak(name: str, shape: Shape, device: str, threads: int) -> float | None:
    torch.set_num_threads(threads)
    small = (2, 2, shape[2], shape[3])
    work(name, small, device, True)()  # libraries and kernels are loaded
    step = work(name, shape, device, True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
        step()
        return (_resident("VmHWM") - before) / 2**10
    except OSError:
        return None  # no such files: not Linux


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_mib(name: str, shape: Shape, device: str) -> float | None:
    """MiB that a training step adds to the peak memory of a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, shape, device, torch.get_num_threads()))


def names(device: str, compiled: bool = False) -> list[str]:
    """Each class by each backend that serves it on this device: tried, not listed."""
    found = []
    for kind, build in CLASSES.items():
        for backend in BACKENDS:
            built = build(2, 3, max_steps=2, backend=backend).to(device)
            try:
                built(torch.zeros(2, 2, 2, device=device))
            except ValueError:
                continue
            name = f"{kind} {built.last_backend}"
            if name not in found:
                found.append(name)
    if compiled:
        found += [f"{name} compiled" for name in found if name.endswith("N reference")]
    return sorted(found, key=lambda name: ("compiled" in name, "reference" in name))


def table(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each shape and layer."""
    print("| shape | layer | training step, ms | ratio | eval, ms | ratio | memory, MiB | ratio |")
    print("|---" * 8 + "|")
    rows = []
    for shape_name in args.shapes:
        shape = SHAPES[shape_name]
        base_memory = None if args.no_memory else peak_mib(BASELINE, shape, args.device)
        for index, name in enumerate(args.layers or names(args.device, args.compile)):
            row: dict[str, Any] = {"shape": shape_name, "layer": name}
            for kind, train in (("step", True), ("eval", False)):
                row[kind] = against_baseline(name, shape, args.device, train, args.budget)
            memory = None if args.no_memory else peak_mib(name, shape, args.device)
            row["memory_mib"], row["baseline_memory_mib"] = memory, base_memory
            rows.append(row)
            if not index:
                step, infer = (row[kind]["baseline_ms"] for kind in ("step", "eval"))
                times = f"{step:.1f} | 1 | {infer:.1f} | 1"
                print(f"| {shape_name} | {BASELINE} | {times} | {_number(base_memory)} | 1 |")
            ratio = memory / base_memory if memory and base_memory else None
            print(
                f"| {shape_name} | {name} | {row['step']['ms']:.1f} | {_spread(row['step'])} |"
                f" {row['eval']['ms']:.1f} | {_spread(row['eval'])} | {_number(memory)} |"
                f" {_number(ratio, 2)} |",
                flush=True,
            )
    return rows


def _spread(timing: dict[str, Any]) -> str:
    return f"**{timing['ratio']:.2f}** ({timing['ratio_low']:.2f}-{timing['ratio_high']:.2f})"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


SIZES: dict[str, list[Shape]] = {  # one size at a time, the others at rows
    "T": [(t, 128, 28, 128) for t in (28, 112, 448, 1024, 4096)],
    "B": [(28, b, 28, 128) for b in (16, 64, 128, 512, 2048)],
    "H": [(28, 128, 28, h) for h in (32, 64, 128, 256, 512, 1024)],
}


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Training step of ELSTMBN's fastest backend against T, B and H."""
    name = next(name for name in names(args.device) if name.startswith("ELSTMBN"))
    print(f"{name}\n\n| size | value | training step, ms | ms / value | ratio |")
    print("|---" * 5 + "|")
    rows = []
    for size in args.sizes:
        here = []
        for shape in SIZES[size]:
            value = shape["TBIH".index(size)]
            row = against_baseline(name, shape, args.device, True, args.budget / 2)
            here.append({"size": size, "value": value, "layer": name, **row})
            ms = f"{row['ms']:.1f} | {row['ms'] / value:.4f}"
            print(f"| {size} | {value} | {ms} | {_spread(row)} |", flush=True)
        rows += here
        ours, theirs = (exponent(here, key) for key in ("ms", "baseline_ms"))
        print(f"| {size} | time ~ {size}^{ours:.2f} (torch.nn.LSTM {theirs:.2f}) | | | |")
    return rows


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """p of time ~ size^p, by least squares over the logarithms: 1 is linear."""
    logs = [(math.log(row["value"]), math.log(row[key])) for row in rows]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope
