"""Changes run folders as an untrusted author might, and checks what commands make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elstm import train
from elstm.commands import predict
from elstm.training import checkpoint

WORDS = [
    "model=bn_lstm",
    "model.backend=reference",
    "model.hidden_size=8",
    "data.train_size=64",
    "trainer.max_epochs=1",
]


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits a checkpoint and saves it with a valid checksum."""
    content = checkpoint.load(path)
    edit(content)
    for key in ("format", "version"):
        del content[key]
    checkpoint.save(content, path)


def write_checkpoints(run: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the path of each checkpoint that a run can have."""
    for name in ("best.pt", "last.pt", "previous.pt"):
        write(run / "checkpoints" / name)


def refused_by_all(run: Path, image: Path, capsys: pytest.CaptureFixture[str], said: str) -> None:
    """Checks the messages of elstm-predict, which reads as elstm-eval does, and of elstm-train."""
    for command, words in (
        (predict.main, [str(run), str(image)]),
        (train.main, [f"trainer.resume={run}"]),
    ):
        capsys.readouterr()
        assert command(words) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err
        assert "a bug" not in err
