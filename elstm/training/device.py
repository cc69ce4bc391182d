"""Sets up the process of a run: device, precision, threads, determinism, random states."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from elstm.config.schema import TrainerConfig
from elstm.errors import UserError
from elstm.files.atomic import refuse_links, writing
from elstm.training.accelerate_private import forget_state
from elstm.training.distributed import join_processes
from elstm.training.environment import isolated_environment, report_environment
from elstm.training.ranks import read_ranks

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # Accelerate's names
# Variables that select the GPUs of a process.
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def available_devices() -> list[str]:
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [*(name for name, there in found.items() if there), "cpu"]


def choose_device(name: str, precision: str = "fp32") -> str:
    """Returns cpu, cuda or mps; auto takes an accelerator if there is one.

    Raises:
        UserError: the device is not there, or cannot train in that precision.
    """
    devices = available_devices()
    device = devices[0] if name == "auto" else name
    if device not in devices:
        there = ", ".join(["auto", *devices])
        why = f" ({_why_no_cuda()})" if name == "cuda" else ""
        raise UserError(
            f"trainer.device={name} is not available here{why}; this machine has: {there}"
        )
    if device == "cpu" and precision == "fp16":
        raise UserError("trainer.precision=fp16 needs a GPU; on a CPU fp32 and bf16 are possible")
    if device == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("trainer.precision=bf16 is not possible on this GPU; take fp32 or fp16")
    return device


def _why_no_cuda() -> str:
    """Returns why torch finds no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} is a build for CPUs alone: pip install --force-reinstall "
            "torch --index-url https://download.pytorch.org/whl/cu130, or another from "
            "https://pytorch.org/get-started"
        )
    try:
        torch.cuda.init()
        reason = "torch finds no GPU"
    except Exception as error:  # AssertionError, RuntimeError
        reason = " ".join(str(error).split()).partition(". ")[0]
    hiding = (f"{n}={os.environ[n]!r}" for n in _HIDING if n in os.environ)
    hidden = ", ".join(hiding)
    if "no NVIDIA driver" in reason or not hidden:
        return reason + (f"; {hidden} in the environment hides GPUs as well" if hidden else "")
    return f"hidden by {hidden} in the environment: unset it"


@contextmanager
def accelerator_for(trainer: TrainerConfig) -> Iterator[Accelerator]:
    """Makes an Accelerator for this run, which ignores the environment.

    Accelerate keeps its state per process and refuses a second device or precision. A sweep runs
    many jobs in one process, so the state is cleared afterwards. The process group of a distributed
    job stays, since all jobs of a process share it.
    """
    device = choose_device(trainer.device, trainer.precision)
    ranks = read_ranks()
    if ranks.main:
        report_environment(trainer)
    forget_state()
    try:
        with isolated_environment(ranks):
            join_processes(ranks, device)
            accelerator = Accelerator(
                cpu=device == "cpu", mixed_precision=MIXED_PRECISION[trainer.precision]
            )
            if trainer.threads is not None:  # of several processes Accelerate sets its own number
                torch.set_num_threads(trainer.threads)
            yield accelerator
    finally:
        forget_state()


@contextmanager
def process_settings(trainer: TrainerConfig) -> Iterator[None]:
    """Sets threads, full float32 products and determinism for one run, and restores them."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # not TORCH_ALLOW_TF32_CUBLAS_OVERRIDE's
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    if trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def profiler(trainer: TrainerConfig, run_dir: Path) -> Iterator[Any]:
    """Yields an object whose `step` has to be called after each training step (trainer.profile).

    Steps 4 to 8 of rank 0 are traced into RUN_DIR/profile.json.gz, for chrome://tracing or
    ui.perfetto.dev; the first three are warm-up.
    """
    if not trainer.profile or not read_ranks().main:
        yield _NoProfiler()
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    refuse_links(run_dir / "profile.json.gz")

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def export(trace: Any) -> None:
        with writing(run_dir / "profile.json.gz"):
            trace.export_chrome_trace(str(run_dir / "profile.json.gz"))

    steps = schedule(wait=2, warmup=1, active=5, repeat=1)
    with profile(
        activities=activities,
        schedule=steps,
        on_trace_ready=export,
        acc_events=True,  # one cycle, so nothing piles up; torch 2.11 warns without it
    ) as running:
        yield running


class _NoProfiler:
    def step(self) -> None:
        pass


def random_states(device: torch.device) -> dict[str, Any]:
    """Returns the states of the generators that dropout and noise draw from."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Sets the states of the generators; those of other devices are ignored."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def machine(device: torch.device) -> str:
    """Describes what the times of a run depend on: device, threads and processor."""
    return f"{device_name(device)}, {torch.get_num_threads()} threads, {processor_name()}"


@lru_cache
def processor_name() -> str:
    """Returns the model of the processor, or its architecture where the system does not tell it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"mps": "Apple GPU"}.get(device.type, device.type.upper())
