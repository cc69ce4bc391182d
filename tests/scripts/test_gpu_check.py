"""scripts/gpu_check.sh: which parts it runs, and what it does where there is no GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"
PARTS = ["facts", "tests", "rows", "pixels", "wide", "packed", "epochs", "profile", "reference"]


def run(tmp_path: Path, *arguments: str, gpu: bool, fails: str = "-") -> tuple[int, str, str]:
    """Runs the script with a stand-in for python that logs what it is given."""
    log, python = tmp_path / "calls", tmp_path / "python"
    log.touch()
    python.write_text(
        f'#!/bin/bash\n[ "$1" = -c ] && exit {int(not gpu)}\n'
        f'echo "$*" >> {log}\n[[ "$*" != *{fails}.json* ]]\n'
    )
    python.chmod(0o755)
    result = subprocess.run(
        ["bash", SCRIPT, "--out", tmp_path / "out", *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout, log.read_text()


def test_runs_every_part_and_names_those_that_fail(tmp_path: Path) -> None:
    status, output, calls = run(tmp_path, gpu=True, fails="wide")
    assert status == 1
    for call, part in zip(calls.splitlines(), PARTS, strict=True):
        script = Path(call.split()[0])
        assert (SCRIPT.parents[1] / script).is_file()
        assert f"--json {tmp_path}/out/{part}.json" in call
    assert output.splitlines()[-1].endswith("failed: wide")


def test_runs_one_part(tmp_path: Path) -> None:
    status, _, calls = run(tmp_path, "--only", "epochs", gpu=True)
    assert status == 0
    assert len(calls.splitlines()) == 1
    assert "epochs.py" in calls


def test_skips_without_a_gpu(tmp_path: Path) -> None:
    status, output, calls = run(tmp_path, gpu=False)
    assert (status, calls) == (0, "")
    assert output.count("skipped, because torch finds no CUDA GPU here") == len(PARTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "speed"], "there is no part speed; parts: facts"), (["--only"], '--only "PART')],
)
def test_refuses_other_arguments(tmp_path: Path, arguments: list[str], message: str) -> None:
    status, output, calls = run(tmp_path, *arguments, gpu=True)
    assert (status, calls) == (2, "")
    assert message in output
