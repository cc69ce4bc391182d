"""Prints memory, open files and the sizes of a run's files by epoch, and fails if they grow.

    python scripts/long_run.py                  # 200 epochs on the digits: a minute or two

Memory means the bytes that are allocated through glibc, where tensors, pictures and longer strings
lie, and the number of Python's smaller objects. Both, and the open files, have to stay level after
the first epochs. The resident set is shown too; it moves by some MiB with free pages, the kernel's
huge pages and caches that fill.

The records grow by a row or a scalar for each log point and evaluation, a few hundred bytes each,
and by about 100 histograms and pictures however long the run is.

The exit code is 1 if allocated memory or open files grew. It needs Linux with glibc 2.33 or newer.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

from elstm.config.schema import (
    AdamConfig,
    Config,
    CosineConfig,
    DigitsConfig,
    ELSTMBNConfig,
    TrainerConfig,
)
from elstm.sweeps.job import run_log
from elstm.training import checkpoint
from elstm.training import run as training

WARM = 20  # epochs until everything has been loaded and every buffer is there
# Limits of growth after that. A picture stored for each of 180 epochs would take 2 MiB.
MAX_MIB, MAX_OBJECTS = 1.0, 20_000


class Allocations(ctypes.Structure):
    """Holds the result of mallinfo2; `mapped` (large blocks) and `used` are allocated bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "free_chunks",
            "_0",
            "maps",
            "mapped",
            "_1",
            "_2",
            "used",
            "free",
            "_3",
        )
    ]


def in_use() -> tuple[float, int]:
    """Returns the MiB that glibc has allocated, and Python's objects of up to 512 bytes."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Allocations
    found = mallinfo2()
    return (found.used + found.mapped) / 2**20, sys.getallocatedblocks()


def resident() -> float:
    """Returns the resident set in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="epochs between two lines")
    args = parser.parse_args()
    config = Config(
        model=ELSTMBNConfig(hidden_size=32),
        data=DigitsConfig(name="digits", pixels_per_step=8, batch_size=64),
        optimizer=AdamConfig(lr=1e-2),
        scheduler=CosineConfig(),
        trainer=TrainerConfig(max_epochs=args.epochs, threads=1, device="cpu", progress=False),
    )
    found: list[tuple[int, float, int, int]] = []
    save = checkpoint.save

    def watched(content: dict[str, Any], *paths: Path) -> None:
        save(content, *paths)
        epoch = content["state"]["epoch"]
        if epoch % args.every == 0 or epoch in (1, WARM, args.epochs):
            found.append((epoch, *in_use(), len(list(Path("/proc/self/fd").iterdir()))))
            print(row(*found[-1], resident(), folder), flush=True)

    checkpoint.save = watched
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        columns = ("epoch", "in use, MiB", "objects", "open files", "resident, MiB", *FILES)
        print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        stdout, sys.stdout = sys.stdout, (folder / "terminal.txt").open("w")  # the log's lines
        with run_log(folder):
            sys.stdout = stdout
            training.run(config, folder)
    first, *_, last = (entry for entry in found if entry[0] >= min(WARM, args.epochs // 2))
    mib, objects, opened = last[1] - first[1], last[2] - first[2], last[3] - first[3]
    print(
        f"from epoch {first[0]} to {last[0]}: {mib:+.2f} MiB in use "
        f"({1024 * mib / (last[0] - first[0]):+.1f} KiB an epoch), {objects:+,} objects, "
        f"{opened:+d} open files"
    )
    return int(mib > MAX_MIB or objects > MAX_OBJECTS or opened > 0)


FILES = {
    "train.log, KiB": "train.log",
    "metrics.csv": "metrics.csv",
    "norms.csv": "norms.csv",
    "events": "events.out.tfevents.*",
    "checkpoints": "checkpoints/*",
}


def row(epoch: int, mib: float, objects: int, opened: int, rss: float, folder: Path) -> str:
    sizes = [sum(p.stat().st_size for p in folder.glob(g)) / 1024 for g in FILES.values()]
    cells = [str(epoch), f"{mib:.2f}", f"{objects:,}", str(opened), f"{rss:.0f}"]
    return "| " + " | ".join([*cells, *(f"{size:.0f}" for size in sizes)]) + " |"


if __name__ == "__main__":
    sys.exit(main())
