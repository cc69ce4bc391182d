"""Small pictures for tests, and files that claim to be large ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

GREY = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)

SHAPE = np.zeros((12, 8), np.uint8)  # no two of its turned copies are alike
SHAPE[1:9, 1:3] = SHAPE[7:9, 3:7] = 255


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that say they are a huge picture, all black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
