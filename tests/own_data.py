"""Small files of own data, for tests that train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# Trains in a second: every command line of a test begins with these.
QUICK = (
    "trainer.max_epochs=2", "trainer.threads=1", "trainer.device=cpu", "trainer.progress=false",
    "model.hidden_size=6", "data.batch_size=8", "optimizer.lr=0.02",
)  # fmt: skip


def sequences(count: int = 60, seed: int = 0, *, unequal: bool = True) -> dict[str, Any]:
    """Sine waves of three speeds, (N, 12, 2), with lengths from 5 to 12."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    lengths = draw.integers(5, 13, count) if unequal else np.full(count, 12)
    lengths[:3] = 12  # the longest sequence is among the training ones or there are others
    time = np.arange(12)[None, :] * (1 + labels[:, None]) / 3 + draw.random((count, 1))
    values = np.stack([np.sin(time), np.cos(time)], axis=2)
    values += 0.1 * draw.standard_normal(values.shape)
    return {"X": values.astype(np.float32), "y": labels, "lengths": lengths}


def write_arrays(path: Path, **options: Any) -> Path:
    np.savez(path, **sequences(**options))
    return path


def write_pictures(folder: Path, count: int = 10) -> Path:
    """Class folders of grey pictures, 6 x 5 pixels: light above or light below."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for label in ("above", "below"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 100, (6, 5), dtype=np.uint8)
            rows = slice(0, 3) if label == "above" else slice(3, 6)
            pixels[rows] += 120
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def write_class_folders(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Writes FOLDER/LABEL/NUMBER.png, so that a class's pictures keep their order."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / label / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def the_run(root: Path = Path("outputs")) -> Path:
    """The only run folder below `root`."""
    (folder,) = (path.parent.parent for path in root.rglob(".hydra/config.yaml"))
    return folder
