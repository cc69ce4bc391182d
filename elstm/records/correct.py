"""Encodes test_correct.csv, which lists the test images that a run's best checkpoint recognises.

    images,correct
    10000,f7ff...

`images` is their number. `correct` has one bit an image in hexadecimal, in the order of the test
set, and the first image is the highest bit of the first digit. Two runs can then be compared image
by image, for example with McNemar's test. 10,000 images take 2.5 KB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elstm.files.bounded import Damaged
from elstm.records.stored import StoredRun, table_rows

TABLE = "test_correct.csv"  # a run writes it when it tests


def encode_correct(correct: Sequence[bool] | np.ndarray) -> bytes:
    """Returns the content of test_correct.csv.

    Args:
        correct: one truth value per test image, in the order of the test set.
    """
    bits = np.asarray(correct, dtype=bool)
    return f"images,correct\n{len(bits)},{np.packbits(bits).tobytes().hex()}\n".encode()


def read_correct(run: StoredRun) -> np.ndarray | None:
    """Returns one truth value per test image, or None if the run recorded none.

    Raises:
        Damaged: the table is not as `encode_correct` writes it.
    """
    rows = table_rows(run, TABLE)
    if not rows:
        return None
    try:
        count, data = int(rows[0]["images"]), bytes.fromhex(rows[0]["correct"])
    except (KeyError, ValueError):
        raise Damaged(f"{TABLE} is not a number of images and their bits in hexadecimal") from None
    if len(rows) != 1 or count < 0 or len(data) != -(-count // 8):
        raise Damaged(f"{TABLE} does not hold one bit for each of {count} images")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(bool)
