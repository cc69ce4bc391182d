import gzip
import os
import subprocess
import sys

import numpy as np
import pytest
from small_sets import idx_bytes, own_process

from elstm.data.idx import read_idx
from elstm.errors import UserError

IMAGES = np.arange(5 * 28 * 28).reshape(5, 28, 28) % 251
GOOD = idx_bytes(IMAGES)
SHAPE = (None, 28, 28)


@pytest.mark.parametrize("packed", [False, True])
def test_reads_what_was_written(tmp_path, packed):
    content = gzip.compress(GOOD) if packed else GOOD
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(content)
    np.testing.assert_array_equal(read_idx(path, SHAPE), IMAGES)
    assert list(tmp_path.iterdir()) == [path]


def changed(position, value):
    content = bytearray(GOOD)
    content[position] = value
    return bytes(content)


DAMAGED = {
    "empty": (b"", "0 bytes are too few for the header"),
    "cut in the header": (GOOD[:15], "15 bytes are too few"),
    "cut in the data": (GOOD[:-1], "3,935 bytes (unpacked) instead of 3,936"),
    "too long": (GOOD + b"\0", "more than 3,936 bytes (unpacked) instead of 3,936"),
    "a web page": (b"<!DOCTYPE html><title>Log in</title>", "not an IDX file of unsigned bytes"),
    "first zero": (changed(0, 1), "not an IDX file"),
    "second zero": (changed(1, 1), "not an IDX file"),
    "type int16": (changed(2, 0x0B), "not an IDX file of unsigned bytes: starts with 00000b03"),
    "dimensions": (changed(3, 1), "1 dimensions instead of 3"),
    "count too large": (changed(4, 255), "instead of N x 28 x 28 of at most 256,000,000 bytes"),
    "count above": (changed(7, 6), "3,936 bytes (unpacked) instead of 4,720"),
    "count too small": (changed(7, 4), "more than 3,152 bytes (unpacked) instead of 3,152"),
    "count zero": (changed(7, 0), "holds 0 x 28 x 28 entries instead of N x 28 x 28"),
    "rows": (changed(11, 29), "holds 5 x 29 x 28 entries instead of N x 28 x 28"),
    "columns": (changed(15, 27), "holds 5 x 28 x 27"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named_with_the_file_and_the_mend(tmp_path, damage, packed):
    content, phrase = DAMAGED[damage]
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError) as caught:
        read_idx(path, SHAPE)
    line = str(caught.value)
    assert str(path) in line
    assert phrase in line
    assert "put a good copy in its place, or move it elsewhere and run again" in line
    assert "delete" not in line  # it may be the user's own
    assert "\n" not in line


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(GOOD)[:-20],  # cut in the data
        gzip.compress(GOOD)[:-4],  # cut in the trailer
        gzip.compress(GOOD)[:5],
        b"",
        GOOD,  # not packed at all
        gzip.compress(GOOD)[:10] + b"\xff" + gzip.compress(GOOD)[11:],  # no such kind of block
        gzip.compress(GOOD)[:-6] + b"\0\0" + gzip.compress(GOOD)[-4:],  # its own checksum
    ],
    ids=["cut", "no length", "cut header", "empty", "not packed", "a byte changed", "crc"],
)
def test_a_broken_gz_is_named(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images\.gz is damaged \(.+\): put a good copy"):
        read_idx(path, SHAPE)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="gone cannot be read \\(No such file or directory\\)"):
        read_idx(tmp_path / "gone", SHAPE)


BOMB = """
import sys
from pathlib import Path
from elstm.errors import UserError
from elstm.data.idx import read_idx
from small_sets import peak

path = Path(sys.argv[1])
before = peak()
try:
    read_idx(path, (None, 28, 28))
except UserError as error:
    print(error)
print(peak() - before)
"""


def test_a_bomb_is_not_unpacked(tmp_path):
    """4 GB of zeros in 4 MB, behind a good header."""
    path = tmp_path / "images.gz"
    member = gzip.compress(bytes(1 << 24), mtime=0)  # members of a gz follow one another
    path.write_bytes(gzip.compress(GOOD, mtime=0) + 256 * member)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)],
        capture_output=True, text=True, timeout=60, check=True, env=own_process(),
    )  # fmt: skip
    line, mebibytes = done.stdout.splitlines()
    assert "more than 3,936 bytes (unpacked)" in line
    assert int(mebibytes) < 40


def test_only_plain_files_of_sensible_size_are_read(tmp_path):
    path = tmp_path / "images"
    with path.open("wb") as file:
        file.truncate(10**12)  # a hole
    with pytest.raises(UserError, match=r"1,000,000,000,000 bytes, more than 256,000,000\): put"):
        read_idx(path, SHAPE)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a plain file"):
        read_idx(path, SHAPE)  # and does not wait for a writer
