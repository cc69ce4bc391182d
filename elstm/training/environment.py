"""Handles environment variables that would change a run in spite of its config.

Accelerate reads settings from some eighty variables, which `accelerate launch` sets: gradient
accumulation, precision, device, FSDP, and so on. A run has keys for these, or does not support
them. So none of the variables reaches Accelerate, and a log message names those that contradict the
config. Other variables are read inside torch and its libraries, where they cannot be undone. A log
message names those that are set, and status.json records them under `environment`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from elstm.config.schema import TrainerConfig
from elstm.errors import show
from elstm.training.ranks import VARIABLES, Ranks

log = logging.getLogger(__name__)

# Variables that accelerate 1.15 reads; its launcher's MASTER_* and RANK come from Ranks.
IGNORED_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FP8_")
IGNORED = ("FORK_LAUNCHED",)
# `accelerate launch` always sets some, to these values; others do not affect what is trained.
_SILENT_VALUES = ("", "0", "1", "no", "none", "false", "auto", "default")
_SILENT = ("ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL",
           "ACCELERATE_ENABLE_RICH", "ACCELERATE_CONFIG_DS_FIELDS", "ACCELERATE_DYNAMO_USE_",
           "ACCELERATE_DYNAMO_MODE")  # fmt: skip
TF32 = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # see elstm.training.device.process_settings

# Variables that torch 2.14, CUDA, oneDNN and MKL read and that can change a run's numbers. The
# number of threads from OMP_NUM_THREADS and similar ones is in status.json anyway.
TAKEN = (
    "ATEN_CPU_CAPABILITY", "CUBLASLT_WORKSPACE_SIZE", "DISABLE_ADDMM_CUDA_LT",
    "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_MPS_FAST_MATH", "PYTORCH_MPS_PREFER_METAL", "PYTORCH_TUNABLEOP_ENABLED",
    "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
    "TORCH_LINALG_PREFER_CUSOLVER", "TORCH_LINEAR_FLATTEN_3D", "TORCH_MKLDNN_MATMUL_MIN_DIM",
    "TORCH_MKLDNN_MATMUL_MIN_SIZE",
)  # fmt: skip
TAKEN_BY_COMPILE = ("TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_COMPILE_")  # with trainer.compile


def active_variables(
    trainer: TrainerConfig, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns the variables that torch and its libraries use in this run."""
    environ = os.environ if environ is None else environ
    return {
        name: value[:200]
        for name, value in sorted(environ.items())
        if value and (name in TAKEN or (trainer.compile and name.startswith(TAKEN_BY_COMPILE)))
    }


def ignored_variables(
    trainer: TrainerConfig, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns the variables that contradict the run's config."""
    environ = os.environ if environ is None else environ
    same = {
        "ACCELERATE_MIXED_PRECISION": (trainer.precision,),
        "ACCELERATE_USE_CPU": ("true",) if trainer.device == "cpu" else (),
    }

    def contradicts(name: str, value: str) -> bool:
        if name == TF32:
            return value == "1"
        if not name.startswith("ACCELERATE_") or name.startswith(_SILENT):
            return False
        return value not in (*_SILENT_VALUES, *same.get(name, ())) or (
            value == "1" and name.startswith("ACCELERATE_USE_")
        )

    return {n: v[:200] for n, v in sorted(environ.items()) if contradicts(n, v.lower())}


def report_environment(trainer: TrainerConfig) -> None:
    """Logs the ignored and the active variables, if there are any."""
    ignored, taken = ignored_variables(trainer), active_variables(trainer)
    if ignored:
        log.warning(
            "ignored from the environment, because the run's config decides "
            "(trainer.precision, trainer.device, trainer.compile): %s", _shown(ignored),
        )  # fmt: skip
    if taken:
        log.warning("torch reads from the environment, and status.json records: %s", _shown(taken))


def _shown(variables: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={show(value)}" for name, value in variables.items())


@contextmanager
def isolated_environment(ranks: Ranks) -> Iterator[None]:
    """Sets the environment to `ranks` and no other settings, while it is active."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(IGNORED_PREFIXES) or name in IGNORED or name in VARIABLES
    }
    for name in hidden:
        del os.environ[name]
    os.environ.update(ranks.variables())
    try:
        yield
    finally:
        for name in list(os.environ):  # Accelerate sets some itself
            if name.startswith(IGNORED_PREFIXES) or name in IGNORED or name in VARIABLES:
                del os.environ[name]
        os.environ.update(hidden)
