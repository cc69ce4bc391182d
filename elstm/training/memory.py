"""Checks that a run fits into memory, because a full system kills processes silently."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from elstm.config.schema import AdamConfig, Config, DigitsConfig, GRUConfig
from elstm.data.catalog import DATA_SETS
from elstm.errors import UserError, out_of_memory

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_ADVICE = "lower model.hidden_size, model.num_layers or data.batch_size"


def check_memory(config: Config, device: torch.device) -> None:
    """Raises UserError if a run needs more memory than the device has."""
    needed, there = least_memory(config), total_memory(device)
    if there is not None and needed > there:
        raise UserError(
            f"model.hidden_size={config.model.hidden_size} with {config.model.num_layers} layers "
            f"needs at least {needed / 2**30:,.1f} GiB of memory, and {device.type} has "
            f"{there / 2**30:,.1f} GiB: {_ADVICE}"
        )


def least_memory(config: Config) -> int:
    """Returns the bytes of weights, gradients, optimizer state and a batch's saved values."""
    model, data = config.model, config.data
    hidden, features, steps = model.hidden_size, 1, 1  # user data have their sizes in their files
    if isinstance(data, DigitsConfig):
        source = DATA_SETS[data.name]
        steps = source.pixels // data.pixels_per_step
        features = data.pixels_per_step * source.channels
    directions = 2 if model.bidirectional else 1
    gates = 3 if isinstance(model, GRUConfig) else 4
    first = gates * hidden * (features + hidden)
    others = gates * hidden * (directions + 1) * hidden
    weights = directions * (first + (model.num_layers - 1) * others)
    copies = 4 if isinstance(config.optimizer, AdamConfig) else 3
    copies += config.trainer.ema_decay is not None
    kept = 1 if getattr(model, "recompute", False) else gates
    states = steps * data.batch_size * hidden * directions * model.num_layers * kept
    return 4 * (weights * copies + states)


def total_memory(device: torch.device) -> int | None:
    """Returns the memory of the device in bytes; None where that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):  # Windows
        return None
    for path in _CGROUP:
        try:
            sizes.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # none, or "max"
            continue
    return min(size for size in sizes if size > 0)


def explained(error: Exception) -> Exception:
    """Returns a UserError if memory ran out or a backend refuses a call, else the error itself."""
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return UserError(f"out of memory ({text[:160] or type(error).__name__}): {_ADVICE}")
    if isinstance(error, ValueError) and text.startswith("backend "):
        return UserError(
            f"model.{text.replace(' ', '=', 1)}; model.backend=auto takes one that does"
        )
    return error
