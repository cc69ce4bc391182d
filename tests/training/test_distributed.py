"""Runs of two gloo processes, as torchrun starts them, against one process: in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import last, rows

pytestmark = pytest.mark.slow  # half a minute on two cores

WORKER = Path(__file__).parents[1] / "distributed_run.py"
WORDS = [
    "model=elstm_bn", "model.hidden_size=8", "model.num_layers=2", "model.bidirectional=true",
    "data.pixels_per_step=8", "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false",
    "trainer.log_every=3", "trainer.ema_decay=0.9",
]  # fmt: skip


def start(folder: Path, *words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """distributed_run.py in `folder`; words: see there."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    path = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), str(WORKER), *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_same_to_rounding(one: Path, other: Path) -> None:
    """Weights, statistics, optimizer and records; metrics.csv holds nine digits."""
    a, b = last(one), last(other)
    for weights, found_weights in (
        (a["model"], b["model"]),
        (a["ema"]["model"], b["ema"]["model"]),
    ):
        for name, value in weights.items():
            torch.testing.assert_close(found_weights[name], value, rtol=1e-9, atol=1e-11)
    for number, state in a["optimizer"]["state"].items():
        for name, value in state.items():
            found = b["optimizer"]["state"][number][name]
            torch.testing.assert_close(found, value, rtol=1e-7, atol=1e-13)
    table, found_table = rows(one), rows(other)
    assert len(table) == len(found_table) > 8
    for row, found_row in zip(table, found_table, strict=True):
        for column, cell in row.items():
            if cell or found_row[column]:
                assert float(found_row[column]) == pytest.approx(float(cell), rel=1e-7), column


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """They do so too if rank 1 gets a signal in mid-epoch and a single process resumes.

    A step adds up the weighted gradients of two batches.
    """
    complete, two = tmp_path / "complete", tmp_path / "two"
    words = [
        *WORDS, "trainer.max_epochs=2", "trainer.accumulate=2", "trainer.class_weights=balanced"
    ]  # fmt: skip
    assert start(
        tmp_path, "0", "", *words, "data.batch_size=64", "hydra.run.dir=complete"
    ).returncode == 0  # fmt: skip
    ended = start(
        tmp_path, "12", "SIGTERM", *words, "data.batch_size=32", "hydra.run.dir=two",
        "trainer.sync_batch_stats=true", processes=2,
    )  # fmt: skip
    assert ended.returncode != 0
    assert ended.stdout.count("interrupted by SIGTERM at epoch 2.00, step 20") == 1
    assert "those of all 2 processes, which only the reference recurrence supports" in ended.stdout
    assert "runs on backend reference" in ended.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["complete", "two"]
    assert last(two)["state"]["step"] == 20
    resumed = start(tmp_path, "0", "", "trainer.resume=two")
    assert "each of 1 processes takes 128 of the run's steps of 128" in resumed.stdout
    assert resumed.returncode == 0
    assert_same_to_rounding(complete, two)


def test_a_failing_process_ends_the_job(tmp_path: Path) -> None:
    begin = time.monotonic()
    ended = start(
        tmp_path, "3", "error", *WORDS, "data.batch_size=64", "hydra.run.dir=two", processes=2
    )
    assert ended.returncode != 0
    assert time.monotonic() - begin < 60  # not the half hour of a collective's timeout
    said = "process 1: ArithmeticError: of process 1"
    assert ended.stderr.count("elstm-train: error: ") == 1
    where = "(once the run has trained a step, the traceback is in two/train.log)"
    assert f"elstm-train: error: {said} {where}" in ended.stderr
    status = json.loads((tmp_path / "two" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", said)
    log = (tmp_path / "two" / "train.log").read_text()
    assert "in count_step" in log
    assert log.rstrip().endswith("ArithmeticError: of process 1")
