"""Launches the Triton kernels, with their arguments, grids and options.

triton is imported when a kernel is first launched, because a torch without CUDA comes without it.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from elstm.nn.backends.cuda.blocks import Blocks, choose_blocks

BETWEEN_COUNTERS = 32  # int32s: the counter of each chunk has a separate cache line


@cache
def available() -> bool:
    """Returns whether there is a Triton version with which the kernels were tested."""
    if find_spec("triton") is None:
        return False
    major, minor = version("triton").split(".")[:2]
    return (int(major), int(minor)) >= (3, 6)


@cache
def kernels() -> dict[str, Any]:
    """Returns the kernels by name."""
    from elstm.nn.backends.cuda import all_steps, layer_norm_kernels
    from elstm.nn.backends.cuda import kernels as step_by_step

    modules = {
        step_by_step: ("forward", "backward"),
        all_steps: ("before_forward", "before_backward", "normalize_inputs_backward"),
    }
    found = {name: getattr(module, name) for module, names in modules.items() for name in names}
    for name in ("forward", "backward"):
        found[f"layer_norm_{name}"] = getattr(layer_norm_kernels, name)
    return found


def interpreted() -> bool:
    """Returns whether the kernels run in Triton's interpreter, on tensors of the CPU."""
    from triton import JITFunction

    return not isinstance(kernels()["forward"], JITFunction)


def refuses_device(device: torch.device) -> str | None:
    """Returns why the kernels cannot run on a device, or None."""
    if not available():
        return "needs the package triton, 3.6 or later"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs a GPU of compute capability 8.0 or later"  # for its shared memory
    elif device.type != "cpu" or not interpreted():
        return f"needs CUDA tensors, got {device.type}"
    return None


def multiprocessors(device: torch.device) -> int:
    """Returns how many programs can be resident at once."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 3  # under the interpreter: few, since they run one after another


@cache
def blocks_for(
    batch: int, hidden: int, full_batch: bool, device: torch.device
) -> tuple[Blocks, Blocks] | None:
    """Returns the blocks of the forward and of the backward kernel; None: they do not fit.

    Args:
        batch: number of sequences.
        hidden: number of hidden units.
        full_batch: whether one program has the full batch, as batch statistics require.
        device: the GPU, whose programs must all be resident at once.
    """
    processors = multiprocessors(device)
    forward = choose_blocks(batch, hidden, processors, depth=hidden, width=4, full_batch=full_batch)
    backward = choose_blocks(
        batch, hidden, processors, depth=4 * hidden, width=1, full_batch=full_batch
    )
    return None if forward is None or backward is None else (forward, backward)


class Launcher(NamedTuple):
    """Launches the kernels of one pass with the arguments that they share."""

    device: torch.device
    blocks: Blocks
    shared: dict[str, Any]

    def all_steps(self, name: str, programs: int, features: int, **own: Any) -> None:
        """Launches a kernel of `all_steps` with `programs` programs along the time axis."""
        block_f = max(1, 1024 // self.blocks.BLOCK_B)
        grid = programs, -(-features // block_f), self.blocks.chunks
        own |= {"F": features, "BLOCK_F": block_f}
        self._launch(name, grid, own, {"num_warps": 4})

    def step_by_step(self, name: str, steps: int, backwards: bool = False, **own: Any) -> None:
        """Launches `forward` or `backward` for all steps; once where programs can wait."""
        blocks = self.blocks
        own["BARRIER"] = persistent(self.device)
        options = {"num_warps": blocks.num_warps, "launch_cooperative_grid": own["BARRIER"]}
        grid = (blocks.programs * blocks.chunks,)
        spans = [(0, steps)] if own["BARRIER"] else [(t, t + 1) for t in range(steps)]
        for own["t_start"], own["t_end"] in reversed(spans) if backwards else spans:
            self._launch(name, grid, own, options)

    def _launch(
        self, name: str, grid: tuple[int, ...], own: dict[str, Any], options: dict[str, Any]
    ) -> None:
        kernel = kernels()[name]
        given = self.shared | own
        start(kernel, grid, [given[argument] for argument in kernel.arg_names], options)


def persistent(device: torch.device) -> bool:
    """Returns whether one launch runs all steps.

    The interpreter runs one program after another. A barrier would hang there, so each step is a
    launch.
    """
    return device.type == "cuda"


def start(
    kernel: Any, grid: tuple[int, ...], arguments: list[Any], options: dict[str, Any]
) -> None:
    """Starts one kernel on the current device."""
    kernel[grid](*arguments, **options)
