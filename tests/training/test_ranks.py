"""Rank and world size: one reading of the environment, and no process that writes beside rank 0."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elstm.commands import evaluate, export, predict, report
from elstm.errors import UserError
from elstm.train import main
from elstm.training.ranks import VARIABLES, Ranks, read_ranks

REPOSITORY = Path(__file__).parents[2]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}  # fmt: skip
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
       "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}  # fmt: skip


@pytest.mark.parametrize(
    "single",
    [
        {},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "0"},
        {"WORLD_SIZE": "1"},
        {"LOCAL_RANK": "0"},  # Accelerate alone would make a process group of it
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},  # neither torch nor Accelerate reads them
    ],
)
def test_a_single_process(single):
    assert read_ranks(single) == Ranks()
    assert read_ranks(single).variables() == {}


def test_launchers():
    assert read_ranks(TORCHRUN) == Ranks(1, 2, 1, 2, "127.0.0.1", 29501)
    assert read_ranks(TORCHRUN).variables() == TORCHRUN
    assert read_ranks(MPI) == Ranks(1, 2, 1, 2, "127.0.0.1", 29500)
    # mpirun that starts a torchrun on each machine: torchrun's count
    assert read_ranks({**MPI, **TORCHRUN, "RANK": "3", "WORLD_SIZE": "4"}).rank == 3


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"RANK": "1"}, "RANK=1 but not WORLD_SIZE and LOCAL_RANK"),
        ({"WORLD_SIZE": "2"}, "but not RANK and LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not LOCAL_RANK"),
        ({"LOCAL_RANK": "1"}, "but not RANK and WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "2"}, "but not RANK"),
        ({"RANK": "one"}, "RANK=one"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({**TORCHRUN, "RANK": "2"}, "RANK has to be below WORLD_SIZE"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK cannot be above RANK"),
        ({**TORCHRUN, "LOCAL_RANK": "0"}, "LOCAL_RANK equals RANK"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK has to be below LOCAL_WORLD_SIZE"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "at most WORLD_SIZE"),
        ({**TORCHRUN, "MASTER_PORT": "0"}, "MASTER_PORT=0"),
        ({**TORCHRUN, "MASTER_PORT": "port"}, "MASTER_PORT=port"),
        ({**TORCHRUN, "MASTER_ADDR": "", "LOCAL_WORLD_SIZE": ""}, "MASTER_ADDR is not set"),
        ({"RANK": "0", **MPI}, "RANK=0 do not fit OMPI_COMM_WORLD_RANK=1"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "but not MPI_LOCALRANKID"),
    ],
)
def test_variables_that_do_not_fit_together(wrong, named):
    with pytest.raises(UserError) as raised:
        read_ranks(wrong)
    assert named in str(raised.value)


@pytest.fixture
def environment(monkeypatch):
    def set_variables(variables):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_a_rank_alone_touches_nothing(training, environment, capsys):
    assert main(["hydra.run.dir=run"]) == 0
    before = sorted((p, p.stat().st_mtime_ns) for p in Path().rglob("*"))
    environment({"RANK": "1"})
    commands = [
        (main, []), (main, ["trainer.resume=run"]), (main, ["-m", "seed=0,1"]),
        (evaluate.main, ["run"]), (export.main, ["run"]), (predict.main, ["run", "image.png"]),
        (report.main, ["run"]),
    ]  # fmt: skip
    for command, words in commands:
        capsys.readouterr()
        assert command(words) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "the environment has RANK=1 but not WORLD_SIZE" in err
        assert err.count("\n") == 1
    assert sorted((p, p.stat().st_mtime_ns) for p in Path().rglob("*")) == before
    assert len(training.calls) == 1


def test_commands_of_one_process_refuse_several(training, environment, capsys):
    environment(TORCHRUN)
    for command, words in (
        (main, ["-m", "seed=0,1"]), (evaluate.main, ["run"]), (export.main, ["run"]),
        (predict.main, ["run", "image.png"]), (report.main, ["run"]),
    ):  # fmt: skip
        assert command(words) == 1
        assert "one process" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_rank_whose_rank_0_never_comes_can_be_ended(tmp_path):
    with socket.socket() as taken:  # a port on which nobody answers
        taken.bind(("127.0.0.1", 0))
        variables = {**TORCHRUN, "MASTER_PORT": str(taken.getsockname()[1])}
        # The connection is waited for in C++: the signal comes only once that has begun.
        code = """if True:
            import sys
            from torch import distributed
            from elstm.train import main
            join = distributed.init_process_group
            def joining(*args, **options):
                print("joining", flush=True)
                join(*args, **options)
            distributed.init_process_group = joining
            sys.exit(main(["trainer.device=cpu"]))
        """
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        try:
            assert process.stdout.readline() == "joining\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 143
    assert "interrupted by SIGTERM" in err
    assert list(tmp_path.iterdir()) == []
