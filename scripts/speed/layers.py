"""How fast are the layers? Each figure is a ratio to torch.nn.LSTM in the same run.

    python scripts/benchmark.py                              # the table: a few minutes on a CPU
    python scripts/benchmark.py --scaling                    # cost against T, B and H
    python scripts/benchmark.py --shapes rows --compile      # with torch.compile of the reference
    python scripts/benchmark.py --json speed.json --chart speed.png

A training step is a forward and a backward pass to all parameters and the input; an eval pass is a
forward in eval mode without gradients. A layer and torch.nn.LSTM take turns, round by round; the
table has medians over the rounds, and of the ratios also the lowest and the highest. Memory is what
a training step adds to the process's peak, each in a process of its own. "reference" is the usual
public way of writing a BN-LSTM: a loop over time in Python.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from elstm.nn import BNLSTM, ELSTMBN, LSTM

SHAPES = {"rows": (28, 128, 28, 128), "pixels": (784, 100, 1, 100), "wide": (100, 64, 512, 512)}
BASELINE = "torch.nn.LSTM"
Shape = tuple[int, int, int, int]  # T, B, I, H


def layer(name: str, shape: Shape, device: str) -> torch.nn.Module:
    """ "BNLSTM reference": a class and a backend; with "compiled", through torch.compile."""
    steps, _, inputs, units = shape
    kind, *options = name.split()
    if kind == BASELINE:
        return torch.nn.LSTM(inputs, units).to(device)
    backend = next((o for o in options if o != "compiled"), "auto")
    classes = {"LSTM": LSTM, "BNLSTM": BNLSTM, "ELSTMBN": ELSTMBN}
    built = classes[kind](inputs, units, max_steps=steps, backend=backend).to(device)
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


def names(device: str, compiled: bool) -> list[str]:
    fast = "triton" if device == "cuda" else "cpu"
    found = ["LSTM", f"BNLSTM {fast}", f"ELSTMBN {fast}", "BNLSTM reference", "ELSTMBN reference"]
    return [*found, "ELSTMBN reference compiled"] if compiled else found


def table(args: argparse.Namespace) -> list[dict[str, Any]]:
    print("| shape | layer | training step, ms | ratio | eval, ms | ratio | memory, MiB | ratio |")
    print("|---" * 8 + "|")
    rows = []
    for shape_name in args.shapes:
        shape = SHAPES[shape_name]
        base_memory = None if args.no_memory else peak_mib(BASELINE, shape, args.device)
        for name in names(args.device, args.compile):
            row: dict[str, Any] = {"shape": shape_name, "layer": name}
            for kind, train in (("step", True), ("eval", False)):
                row[kind] = against_baseline(name, shape, args.device, train, args.budget)
            memory = None if args.no_memory else peak_mib(name, shape, args.device)
            row["memory_mib"], row["baseline_memory_mib"] = memory, base_memory
            rows.append(row)
            if name == "LSTM":
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


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Training step of ELSTMBN against one size at a time, the others at rows."""
    name = names(args.device, False)[2]
    sweeps = {
        "T": [(t, 128, 28, 128) for t in (28, 112, 448, 1024, 4096)],
        "B": [(28, b, 28, 128) for b in (16, 64, 128, 512, 2048)],
        "H": [(28, 128, 28, h) for h in (32, 64, 128, 256, 512, 1024)],
    }
    print("| size | value | training step, ms | ms / value | ratio |")
    print("|---" * 5 + "|")
    rows = []
    for size, shapes in sweeps.items():
        for shape in shapes:
            value = shape["TBIH".index(size)]
            row = against_baseline(name, shape, args.device, True, args.budget / 2)
            rows.append({"size": size, "value": value, **row})
            ms = f"{row['ms']:.1f} | {row['ms'] / value:.3f}"
            print(f"| {size} | {value} | {ms} | {_spread(row)} |", flush=True)
    return rows


def chart(rows: list[dict[str, Any]], path: str) -> None:
    """Bars of the training step's ratio to torch.nn.LSTM, one panel per shape."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure = Figure(figsize=(3.4 * len(shapes), 2.6), layout="constrained")
    for axes, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        here = [row for row in rows if row["shape"] == shape][::-1]
        ratios = [row["step"]["ratio"] for row in here]
        colours = ["#999999" if "reference" in row["layer"] else "#0072b2" for row in here]
        bars = axes.barh([row["layer"] for row in here], ratios, color=colours)
        axes.axvline(1, color="black", lw=1, ls="--")
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, bbox=clear)
        axes.set_xlim(0, 1.18 * max(*ratios, 1))
        axes.set_title(f"{shape}: T, B, I, H = {', '.join(map(str, SHAPES[shape]))}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("time of a training step / torch.nn.LSTM's", fontsize=9)
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the layers against torch.nn.LSTM.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--budget", type=float, default=6.0, help="seconds for each figure")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--compile", action="store_true", help="the reference compiled as well")
    parser.add_argument("--scaling", action="store_true", help="cost against T, B and H instead")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--chart", metavar="FILE")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device or platform.machine(),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()) + ", float32, no TF32\n")
    rows = scaling(args) if args.scaling else table(args)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    if args.chart and not args.scaling:
        chart(rows, args.chart)


if __name__ == "__main__":
    main()
