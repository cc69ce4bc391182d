"""Small sets in torchvision's layout: IDX files of random images, for machines without the data."""

import gzip
import os
import re
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """The array as an IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(
    root: Path, folder: str = "MNIST", train: int = 120, test: int = 40, packed: bool = False
) -> dict[str, np.ndarray]:
    """Writes ROOT/folder/raw/{train,t10k}-{images,labels}-...; returns the arrays by file name.

    Unpacked files are read without a checksum, so a run with data.root=ROOT takes them as they are.
    """
    draw = np.random.default_rng(0)
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    arrays = {
        "train-images-idx3-ubyte": draw.integers(0, 256, (train, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(train) % 10,
        "t10k-images-idx3-ubyte": draw.integers(0, 256, (test, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(test) % 10,
    }
    for name, array in arrays.items():
        if packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), mtime=0))
        else:
            (raw / name).write_bytes(idx_bytes(array))
    return arrays


def own_process() -> dict[str, str]:
    """The environment of a Python process that imports elstm and the helpers of the tests."""
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}


def peak() -> int:
    """MiB that this process has had in memory at most; Linux alone knows it.

    Not ru_maxrss, which begins with what the parent process had.
    """
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kibibytes) // 1024
