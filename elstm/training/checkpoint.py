"""Writes and reads checkpoints, which are always complete and run no code when read.

    RUN_DIR/checkpoints/best.pt      after the evaluation with the highest validation accuracy
    RUN_DIR/checkpoints/last.pt      the latest: after each epoch, every `trainer.checkpoint_every`
                                     steps, and at an interruption
    RUN_DIR/checkpoints/previous.pt  the last.pt before

Each holds everything that a resume needs (elstm.training.snapshot), so that the others can replace
a damaged last.pt. They are torch.save's zip files, sealed with a SHA-256 of all their bytes in
the archive's comment, which torch.load skips: `load` checks it, and unpickles with
`weights_only=True` what `_check_pickle` accepts.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickletools
import re
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from elstm.errors import UserError
from elstm.files.atomic import refuse_links, write_atomic

FORMAT = "elstm-checkpoint"
MARKS = ("format", "version")  # entries that `save` adds
VERSION = 2  # increased when the format changes; 1 had no seal, only the CRC-32 of each zip entry
# Limits of a checkpoint's content: some hundred values for each layer. Data with many features or
# classes have more, and each of these takes at least NODE_BYTES of the file.
MAX_NODES, MAX_DEPTH, NODE_BYTES = 100_000, 20, 8
# What a pickle may call, since torch.save writes nothing else for the values that `save` takes, and
# the opcodes that make more of a few bytes than a number or a text.
CALLS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Z][A-Za-z0-9]*Storage"
)
BUILDING = {"MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
            "TUPLE2", "TUPLE3", "LIST", "DICT", "REDUCE", "NEWOBJ", "BUILD"}  # fmt: skip
MAX_BUILT = 10 * MAX_NODES  # a tensor takes about ten of them
SEAL = b"elstm sha256 "
SEAL_SIZE = len(SEAL) + 64

log = logging.getLogger(__name__)


class Unreadable(UserError):
    """Reports a missing, damaged or foreign checkpoint; another one may replace it."""


def best_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best.pt"


def last_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.pt"


def previous_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "previous.pt"


def save(content: dict[str, Any], *paths: Path) -> None:
    """Writes the same checkpoint to each of `paths`, one after the other.

    The earlier last.pt stays as previous.pt beside it.

    Args:
        content: tensors, numbers, strings, None, and lists and dicts of them, the types that
            torch.load(weights_only=True) reads.

    Raises:
        UserError: a file cannot be written; the earlier one stays.
    """
    buffer = io.BytesIO()  # in memory first, so that the copy and not torch.save meets a full disk
    torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
    _seal(buffer)
    for path in paths:
        keep = path.with_name("previous.pt") if path.name == "last.pt" else None
        write_atomic(path, lambda file: file.write(buffer.getbuffer()), keep=keep)


def _seal(archive: io.BytesIO) -> None:
    """Adds the zip's comment: SEAL and the hash, in hex, of all bytes before it."""
    archive.seek(-2, io.SEEK_END)
    archive.write(struct.pack("<H", SEAL_SIZE))  # the length of the comment
    digest = hashlib.sha256(archive.getbuffer()).hexdigest()
    archive.write(SEAL + digest.encode())


def _sealed(file: IO[bytes], size: int) -> bool | None:
    """Returns whether the seal is right, or None if there is none."""
    remaining = size - SEAL_SIZE
    file.seek(max(remaining, 0))
    seal = file.read(SEAL_SIZE)
    if not seal.startswith(SEAL):
        return None
    digest = hashlib.sha256()
    file.seek(0)
    while remaining:
        block = file.read(min(remaining, 2**20))
        if not block:
            return False
        digest.update(block)
        remaining -= len(block)
    return seal[len(SEAL) :] == digest.hexdigest().encode()


def load(path: Path, limit: int | None = None) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
        limit: the largest number of bytes of such a checkpoint. A larger file is not read.

    Raises:
        Unreadable: the file is missing, damaged, too large or not a checkpoint of elstm.
        UserError: the checkpoint is of a newer version.
    """
    if not path.is_file():
        raise Unreadable(f"there is no checkpoint {path}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise Unreadable(
                    f"the checkpoint {path} has {size:,} bytes, more than the run's config needs"
                )
            sealed = _sealed(file, size)
            with zipfile.ZipFile(file) as archive:
                # torch.save does not compress. Compressed or overlapping entries could only hide
                # huge content.
                entries = archive.infolist()
                stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
                stored = stored and sum(e.file_size for e in entries) <= size
                intact = sealed is not False and stored and archive.testzip() is None
                if not intact:
                    raise zipfile.BadZipFile
                for entry in entries:
                    if entry.filename.lower().endswith("data.pkl"):
                        _check_pickle(archive.read(entry))
            file.seek(0)
            if file.read(4) != b"PK\x03\x04":  # torch would read what lies before the zip
                raise zipfile.BadZipFile
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        _check_plain(content, size)
    except Unreadable:
        raise
    except MemoryError:
        raise UserError(f"there is not enough memory to read the checkpoint {path}") from None
    except Exception as error:  # a damaged file may fail in any way
        raise Unreadable(f"the checkpoint {path} is damaged or was not written by elstm") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Unreadable(f"{path} is not a checkpoint of elstm")
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(
            f"{path} has checkpoint version {version}, this elstm reads up to {VERSION}: "
            "update elstm"
        )
    if version > 1 and sealed is None:
        raise Unreadable(f"the checkpoint {path} is damaged: its checksum is missing")
    return content


def _check_pickle(pickled: bytes) -> None:
    """Raises ValueError if torch.load would call or build more than `save` makes necessary.

    With weights_only=True it still calls bytearray and others, and a number in the file decides how
    much memory they take. A byte can stand for an empty dict, which takes 64.
    """
    built = 0
    for opcode, argument, _ in pickletools.genops(pickled):
        built += opcode.name in BUILDING
        if built > MAX_BUILT:
            raise ValueError("too many values")
        # torch.load reads no other kind of call.
        if opcode.name == "GLOBAL" and not CALLS.fullmatch(str(argument)):
            raise ValueError(f"it calls {argument}")


def _check_plain(content: Any, size: int) -> None:
    """Raises ValueError if a file of `size` bytes holds other values than `save` takes.

    A few bytes can describe a huge tensor, as views of one number, and a huge tree.
    """
    nodes = memory = 0
    most = max(MAX_NODES, size // NODE_BYTES)

    def visit(value: Any, depth: int) -> None:
        nonlocal nodes, memory
        nodes += 1
        if nodes > most or depth > MAX_DEPTH:
            raise ValueError("too many values")
        if isinstance(value, dict):
            for key, item in value.items():
                visit(key, depth + 1)
                visit(item, depth + 1)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item, depth + 1)
        elif isinstance(value, torch.Tensor):
            if not _is_plain(value):
                raise ValueError("a tensor of another kind")
            memory += value.numel() * value.element_size()
            if memory > size:
                raise ValueError("tensors of more bytes than the file")
        elif not isinstance(value, str | int | float | type(None)):
            raise ValueError(f"a {type(value).__name__}")

    visit(content, 0)


def _is_plain(value: torch.Tensor) -> bool:
    """Returns whether a tensor is as `save` writes it: dense and unshared memory on the CPU."""
    return (
        type(value) is torch.Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.requires_grad)
        and not (value.is_neg() or value.is_conj())
        and value.is_contiguous()
    )


def latest(run_dir: Path, limit: int | None = None) -> dict[str, Any] | None:
    """Returns the checkpoint to resume from, or None if the run wrote none.

    It is last.pt, or best.pt if that is later because a kill came between the two writes. Without
    it, a device that is not deterministic might not reach that best epoch again. If last.pt cannot
    be read, it is previous.pt or best.pt, the later one, with a warning, and the unreadable file is
    renamed to damaged.pt.

    Raises:
        UserError: there are checkpoints, and none can be read; last.pt is of a newer version; one
            is a link.
    """
    last = last_path(run_dir)
    others = [path for path in (previous_path(run_dir), best_path(run_dir)) if path.exists()]
    refuse_links(last.parent, last, *others)
    if not last.exists() and not others:
        return None
    try:
        return _with_later_best(last, load(last, limit), best_path(run_dir), limit)
    except Unreadable as error:
        problems, found = [str(error)], []
        for path in others:
            try:
                content = load(path, limit)
            except Unreadable as other:
                problems.append(str(other))
                continue
            step = _state(content).get("step")
            if type(step) is int:
                found.append((step, path, content))
            else:
                problems.append(f"{path} holds no run's state")
        if not found:
            raise UserError(
                f"{', and '.join(problems)}; delete {run_dir / 'checkpoints'} to start this run "
                "from the beginning"
            ) from error
        step, path, content = max(found, key=lambda entry: entry[0])
        log.warning("%s: resuming from %s instead, which is of step %d", error, path, step)
        with suppress(OSError):  # so that it does not become previous.pt
            last.replace(last.with_name("damaged.pt"))
        return content


def _with_later_best(
    path: Path, last: dict[str, Any], best: Path, limit: int | None
) -> dict[str, Any]:
    """Returns best.pt, and copies it to last.pt, if it is a later step of the run; else `last`."""
    found: dict[str, Any] = {}
    with suppress(UserError):
        found = load(best, limit)
    before, after = (_state(content).get("step") for content in (last, found))
    if type(before) is not int or type(after) is not int or after <= before:
        return last
    if repr(found.get("settings")) != repr(last.get("settings")):
        return last
    write_atomic(path, best.read_bytes(), keep=previous_path(path.parents[1]))
    return found


def _state(content: dict[str, Any]) -> dict[str, Any]:
    state = content.get("state")
    return state if isinstance(state, dict) else {}


def best(run_dir: Path, limit: int | None = None) -> dict[str, Any]:
    """Reads best.pt; a damaged one is repaired from last.pt if that is of the same epoch.

    Raises:
        Unreadable: it cannot be read, and last.pt is of another epoch.
        UserError: one of the files is a link, or of a newer version.
    """
    path, last = best_path(run_dir), last_path(run_dir)
    refuse_links(path, last)
    try:
        return load(path, limit)
    except Unreadable as error:
        content: dict[str, Any] = {}
        with suppress(Unreadable):
            content = load(last, limit)
        state = _state(content)
        if state.get("waited") != 0 or state.get("evaluated_step") != state.get("step"):
            raise
        log.warning("%s: written again from %s, which is of the same epoch", error, last)
        write_atomic(path, last.read_bytes())
        return content
