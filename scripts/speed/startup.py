"""Times the commands until their first output."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

COMMAND = (sys.executable, "-m", "elstm.train")
FIRST_STEP = "the recurrence runs on backend"  # logged at the first log point
HELP = ("elstm-train --help", (*COMMAND, "--help"), "")
RUNS = [
    (f"elstm-train data={data}: first training step", (*COMMAND, f"data={data}"), FIRST_STEP)
    for data in ("digits", "fashion_mnist")
]
IMPORT = ("import elstm.nn", (sys.executable, "-c", "import elstm.nn"), "")
TORCH = ("import torch, for comparison", (sys.executable, "-c", "import torch"), "")


def until(command: Sequence[str], message: str, environment: dict[str, str]) -> float:
    """Returns the seconds from the start of a process until it prints `message`, or ends."""
    with tempfile.TemporaryDirectory() as folder:
        if message:
            command = [*command, f"hydra.run.dir={folder}/run", "trainer.log_every=1"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        for line in process.stdout:
            if message and message in line:
                found = time.perf_counter() - start
                process.kill()
                break
        else:
            found = time.perf_counter() - start if not message else float("nan")
        if process.wait() and not message:
            raise RuntimeError(f"{command} failed")
        return found


def startup(rounds: int) -> list[dict[str, Any]]:
    """Returns medians over processes, after one that fills the caches of the disk."""
    print("| what | seconds | lowest - highest |\n|---|---|---|")
    rows = []
    for what, command, message in (HELP, TORCH, IMPORT, *RUNS):
        rows.append(_row(what, command, message, rounds, dict(os.environ)))
    what, command, message = RUNS[0]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        rows.append(_row(f"{what}, the C code compiled", command, message, 0, environment))
    return rows


def _row(
    what: str, command: Sequence[str], message: str, rounds: int, environment: dict[str, str]
) -> dict[str, Any]:
    times = [until(command, message, environment) for _ in range(rounds + 1)]
    times = times[1:] or times
    median = statistics.median(times)
    print(f"| {what} | {median:.2f} | {min(times):.2f} - {max(times):.2f} |", flush=True)
    return {"what": what, "seconds": median, "low": min(times), "high": max(times)}
