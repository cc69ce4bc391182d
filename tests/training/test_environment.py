"""The environment changes nothing of what is trained, or the log and status.json say what."""

import os
import re
from pathlib import Path

import accelerate
import torch
from training_runs import assert_same_runs, small_config

from elstm.config.schema import TrainerConfig
from elstm.records.status import read_status
from elstm.training.device import accelerator_for, process_settings
from elstm.training.environment import (
    IGNORED,
    IGNORED_PREFIXES,
    active_variables,
    ignored_variables,
    isolated_environment,
)
from elstm.training.ranks import VARIABLES, Ranks
from elstm.training.run import run

HOSTILE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "FSDP_VERSION": "x",
    "LOCAL_RANK": "0",
}


def test_settings_for_accelerate_change_nothing(tmp_path, monkeypatch, no_pictures, caplog):
    plain, hostile = tmp_path / "plain", tmp_path / "hostile"
    config = small_config("lstm", max_epochs=1)
    plain.mkdir()
    hostile.mkdir()
    run(config, plain)
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "ALL")  # what it would do by default
    caplog.clear()
    run(config, hostile)
    assert_same_runs(plain, hostile)
    assert {name: os.environ[name] for name in HOSTILE} == HOSTILE
    (ignored,) = [r.message for r in caplog.records if "ignored from the environment" in r.message]
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4" in ignored
    assert "ACCELERATE_MIXED_PRECISION=bf16" in ignored
    assert read_status(plain)["environment"] == {}
    status = read_status(hostile)
    assert status["environment"] == {"DNNL_MAX_CPU_ISA": "ALL"}
    assert (status["precision"], status["device"]) == ("fp32", "cpu")
    assert sum("DNNL_MAX_CPU_ISA=ALL" in r.message for r in caplog.records) == 1


def test_every_variable_that_accelerate_reads_is_hidden_from_it():
    """Covers variables of later versions too; the exceptions are unrelated to training."""
    folder = Path(accelerate.__file__).parent
    skipped = ("commands", "test_utils", "launch.py", "launchers.py", "tracking.py")
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in folder.rglob("*.py")
        if not any(part in skipped for part in path.relative_to(folder).parts)
    )
    calls = r"(?:environ\.get\(|environ\[|_from_env\(|get_int_from_env\(\[)\s*"
    names = set(re.findall(calls + r"[\"']([A-Z][A-Z0-9_]+)[\"']", text))
    assert {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP", "LOCAL_RANK"} <= names
    names = {n for n in names if not n.startswith(IGNORED_PREFIXES)} - {*IGNORED, *VARIABLES}
    assert names <= {
        "CUDA_VISIBLE_DEVICES", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "OMP_NUM_THREADS",
        "PT_HPU_LAZY_MODE", "DEEPSPEED_USE_HPU", "XLA_DOWNCAST_BF16", "XLA_USE_BF16",
        "PYTORCH_ENABLE_MPS_FALLBACK", "USE_TORCH_XLA", "FOO",
    }  # fmt: skip


def test_the_environment_comes_back(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("RANK", "0")
    before = dict(os.environ)
    with isolated_environment(Ranks(1, 2, 1, 2, "a", 5)):
        assert os.environ["RANK"] == "1"
        assert "ACCELERATE_MIXED_PRECISION" not in os.environ
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    assert dict(os.environ) == before


def test_what_accelerate_launch_always_sets_is_not_mentioned():
    launch = {
        "ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False", "ACCELERATE_CPU_AFFINITY": "1",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }  # fmt: skip
    assert ignored_variables(TrainerConfig(), launch) == {}
    same = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "true"}
    assert ignored_variables(TrainerConfig(precision="bf16", device="cpu"), same) == {}
    assert ignored_variables(TrainerConfig(), same) == same
    assert active_variables(TrainerConfig(), {"TORCHDYNAMO_DISABLE": "1"}) == {}
    compiled = TrainerConfig(compile=True)
    assert active_variables(compiled, {"TORCHDYNAMO_DISABLE": "1"}) == {"TORCHDYNAMO_DISABLE": "1"}


def test_float32_stays_float32_and_threads_are_those_of_the_config():
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    try:
        trainer = TrainerConfig(device="cpu", threads=1)
        with process_settings(trainer), accelerator_for(trainer) as accelerator:
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_num_threads() == 1
            assert accelerator.num_processes == 1
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
