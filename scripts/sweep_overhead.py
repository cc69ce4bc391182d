"""Measures the cost of a sweep beside the training, by N runs of one step each through joblib.

    python scripts/sweep_overhead.py --runs 1000 --jobs 2

It prints the seconds of the command, and of the same command again, which finds all runs done. For
each run it prints the worker's time, the part that the run counts (wall_seconds: the step, the
evaluations, the checkpoints), and the rest. The rest is the overhead: composing and checking the
config, folders and .hydra, the data, the model, the log and event files, the sweep's table.

On two cores the command took 196 s, and 11 s again. A further run took 377 ms of a worker's time,
143 ms counted by the run and 235 ms overhead. The script needs: pip install 'elstm[joblib]'
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="number of runs")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at once")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few = sweep(Path(folder) / "few", args.jobs, args.jobs)[0]
        total, rows = sweep(Path(folder) / "runs", args.runs, args.jobs)
        again, _ = sweep(Path(folder) / "runs", args.runs, args.jobs)
    more = args.runs - args.jobs
    worker = (total - few) * args.jobs / more
    own = sum(float(row["wall_seconds"]) for row in rows) / len(rows)
    print(f"{args.runs} runs, {args.jobs} at once: {total:.1f} s; {args.jobs} runs: {few:.1f} s")
    print(f"the same command again, all of them done: {again:.1f} s")
    print(f"of a worker's time {1000 * worker:.0f} ms for each further run,")
    print(f"  {1000 * own:.0f} ms its own, {1000 * (worker - own):.0f} ms overhead")


def sweep(folder: Path, runs: int, jobs: int) -> tuple[float, list[dict[str, str]]]:
    """Runs the sweep; returns its seconds, and the rows of its sweep.csv."""
    command = [
        sys.executable, "-m", "elstm.train", "-m", "hydra/launcher=joblib",
        f"hydra.launcher.n_jobs={jobs}", f"hydra.sweep.dir={folder}", f"seed=range({runs})",
        "model=lstm", "model.hidden_size=8", "data.batch_size=256", "trainer.device=cpu",
        "trainer.max_steps=1",
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    newest = max((folder / "sweeps").iterdir())
    with (newest / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == runs
    assert all(row["state"] == "done" for row in rows)
    return seconds, rows


if __name__ == "__main__":
    main()
