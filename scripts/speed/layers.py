"""Compares layers with torch.nn.LSTM, in the same process and in turns: time, memory, scaling."""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pack_sequence

from elstm.nn import BACKENDS, BNLSTM, ELSTMBN, LSTM, LayerNormLSTM


class Shape(NamedTuple):
    """Holds the sizes of a batch and of its layer."""

    steps: int
    batch: int
    inputs: int
    units: int
    shortest: int | None = None  # lengths from here to `steps`, evenly, as a PackedSequence


SHAPES = {
    "rows": Shape(28, 128, 28, 128),
    "pixels": Shape(784, 100, 1, 100),
    "wide": Shape(100, 64, 512, 512),
    "packed": Shape(28, 128, 28, 128, shortest=14),
}
BASELINE = "torch.nn.LSTM"
CLASSES: dict[str, Any] = {
    "LSTM": LSTM, "BNLSTM": BNLSTM, "ELSTMBN": ELSTMBN, "LayerNormLSTM": LayerNormLSTM,
}  # fmt: skip
clock = time.perf_counter  # --cpu-time replaces it
ROUND_SECONDS = 0.02  # on a GPU one round repeats a short call, so that its launches overlap


def layer(name: str, shape: Shape, device: str) -> torch.nn.Module:
    """Builds "BNLSTM reference": a class and a backend.

    With "recompute" the layer has that option; with "compiled" it runs through torch.compile.
    """
    kind, *options = name.split()
    if kind == BASELINE:
        return torch.nn.LSTM(shape.inputs, shape.units).to(device)
    backend = {"torch": "auto"}.get(options[0], options[0])  # what `auto` of an LSTM may be
    arguments: dict[str, Any] = {"max_steps": shape.steps, "backend": backend}
    if "recompute" in options:
        arguments["recompute"] = True
    built = CLASSES[kind](shape.inputs, shape.units, **arguments).to(device)
    return torch.compile(built) if "compiled" in options else built  # type: ignore[return-value]


def work(name: str, shape: Shape, device: str, train: bool) -> Callable[[], None]:
    """Returns a function that does one training step or one eval pass."""
    torch.manual_seed(0)
    module = layer(name, shape, device).train(train)
    x: Any = torch.randn(shape.steps, shape.batch, shape.inputs, device=device)
    gradient = torch.randn(shape.steps, shape.batch, shape.units, device=device)
    if shape.shortest is not None:
        x = _packed(x, shape.shortest)
        gradient = gradient.flatten(0, 1)[: len(x.data)]
    leaf = x if isinstance(x, torch.Tensor) else x.data
    leaf.requires_grad_(train)

    def step() -> None:
        for tensor in (leaf, *module.parameters()):
            tensor.grad = None
        output = module(x)[0]
        (output if isinstance(output, torch.Tensor) else output.data).backward(gradient)

    def infer() -> None:
        with torch.no_grad():
            module(x)

    return step if train else infer


def _packed(x: torch.Tensor, shortest: int) -> Any:
    """Packs the sequences of x (T, B, I), with lengths that fall evenly from T to `shortest`."""
    steps, batch, _ = x.shape
    lengths = torch.linspace(steps, shortest, batch).round().long().tolist()
    return pack_sequence([x[:length, row] for row, length in enumerate(lengths)])


def graphed(run: Callable[[], None]) -> Callable[[], None] | str:
    """Captures `run` in a CUDA graph and returns its replay, or why it cannot be captured."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            run()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return str(error).strip().partition("\n")[0]
    graph._run = run  # type: ignore[attr-defined]  # the replay writes into its tensors
    return graph.replay


def seconds(run: Callable[[], None], device: str, calls: int = 1) -> float:
    """Returns the seconds of each of `calls` calls, one after the other."""
    start = clock()
    for _ in range(calls):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / calls


def against_baseline(
    name: str, shape: Shape, device: str, train: bool, budget: float
) -> dict[str, Any]:
    """Times alternating rounds of the layer and torch.nn.LSTM for about `budget` seconds."""
    ours, theirs = work(name, shape, device, train), work(BASELINE, shape, device, train)
    return in_turns(ours, theirs, device, budget)


def graphs_in_turns(
    name: str, shape: Shape, device: str, train: bool, budget: float
) -> dict[str, Any]:
    """Does the same with both in CUDA graphs; returns `error` if one cannot be captured."""
    ours, theirs = (graphed(work(of, shape, device, train)) for of in (name, BASELINE))
    if isinstance(ours, str):
        return {"error": ours}
    if isinstance(theirs, str):
        return {"error": f"{BASELINE}: {theirs}"}
    return in_turns(ours, theirs, device, budget)


def in_turns(
    ours: Callable[[], None], theirs: Callable[[], None], device: str, budget: float
) -> dict[str, Any]:
    """Returns medians of alternating rounds, and of their ratios."""
    calls = [1, 1]
    for index, run in enumerate((ours, theirs)):
        seconds(run, device)
        once = seconds(run, device)
        if device == "cuda":
            calls[index] = min(50, max(1, round(ROUND_SECONDS / once)))
    mine: list[float] = []
    base: list[float] = []
    start = time.perf_counter()
    while len(mine) < 5 or time.perf_counter() - start < budget:
        mine.append(seconds(ours, device, calls[0]))
        base.append(seconds(theirs, device, calls[1]))
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
    work(name, shape._replace(steps=2, batch=2, shortest=None), device, True)()  # loads libraries
    step = work(name, shape, device, True)
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
        step()
        return (_resident("VmHWM") - before) / 2**10
    except OSError:
        return None  # no such files: not Linux


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_mib(name: str, shape: Shape, device: str) -> float | None:
    """Returns the MiB that a training step adds to the peak memory.

    On a CPU a separate process is measured; on a GPU torch counts its allocations itself.
    """
    if device == "cuda":
        return _peak(name, shape, device, torch.get_num_threads())
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, shape, device, torch.get_num_threads()))


def names(device: str, compiled: bool = False) -> list[str]:
    """Lists each class with each backend that serves it on this device, by trying it."""
    found = []
    for kind, build in CLASSES.items():
        for backend in BACKENDS:
            try:
                built = build(2, 3, max_steps=2, backend=backend).to(device)
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
    """Prints and returns a row for each shape and layer."""
    graphs = args.device == "cuda"
    titles = ["training step, ms", "eval, ms", *(["step in a graph, ms"] if graphs else [])]
    titles = [part for title in titles for part in (title, "ratio")]
    print(f"| shape | layer | {' | '.join(titles)} | memory, MiB | ratio |")
    print("|---" * (4 + len(titles)) + "|")
    rows = []
    for shape_name in args.shapes:
        shape = SHAPES[shape_name]
        base_memory = None if args.no_memory else peak_mib(BASELINE, shape, args.device)
        for index, name in enumerate(args.layers or names(args.device, args.compile)):
            row: dict[str, Any] = {"shape": shape_name, "layer": name}
            for kind, train in (("step", True), ("eval", False)):
                row[kind] = against_baseline(name, shape, args.device, train, args.budget)
            if graphs and "reference" not in name:  # 784 steps of it are 80,000 launches
                row["graph"] = graphs_in_turns(name, shape, args.device, True, args.budget)
            memory = None if args.no_memory else peak_mib(name, shape, args.device)
            row["memory_mib"], row["baseline_memory_mib"] = memory, base_memory
            rows.append(row)
            kinds = ["step", "eval", "graph"] if graphs else ["step", "eval"]
            if not index:
                times = " | ".join(
                    f"{_number(row.get(k, {}).get('baseline_ms'), 2)} | 1" for k in kinds
                )
                print(f"| {shape_name} | {BASELINE} | {times} | {_number(base_memory)} | 1 |")
            ratio = memory / base_memory if memory and base_memory else None
            times = " | ".join(
                f"{_number(row[k].get('ms'), 2)} | {_spread(row[k])}" if k in row else "- | -"
                for k in kinds
            )
            print(
                f"| {shape_name} | {name} | {times} | {_number(memory)} | {_number(ratio, 2)} |",
                flush=True,
            )
    return rows


def _spread(timing: dict[str, Any]) -> str:
    if "error" in timing:
        return str(timing["error"])
    return f"**{timing['ratio']:.2f}** ({timing['ratio_low']:.2f}-{timing['ratio_high']:.2f})"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


SIZES: dict[str, list[Shape]] = {  # one size at a time, the others at rows
    "T": [Shape(t, 128, 28, 128) for t in (28, 112, 448, 1024, 4096)],
    "B": [Shape(28, b, 28, 128) for b in (16, 64, 128, 512, 2048)],
    "H": [Shape(28, 128, 28, h) for h in (32, 64, 128, 256, 512, 1024)],
}


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Times a training step of ELSTMBN's fastest backend against T, B and H."""
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
    """Returns p of time ~ size^p, by least squares over the logarithms; 1 is linear."""
    logs = [(math.log(row["value"]), math.log(row[key])) for row in rows]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope
