"""Small sets in torchvision's layout: IDX files of random images, for machines without the data."""

import gzip
import io
import os
import re
import struct
import tarfile
import zipfile
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


def emnist_files(split: str = "balanced", count: int = 47, first: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a small EMNIST by file name, as it is published: images lie transposed."""
    draw = np.random.default_rng(1)
    arrays = {}
    for part, number in (("train", 3 * count), ("test", count)):
        name = f"emnist-{split}-{part}"
        images = draw.integers(0, 256, (number, 28, 28))
        arrays[f"{name}-images-idx3-ubyte"] = images.transpose(0, 2, 1)
        arrays[f"{name}-labels-idx1-ubyte"] = np.arange(number) % count + first
    return arrays


def emnist_archive(path: Path) -> Path:
    """Writes gzip.zip with the balanced split and the letters, and with what else it holds."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gzip/emnist-balanced-mapping.txt", "0 48\n")
        for arrays in (emnist_files(), emnist_files("letters", 26, 1)):
            for name, array in arrays.items():
                packed = gzip.compress(idx_bytes(array), 1, mtime=0)
                archive.writestr(f"gzip/{name}.gz", packed)
        archive.writestr("../escaped.gz", b"")
    return path


CIFAR_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip


def cifar_batches(count: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels (N,) and images (N, 32, 32, 3) of small batches of CIFAR-10, by file name."""
    draw = np.random.default_rng(2)
    names = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
    return {
        name: (np.arange(count) % 10, draw.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8))
        for name in names
    }


def cifar_files(count: int = 20) -> dict[str, bytes]:
    """The files of the binary version: a label, then all red, all green and all blue values."""
    files = {}
    for name, (labels, images) in cifar_batches(count).items():
        planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
        files[name] = np.column_stack([labels, planes]).astype(np.uint8).tobytes()
    return {**files, "batches.meta.txt": ("\n".join(CIFAR_CLASSES) + "\n\n").encode()}


def cifar_archive(path: Path) -> Path:
    """Writes cifar-10-binary.tar.gz."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**cifar_files(), "readme.html": b"<p>"}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
