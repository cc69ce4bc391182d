"""Times full runs of elstm-train on a GPU: start-up, and each epoch with its evaluation.

    python scripts/speed/epochs.py [--json FILE] [--runs rows,graph permuted ...]

Each run has a separate process, so its start-up includes imports, CUDA and kernels. Seconds of an
epoch are differences of wall_seconds in metrics.csv. Random images replace missing data sets.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FASHION = ["experiment=fashion_rows", "trainer.max_epochs=3"]
PERMUTED = ["experiment=mnist_permuted", "trainer.max_epochs=2", "data.batch_size=100"]
NO_GRAPH, BF16 = "trainer.cuda_graph=false", "trainer.precision=bf16"
RUNS: dict[str, list[str]] = {
    "rows": FASHION,
    "rows, no graph": [*FASHION, NO_GRAPH],
    "rows, lstm": [*FASHION, "model=lstm"],
    "rows, bf16": [*FASHION, BF16],
    "permuted": PERMUTED,
    "permuted, no graph": [*PERMUTED, NO_GRAPH],  # by name alone: two minutes are short
}


def data_root(folder: Path) -> Path:
    """Returns the root of the data sets, else of random ones of the same sizes in `folder`."""
    root = Path(os.environ.get("ELSTM_DATA") or "data")
    if all((root / name / "raw").is_dir() for name in ("FashionMNIST", "MNIST")):
        return root.resolve()
    print("no data sets in ELSTM_DATA or data/: random images are used")
    random = np.random.default_rng(0)
    for name in ("FashionMNIST", "MNIST"):
        raw = folder / name / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 60_000), ("t10k", 10_000)):
            images = random.integers(0, 256, (count, 28, 28), np.uint8)
            labels = random.integers(0, 10, count, np.uint8)
            sizes = np.array([2051, count, 28, 28], ">u4").tobytes()
            (raw / f"{part}-images-idx3-ubyte").write_bytes(sizes + images.tobytes())
            sizes = np.array([2049, count], ">u4").tobytes()
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(sizes + labels.tobytes())
    return folder


def train(overrides: list[str], root: Path) -> dict[str, Any]:
    """Runs elstm-train once; raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "elstm.train", *overrides, "trainer.device=cuda"]
        command += [f"data.root={root}", "trainer.progress=false", f"hydra.run.dir={run}"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        total = time.perf_counter() - start
        with (run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("val_accuracy")]
        status = json.loads((run / "status.json").read_text())
    ends = [float(row["wall_seconds"]) for row in rows]
    trained = [float(row["train_seconds"]) for row in rows]
    return {
        "total_s": total,
        "startup_and_test_s": total - ends[-1],
        "epochs_s": [b - a for a, b in zip([0.0, *ends], ends, strict=False)],
        "training_s": [b - a for a, b in zip([0.0, *trained], trained, strict=False)],
        "val_accuracy": float(rows[-1]["val_accuracy"]),
        "test_accuracy": status.get("test_accuracy"),
        "backend": status.get("backend"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times full runs of elstm-train on a GPU.")
    parser.add_argument("--runs", nargs="+", default=list(RUNS)[:-1], choices=RUNS)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        root = data_root(Path(folder))
        for name in args.runs:
            try:
                found[name] = train(RUNS[name], root)
            except subprocess.CalledProcessError as error:
                found[name], failed = {"error": f"exit status {error.returncode}"}, True
            print(name, json.dumps(found[name]), flush=True)
            if args.json:
                Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
