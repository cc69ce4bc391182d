"""The recurrence on CUDA by the kernels of triton_kernels: one launch for all steps, each way.

`auto` takes it on GPUs of compute capability 9, since it was measured on an H200; by name it runs
on others too, from 8.0 on. Without a GPU, tests run the kernels in Triton's interpreter, and the
barrier with a process for each program.

Serves cell_norm none, output and update, in float32: lower precisions are cast to it, and the
output is cast back. W_x x_t of all steps, dW_x, dx and dW_h are large products by torch.mm, which
uses TF32 if the user allows it; the products inside the kernels never do. For the backward pass the
forward keeps h_t and c_t, 2 T B H numbers; both projections are computed again (8 T B H numbers
while the backward pass runs; the input's, an eighth of the steps at a time, a third time), so that
`recompute` changes nothing.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from elstm.nn.backends.triton_blocks import Blocks, choose_blocks
from elstm.nn.recurrence import Call, NormInputs, Results, Statistics

_SLICES = 8  # of the steps, in which W_x x_t is computed a third time
_CELL_NORMS = ("none", "output", "update")


def _kernels() -> Any:
    from elstm.nn.backends import triton_kernels  # here, because a CPU-only torch has no triton

    return triton_kernels


@cache
def _blocks(
    batch: int, hidden: int, whole: bool, device: torch.device
) -> tuple[Blocks, Blocks] | None:
    """For the forward and the backward kernel; None: the call does not fit."""
    processors = 3  # under the interpreter: few programs, since they run one after another
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    forward = choose_blocks(batch, hidden, processors, depth=hidden, width=4, whole=whole)
    backward = choose_blocks(batch, hidden, processors, depth=4 * hidden, width=1, whole=whole)
    return None if forward is None or backward is None else (forward, backward)


@cache
def available() -> bool:
    """Whether there is a Triton that the kernels have been tried with."""
    if find_spec("triton") is None:
        return False
    major, minor = version("triton").split(".")[:2]
    return (int(major), int(minor)) >= (3, 6)


def refuses(call: Call) -> str | None:
    """Returns why this backend cannot serve a call of `recurrence`, or None."""
    x, cell_norm = call.x, call.cell_norm
    if cell_norm not in _CELL_NORMS:
        return f"cell_norm must be one of {', '.join(_CELL_NORMS)}; got {cell_norm!r}"
    if len({norm.batch_steps for norm in call.norms if norm is not None}) > 1:
        return "some of its norms are frozen, others are not"
    for tensor in (x, call.h_0, call.c_0, call.weight_ih, call.weight_hh):
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"computes in float32, got {tensor.dtype}"
    if not available():
        return "needs the package triton, 3.6 or later"
    if x.device.type == "cuda":
        if torch.cuda.get_device_capability(x.device) < (8, 0):
            return "needs a GPU of compute capability 8.0 or later"  # for its shared memory
    elif x.device.type != "cpu" or not _kernels().INTERPRETED:
        return f"needs CUDA tensors, got {x.device.type}"
    batch, hidden = call.h_0.shape
    if not x.numel():
        return "the batch is empty"
    if _blocks(batch, hidden, call.batch_steps > 0, x.device) is None:
        return f"{batch} sequences of {hidden} hidden units do not fit its programs"
    return None


class _Plan(NamedTuple):
    """What does not take part in differentiation."""

    alive: Tensor | None  # batch_sizes on the device, (T,) int32
    batch_steps: int
    cell_norm: str
    statistics: tuple[tuple[Tensor, Tensor] | None, ...]  # ih, hh, c: (T, F) mean and variance
    eps: tuple[float, ...]

    def last(self, output: Tensor) -> Tensor:
        """The rows (B, H) of (T, B, H) at each sequence's last alive step, copied."""
        if self.alive is None:
            return output[-1].clone()
        rows = torch.arange(output.shape[1], device=output.device)
        return output[(self.alive.unsqueeze(1) > rows).sum(0) - 1, rows]


@torch.compiler.disable
def recurrence(call: Call) -> Results:
    """elstm.nn.recurrence.recurrence; differentiating its gradient raises RuntimeError."""
    x, batch_sizes, batch_steps = call.x, call.batch_sizes, call.batch_steps
    device = x.device
    dtype = x.dtype  # of the projections
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    norms = call.norms[:3]
    alive = None
    if batch_sizes is not None:
        alive = torch.tensor(batch_sizes, dtype=torch.int32).to(device)
    pairs = tuple(norm and _statistics(norm, x.shape[0], batch_steps) for norm in norms)
    eps = tuple(float(norm.eps) if norm else 0.0 for norm in norms)
    plan = _Plan(alive, batch_steps, call.cell_norm, pairs, eps)
    gammas = [norm and norm.weight for norm in norms]
    weights = (call.weight_ih, call.weight_hh, call.bias)
    tensors = (x, call.h_0, call.c_0, *weights, *gammas, call.norm_c and call.norm_c.bias)
    with torch.autocast(device.type, enabled=False):
        output, h_n, c_n = _Recurrence.apply(
            plan, *(None if tensor is None else tensor.float() for tensor in tensors)
        )
    statistics = (pair and Statistics(*(part[:batch_steps] for part in pair)) for pair in pairs)
    return Results(output.to(dtype), h_n.to(dtype), c_n.to(dtype), (*statistics, None))


def _statistics(norm: NormInputs, steps: int, batch_steps: int) -> tuple[Tensor, Tensor]:
    """(T, F) mean and variance: the population's in the rows that the kernel does not write."""
    if batch_steps == steps:
        shape = steps, norm.weight.shape[0]
        mean = torch.empty(shape, dtype=torch.float32, device=norm.weight.device)
        return mean, torch.empty_like(mean)
    assert norm.mean is not None
    assert norm.var is not None  # the layer passes them whenever batch_steps < T
    return norm.mean.detach().float().clone(), norm.var.detach().float().clone()


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *inputs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x, h_0, c_0, weight_ih, weight_hh, *parameters = map(_contiguous, inputs)
        steps, batch, _ = x.shape
        hidden = h_0.shape[1]
        blocks = _blocks_of(plan, x, hidden)[0]
        output = x.new_empty(steps, batch, hidden)
        cells = x.new_empty(steps + 1, hidden, batch)
        cells[0] = c_0.t()
        arguments = _arguments(plan, blocks, cells, *parameters)
        wx = _product(weight_ih, x)
        bias, gamma_ih, *_ = parameters
        if bias is not None or gamma_ih is not None:
            _for_all_steps("normalize_inputs", arguments, 4 * hidden, {"wx": wx})
        exchange = x.new_zeros(blocks.chunks, 2, hidden, blocks.BLOCK_B)
        padded = F.pad(h_0, (0, 0, 0, blocks.chunks * blocks.BLOCK_B - batch))
        exchange[:, 0] = padded.view(blocks.chunks, blocks.BLOCK_B, hidden).transpose(1, 2)
        own = {"z_x": wx, "weight_hh": weight_hh, "exchange": exchange, "output": output}
        _step_by_step("forward", arguments, own, _launches(steps, x.device))
        ctx.plan = plan
        statistics = [part for pair in plan.statistics for part in pair or (None, None)]
        ctx.save_for_backward(x, h_0, weight_ih, weight_hh, *parameters, output, cells, *statistics)
        return output, plan.last(output), cells[-1].t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _backward(ctx, *gradients)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    d_output, d_h, d_c = (gradient.contiguous() for gradient in gradients)
    x, h_0, weight_ih, weight_hh, *parameters, output, cells = ctx.saved_tensors[:11]
    bias, gamma_ih, *_ = parameters
    plan, needs = ctx.plan, ctx.needs_input_grad
    steps, _, hidden = output.shape
    blocks = _blocks_of(plan, x, hidden)[1]
    arguments = _arguments(plan, blocks, cells, *parameters)
    wx = _product(weight_ih, x)
    wh = torch.empty_like(wx)  # W_h h_{t-1}
    before = torch.cat([h_0[None], output[:-1]]).flatten(0, 1)
    torch.mm(weight_hh, before.t(), out=wh.flatten(1))
    of_steps = {
        "scale_hh": x.new_empty(steps, 4 * hidden),
        "shift_c": x.new_empty(steps, hidden),
        "scale_c": x.new_empty(steps, hidden),
    }
    _for_all_steps("prepare", arguments, hidden, {"wx": wx, "wh": wh, **of_steps})

    sums = x.new_zeros(blocks.chunks, 6 * hidden)
    d_c = d_c.clone()
    own = {"gates": wx, "hats": wh, "weight_hh": weight_hh, "d_output": d_output, "d_h": d_h}
    own |= {"d_c": d_c, "sums": sums, **of_steps}
    own["exchange"] = x.new_zeros(blocks.chunks, 2, 4 * hidden, blocks.BLOCK_B)
    _step_by_step("backward", arguments, own, _launches(steps, x.device)[::-1])

    dz, d_wh = wx, wh.flatten(1)  # the kernel has replaced the projections
    d_bias = dz.sum((1, 2)) if bias is not None else None
    d_gamma_ih = None
    if gamma_ih is not None:  # dz becomes the gradient of W_x x_t
        of_gamma = x.new_empty(blocks.chunks, steps, 4 * hidden)
        few = -(-steps // _SLICES)
        for start in range(0, steps, few):
            part = _product(weight_ih, x[start : start + few])
            own = {"dz": dz, "wx": part, "d_gamma": of_gamma, "t_first": start}
            own["wx_steps"] = part.shape[1]
            _for_all_steps("normalize_inputs_backward", arguments, 4 * hidden, own)
        d_gamma_ih = of_gamma.sum((0, 1))
    d_wx = dz.flatten(1)
    d_x = (d_wx.t() @ weight_ih).view_as(x) if needs[1] else None
    d_weight_ih = d_wx @ x.flatten(0, 1) if needs[4] else None
    d_weight_hh = d_wh @ before if needs[5] else None
    d_h_0 = wh[:, 0].t() @ weight_hh if needs[2] else None
    d_gamma_hh, d_gamma_c, d_beta_c = sums.sum(0).split([4 * hidden, hidden, hidden])
    of_parameters = [
        None if parameter is None else gradient
        for parameter, gradient in zip(
            parameters, [d_bias, d_gamma_ih, d_gamma_hh, d_gamma_c, d_beta_c], strict=True
        )
    ]
    return None, d_x, d_h_0, d_c, d_weight_ih, d_weight_hh, *of_parameters


def _contiguous(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """W x for all steps: (4H, I), (T, B, I) -> (4H, T, B)."""
    return torch.mm(weight, x.flatten(0, 1).t()).view(-1, *x.shape[:2])


def _blocks_of(plan: _Plan, x: Tensor, hidden: int) -> tuple[Blocks, Blocks]:
    blocks = _blocks(x.shape[1], hidden, plan.batch_steps > 0, x.device)
    assert blocks is not None  # else the call was refused
    return blocks


def _arguments(
    plan: _Plan,
    blocks: Blocks,
    cells: Tensor,
    bias: Tensor | None,
    gamma_ih: Tensor | None,
    gamma_hh: Tensor | None,
    gamma_c: Tensor | None,
    beta_c: Tensor | None,
) -> _Arguments:
    """What a call's kernels take, some of them each."""
    steps, hidden, batch = cells.shape
    named: dict[str, Any] = {
        "cells": cells, "bias": bias, "gamma_ih": gamma_ih, "gamma_hh": gamma_hh,
        "gamma_c": gamma_c, "beta_c": beta_c, "alive_rows": plan.alive, "steps": steps - 1,
        "batch_steps": plan.batch_steps, "batch": batch, "H": hidden,
        "CELL_NORM": plan.cell_norm,
    }  # fmt: skip
    for name, pair, eps in zip(("ih", "hh", "c"), plan.statistics, plan.eps, strict=True):
        named[f"mean_{name}"], named[f"var_{name}"] = pair or (None, None)
        named[f"eps_{name}"] = eps
    return _Arguments(named, blocks)


class _Arguments(NamedTuple):
    named: dict[str, Any]
    blocks: Blocks

    def of(self, kernel: Any, own: dict[str, Any]) -> dict[str, Any]:
        """Those that the kernel has."""
        given = self.named | self.blocks._asdict() | own
        return {name: given[name] for name in kernel.arg_names if name in given}


def _persistent(device: torch.device) -> bool:
    """One launch for all steps; under the interpreter, where a barrier would hang, one a step."""
    return device.type == "cuda"


def _launches(steps: int, device: torch.device) -> list[tuple[int, int]]:
    """[t_start, t_end) of each launch."""
    return [(0, steps)] if _persistent(device) else [(t, t + 1) for t in range(steps)]


def _for_all_steps(name: str, arguments: _Arguments, features: int, own: dict[str, Any]) -> None:
    """A kernel that takes the steps side by side."""
    from elstm.nn.backends import triton_all_steps  # here: see _kernels

    kernel, blocks = getattr(triton_all_steps, name), arguments.blocks
    if name != "prepare":  # of the input's projection alone
        own["gamma"], own["mean"], own["var"], own["eps"] = (
            arguments.named[f"{part}_ih"] for part in ("gamma", "mean", "var", "eps")
        )
    own["F"], own["BLOCK_F"] = features, max(1, 1024 // blocks.BLOCK_B)
    steps = own.get("wx_steps", arguments.named["steps"])
    grid = (steps, -(-features // own["BLOCK_F"]), blocks.chunks)
    with torch.cuda.device_of(arguments.named["cells"]):
        _start(kernel, grid, arguments.of(kernel, own) | {"num_warps": 4})


def _step_by_step(
    name: str, arguments: _Arguments, own: dict[str, Any], launches: list[tuple[int, int]]
) -> None:
    """A kernel of which a launch takes steps one after the other."""
    kernel, blocks, cells = getattr(_kernels(), name), arguments.blocks, arguments.named["cells"]
    own["BARRIER"] = _persistent(cells.device)
    options = {"num_warps": blocks.num_warps, "launch_cooperative_grid": own["BARRIER"]}
    shape = blocks.chunks, _kernels().BETWEEN_COUNTERS.value
    with torch.cuda.device_of(cells):
        for own["t_start"], own["t_end"] in launches:
            own["counter"] = torch.zeros(shape, dtype=torch.int32, device=cells.device)
            grid = (blocks.programs * blocks.chunks,)
            _start(kernel, grid, arguments.of(kernel, own) | options)


def _start(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    kernel[grid](**arguments)
