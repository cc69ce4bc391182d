"""Checks a library that was just built from cpu.c against the equations, in another process.

    python check.py LIBRARY 32|64

A compiler's flags can make the library wrong, or use instructions that this CPU does not have,
which ends the process that runs them. So the check runs elsewhere, with the standard library alone.
It makes tiny calls with batch statistics, with population statistics and with layer normalisation,
forward and backward. The results are compared with the equations of elstm.nn.recurrence in Python's
floats, and with their central differences.
"""

from __future__ import annotations

import ctypes
import math
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

STEPS, ROWS, INPUTS, UNITS = 3, 4, 2, 5
CELLS = ("none", "output", "update", "center", "layer")  # enum cell of call.h
EPS = 0.1
TOLERANCE = {32: 1e-3, 64: 1e-7}  # of the largest number of a result
Numbers = list[float]
Values = dict[str, Numbers]
SIZES = {
    "x": STEPS * ROWS * INPUTS, "h_0": ROWS * UNITS, "c_0": ROWS * UNITS,
    "w_x": 4 * UNITS * INPUTS, "w_h": 4 * UNITS * UNITS, "bias": 4 * UNITS,
}  # fmt: skip
RESULTS = {"output": STEPS * ROWS * UNITS, "h_n": ROWS * UNITS, "c_n": ROWS * UNITS}
NORMS = {"norm_x": 4 * UNITS, "norm_h": 4 * UNITS, "norm_c": UNITS}
# Gradients that are compared, with how many numbers of each: central differences take time.
CHECKED = {"x": SIZES["x"], "h_0": 4, "w_x": 4, "w_h": 8, "bias": 4}


def structs() -> Any:
    """Imports structs.py from this folder without its package, which needs torch."""
    return import_module("structs")


def in_own_process(path: Path, bits: int) -> str | None:
    """Returns what is wrong with the library, or None where it is sound."""
    command = [sys.executable, "-I", __file__, str(path), str(bits)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"the check could not be run: {error}"
    if not done.returncode:
        return None
    if done.returncode < 0:
        return f"it ended the process by {signal.Signals(-done.returncode).name}"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def equations(cell: str, values: Values, batch_steps: int) -> Values:
    """Runs the recurrence of elstm.nn.recurrence on flat lists; returns the results by name."""

    def normalize(z: list[Numbers], name: str, t: int, beta: Numbers | None) -> list[Numbers]:
        features = len(z[0])
        gamma, shift = values[f"{name}.gamma"], beta or [0.0] * features
        if cell == "layer":  # of each row
            return [
                [
                    (value - mean) / math.sqrt(var + EPS) * a + b
                    for value, a, b in zip(row, gamma, shift, strict=True)
                ]
                for row in z
                for mean in (sum(row) / features,)
                for var in (sum((value - mean) ** 2 for value in row) / features,)
            ]
        if t < batch_steps:
            mean = [sum(row[j] for row in z) / ROWS for j in range(features)]
            var = [sum((row[j] - mean[j]) ** 2 for row in z) / ROWS for j in range(features)]
        else:
            part = slice(t * features, (t + 1) * features)
            mean, var = values[f"{name}.mean"][part], values[f"{name}.var"][part]
        if cell == "center" and name == "norm_c":
            return [[row[j] - mean[j] + shift[j] for j in range(features)] for row in z]
        return [
            [
                (row[j] - mean[j]) / math.sqrt(var[j] + EPS) * gamma[j] + shift[j]
                for j in range(features)
            ]
            for row in z
        ]

    def product(rows: list[Numbers], weight: Numbers) -> list[Numbers]:
        width = len(rows[0])
        return [
            [
                sum(weight[k * width + j] * row[j] for j in range(width))
                for k in range(len(weight) // width)
            ]
            for row in rows
        ]

    def rows_of(name: str, width: int, first: int = 0) -> list[Numbers]:
        flat = values[name]
        return [flat[(first + b) * width : (first + b + 1) * width] for b in range(ROWS)]

    h, c = rows_of("h_0", UNITS), rows_of("c_0", UNITS)
    beta = values["norm_c.beta"]
    output: Numbers = []
    for t in range(STEPS):
        of_x = product(rows_of("x", INPUTS, t * ROWS), values["w_x"])
        of_h = product(h, values["w_h"])
        of_x, of_h = normalize(of_x, "norm_x", t, None), normalize(of_h, "norm_h", t, None)
        gates = []
        for b in range(ROWS):
            z = [of_x[b][k] + of_h[b][k] + values["bias"][k] for k in range(4 * UNITS)]
            i, f, g, o = (z[k * UNITS : (k + 1) * UNITS] for k in range(4))
            gates.append(list(map(sigmoid, o)))
            c[b] = [sigmoid(f[j]) * c[b][j] + sigmoid(i[j]) * math.tanh(g[j]) for j in range(UNITS)]
        if cell in ("update", "center"):
            c = normalize(c, "norm_c", t, beta)
        shown = normalize(c, "norm_c", t, beta) if cell in ("output", "layer") else c
        h = [[gates[b][j] * math.tanh(shown[b][j]) for j in range(UNITS)] for b in range(ROWS)]
        output += chain(*h)
    return {"output": output, "h_n": [*chain(*h)], "c_n": [*chain(*c)]}


def draw(cell: str) -> Values:
    generator = random.Random(0)

    def numbers(count: int, low: float = -1.0, high: float = 1.0) -> Numbers:
        return [generator.uniform(low, high) for _ in range(count)]

    values = {name: numbers(size) for name, size in SIZES.items()}
    for name, features in NORMS.items():
        values[f"{name}.gamma"] = numbers(features, 0.5, 1.5)
        values[f"{name}.mean"] = numbers(STEPS * features)
        values[f"{name}.var"] = numbers(STEPS * features, 0.5, 1.5)
    values["norm_c.beta"] = numbers(UNITS)
    return values


def by_library(
    library: ctypes.CDLL, bits: int, cell: str, values: Values, batch_steps: int, upstream: Values
) -> tuple[Values, Values]:
    """Returns the results of the C code and, with batch statistics, the gradients in CHECKED."""
    real: Any = ctypes.c_float if bits == 32 else ctypes.c_double
    lanes = library.elstm_lanes()
    padded = -(-UNITS // lanes) * STEPS * ROWS * lanes
    kept: list[Any] = []  # memory that the call points to

    def array(count: int, given: Numbers | None = None) -> Any:
        kept.append((real * count)(*(given or ())))
        return kept[-1]

    def aligned(size: int) -> int:
        kept.append(ctypes.create_string_buffer(size + 128))
        return (ctypes.addressof(kept[-1]) + 127) // 128 * 128

    def address(memory: Any) -> int:
        return ctypes.addressof(memory)

    call = structs().CallStruct(STEPS, ROWS, INPUTS, UNITS, batch_steps, CELLS.index(cell), 2)
    for name, size in SIZES.items():
        setattr(call, name, address(array(size, values[name])))
    for name, features in NORMS.items():
        norm = getattr(call, name)
        norm.eps, norm.batch_steps = EPS, batch_steps
        if name == "norm_c" and cell == "none":
            continue
        norm.mean = address(array(STEPS * features, values[f"{name}.mean"]))
        norm.batch_mean = address(array(STEPS * features))
        if name == "norm_c" and cell == "center":
            continue
        norm.gamma = address(array(features, values[f"{name}.gamma"]))
        norm.var = address(array(STEPS * features, values[f"{name}.var"]))
        norm.batch_var = address(array(STEPS * features))
        norm.d_gamma = address(array(features))
    if cell != "none":
        call.norm_c.beta = address(array(UNITS, values["norm_c.beta"]))
        call.norm_c.d_beta = address(array(UNITS))
    results = {name: array(size) for name, size in RESULTS.items()}
    for name, memory in results.items():
        setattr(call, name, address(memory))
    for name, count in (("saved_zh", 4 * padded), ("saved_c", padded)):
        setattr(call, name, aligned(count * ctypes.sizeof(real)))

    def run(function: Callable[[Any], None], backward: int) -> None:
        call.workspace = aligned(library.elstm_workspace(call, backward))
        function(call)

    run(library.elstm_forward, 0)
    found = {name: list(memory) for name, memory in results.items()}
    if not batch_steps:
        return found, {}
    for name, numbers in upstream.items():
        setattr(call, f"d_{name}", address(array(len(numbers), numbers)))
    gradients = {name: array(size) for name, size in SIZES.items()}
    for name, memory in gradients.items():
        setattr(call, f"d_{name}", address(memory))
    run(library.elstm_backward, 1)
    return found, {name: list(gradients[name])[:count] for name, count in CHECKED.items()}


def differences(cell: str, values: Values, batch_steps: int, upstream: Values) -> Values:
    """Returns the gradients in CHECKED by central differences of the equations."""

    def loss() -> float:
        found = equations(cell, values, batch_steps)
        return sum(
            a * b for name in found for a, b in zip(found[name], upstream[name], strict=True)
        )

    gradients: Values = {}
    for name, count in CHECKED.items():
        gradients[name] = []
        for index in range(count):
            kept, ends = values[name][index], []
            for step in (1e-5, -1e-5):
                values[name][index] = kept + step
                ends.append(loss())
            values[name][index] = kept
            gradients[name].append((ends[0] - ends[1]) / 2e-5)
    return gradients


def wrong(found: Values, expected: Values, tolerance: float) -> str | None:
    """Names the first result that is further from what is expected than rounding explains."""
    for name, numbers in expected.items():
        bound = tolerance * max(1.0, *map(abs, numbers))
        error = max(abs(a - b) for a, b in zip(found[name], numbers, strict=True))
        if not error <= bound:
            return f"{name} is off by {error:.1e}"
    return None


def check(library: ctypes.CDLL, bits: int) -> str | None:
    """Returns what is wrong with the library, or None where it is sound."""
    generator = random.Random(1)
    upstream = {
        name: [generator.uniform(-1, 1) for _ in range(size)] for name, size in RESULTS.items()
    }
    for cell in CELLS:
        for batch_steps in (STEPS, 0):
            values = draw(cell)
            found, gradients = by_library(library, bits, cell, values, batch_steps, upstream)
            reason = wrong(found, equations(cell, values, batch_steps), TOLERANCE[bits])
            if reason is None and gradients:
                expected = differences(cell, values, batch_steps, upstream)
                reason = wrong(gradients, expected, TOLERANCE[bits])
                reason = reason and f"the gradient of {reason}"
            if reason is not None:
                return f"{cell}: {reason}"
    values = draw("update")
    values["x"][0] = math.nan
    found, _ = by_library(library, bits, "update", values, 0, upstream)
    if not math.isnan(found["output"][0]):
        return "NaN in the input is lost"
    return None


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    path, bits = sys.argv[1:]
    reason = check(structs().prototypes(ctypes.CDLL(path)), int(bits))
    if reason:
        print(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
