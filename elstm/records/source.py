"""Finds the checkpoint of trainer.init_from, and its checksum. It needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from elstm.errors import UserError, show
from elstm.files.atomic import refuse_links


def source_checkpoint(given: str) -> Path:
    """Returns the file of a checkpoint, or best.pt of a run folder.

    Raises:
        UserError: there is none.
    """
    try:
        path = Path(given).expanduser()
        if path.is_dir():
            path = path / "checkpoints" / "best.pt"
            refuse_links(path.parent, path)
        if path.is_file():
            return path
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"trainer.init_from={show(given)}: {error}") from error
    raise UserError(
        f"trainer.init_from={show(given)}: there is no checkpoint {show(str(path))}; give a run's "
        "folder that has checkpoints/best.pt, or the file of a checkpoint"
    )


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {show(str(path))}: {error.strerror or error}") from error
    return digest.hexdigest()
