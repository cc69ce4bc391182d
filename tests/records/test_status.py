"""Checks what status.json keeps of the processes that trained a run."""

from __future__ import annotations

from typing import Any

from elstm.records.status import training_processes


def test_the_processes_of_each_part_of_the_training_are_kept() -> None:
    def resumed(step: int, processes: int, *, finished: bool = False) -> list[list[int]] | None:
        nonlocal status
        status = training_processes(status, step, processes, finished=finished)
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
