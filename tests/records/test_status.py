"""Checks what status.json keeps of the processes and the machines that trained a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_runs import small_config, without_pictures

from elstm.errors import UserError
from elstm.records.status import Status, code_version, read_status, training_history
from elstm.training import device
from elstm.training import run as training_run
from elstm.training.run import run


def test_the_processes_of_each_part_of_the_training_are_kept() -> None:
    def resumed(step: int, processes: int, *, finished: bool = False) -> list[list[int]] | None:
        nonlocal status
        status = training_history(status, step, {"processes": processes}, finished=finished)
        return status["processes_changes"]  # type: ignore[no-any-return]

    status: dict[str, Any] = {}
    assert resumed(0, 4) is None
    assert resumed(20, 4) is None
    assert resumed(50, 1, finished=True) is None  # only the test was missing
    assert status["processes"] == 4
    assert resumed(50, 1) == [[0, 4], [50, 1]]
    assert status["processes"] == 1
    assert resumed(50, 2) == [[0, 4], [50, 2]]  # the part before saved no step
    assert resumed(50, 4) is None
    status = {"processes": "x", "processes_changes": [[0, "4"], 3]}  # not written by elstm
    assert resumed(9, 2) is None


def test_the_machines_of_each_part_of_the_training_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)

    def trained(name: str, epochs: int) -> list[Any]:
        monkeypatch.setattr(device, "machine", lambda _: name)
        monkeypatch.setattr(training_run, "code_version", lambda: name)
        config = small_config("lstm", max_epochs=1)
        run(config, tmp_path, resume=epochs > 1, extend={"trainer.max_epochs": epochs})
        status = read_status(tmp_path) or {}
        return [status[key] for key in ("machine", "machine_changes", "code", "code_changes")]

    assert trained("a", 1) == ["a", None, "a", None]
    parts = [[0, "a"], [5, "b"]]
    assert trained("b", 2) == ["b", parts, "b", parts]


def test_an_error_names_files_relative_to_the_run(tmp_path: Path) -> None:
    Status(tmp_path).fail(UserError(f"not finite; {tmp_path}/checkpoints/last.pt is good"))
    assert (read_status(tmp_path) or {})["error"] == "not finite; checkpoints/last.pt is good"


def test_a_processor_and_the_code_have_names() -> None:
    assert device.processor_name().strip()
    assert "torch 2." in code_version()
