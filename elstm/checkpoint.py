"""Checkpoints: single files, written whole or not at all, read without running what is in them.

    RUN_DIR/checkpoints/best.pt    after the evaluation with the highest validation accuracy
    RUN_DIR/checkpoints/last.pt    the latest: after each epoch, every `trainer.checkpoint_every`
                                   steps, and at an interruption

Both hold everything that a resume needs (`training.py` says what), so that best.pt can stand in for
a damaged last.pt. They are torch.save's zip files, whose entries carry CRC-32 checksums: `load`
checks them all before it unpickles with `weights_only=True`.
"""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from elstm.errors import UserError
from elstm.files import write_atomic

FORMAT = "elstm-checkpoint"
VERSION = 1  # raised when a reader of the old version could not use the new files

log = logging.getLogger(__name__)


def best_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best.pt"


def last_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.pt"


def save(content: dict[str, Any], *paths: Path) -> None:
    """Writes the same checkpoint to each of `paths`, one after the other.

    Args:
        content: tensors, numbers, strings, None, and lists and dicts of them: what
            torch.load(weights_only=True) reads.

    Raises:
        UserError: a file cannot be written; what was there before is unharmed.
    """
    buffer = io.BytesIO()  # first in memory: a full disk is noticed by the copy, not by torch.save
    torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
    for path in paths:
        write_atomic(path, lambda file: file.write(buffer.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Raises:
        UserError: no such file; damaged; not a checkpoint of elstm; of a newer version.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.save stores plainly: compression would only serve to make a file burst.
            stored = all(e.compress_type == zipfile.ZIP_STORED for e in archive.infolist())
            intact = stored and archive.testzip() is None
        if not intact:
            raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may fail in any way
        if isinstance(error, MemoryError):
            raise
        raise UserError(f"the checkpoint {path} is damaged or was not written by elstm") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of elstm")
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(
            f"{path} has checkpoint version {version}, this elstm reads up to {VERSION}: "
            "update elstm"
        )
    return content


def latest(run_dir: Path) -> dict[str, Any] | None:
    """The checkpoint to go on from; None where a run was ended before it wrote one.

    last.pt, or, where it cannot be read, best.pt with a warning.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    last, best = last_path(run_dir), best_path(run_dir)
    if not last.exists() and not best.exists():
        return None
    try:
        return load(last)
    except UserError as error:
        if not best.exists():
            raise UserError(f"{error}; delete it to start this run afresh") from error
        try:
            content = load(best)
        except UserError as second:
            raise UserError(f"{error}, and {second}; delete both to start afresh") from second
        log.warning("%s: going on from %s instead", error, best)
        return content
