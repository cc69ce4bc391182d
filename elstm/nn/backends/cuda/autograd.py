"""Runs the recurrence of one layer by the Triton kernels, and its backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from elstm.nn.backends.cuda.launch import (
    BETWEEN_COUNTERS,
    Launcher,
    blocks_for,
    refuses_device,
)
from elstm.nn.backends.gradients import (
    Reference,
    learned_tensors,
    needs_reference,
    reference_gradients,
    reference_of,
)
from elstm.nn.recurrence import Call, NormInputs, Results, Statistics
from elstm.nn.sequences import packed_indices

_CELL_NORMS = ("none", "output", "update")
_SLICE_BYTES = 2**24  # of W_x x_t, which is computed a third time in slices of about this size
_SLICES = 8  # at most


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
    reason = refuses_device(x.device)
    if reason is not None:
        return reason
    batch, hidden = call.h_0.shape
    if not x.numel():
        return "the batch is empty"
    if blocks_for(batch, hidden, call.batch_steps > 0, x.device) is None:
        return f"{batch} sequences of {hidden} hidden units do not fit its programs"
    return None


@torch.compiler.disable
def recurrence(call: Call) -> Results:
    """Does what elstm.nn.recurrence.recurrence does, for a call that `refuses` lets through."""
    x, batch_steps = call.x, call.batch_steps
    dtype = x.dtype  # of the projections
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    norms = call.norms[:3]
    active = None if call.batch_sizes is None else packed_indices(call.batch_sizes, x).counts
    pairs = _statistics(norms, x.shape[0], batch_steps)
    eps = tuple(0.0 if norm is None else float(norm.eps) for norm in norms)
    plan = _Plan(active, batch_steps, call.cell_norm, pairs, eps)
    # Contiguous before autograd sees them: what it saves has to be the inputs themselves.
    learned = [None if t is None else t.float().contiguous() for t in learned_tensors(call)]
    with torch.autocast(x.device.type, enabled=False):
        output, h_n, c_n = _TritonRecurrence.apply(plan, reference_of(call), *learned)
    statistics = (pair and Statistics(*(part[:batch_steps] for part in pair)) for pair in pairs)
    return Results(output.to(dtype), h_n.to(dtype), c_n.to(dtype), (*statistics, None))


_Pairs = tuple[tuple[Tensor, Tensor] | None, ...]  # (T, F) mean and variance of ih, hh and c


def _statistics(norms: tuple[NormInputs | None, ...], steps: int, batch_steps: int) -> _Pairs:
    """Returns mean and variance of each norm, population statistics at the steps t >= batch_steps.

    The kernels write the other steps. Where they write all, one buffer holds the statistics.
    """
    if batch_steps < steps:
        return tuple(norm and _population(norm, batch_steps) for norm in norms)
    some = next((norm for norm in norms if norm is not None), None)
    if some is None:
        return None, None, None
    sizes = [0 if norm is None or norm.weight is None else len(norm.weight) for norm in norms]
    device = None if some.weight is None else some.weight.device
    buffer = torch.empty(2 * steps * sum(sizes), dtype=torch.float32, device=device)
    parts = buffer.split([steps * size for size in sizes for _ in range(2)])
    views = [part.view(steps, -1) if part.numel() else part for part in parts]
    return tuple(
        (views[2 * n], views[2 * n + 1]) if norm is not None else None
        for n, norm in enumerate(norms)
    )


def _population(norm: NormInputs, batch_steps: int) -> tuple[Tensor, Tensor]:
    assert norm.mean is not None
    assert norm.var is not None  # the layer passes them whenever batch_steps < T
    mean, var = (part.detach().float().contiguous() for part in (norm.mean, norm.var))
    return (mean.clone(), var.clone()) if batch_steps else (mean, var)


class _Plan(NamedTuple):
    """Holds the arguments that need no gradients."""

    active: Tensor | None  # batch_sizes on the device, (T,) int32
    batch_steps: int
    cell_norm: str
    statistics: _Pairs
    eps: tuple[float, ...]  # of ih, hh and c

    def launcher(
        self, direction: int, x: Tensor, hidden: int, parameters: tuple[Tensor | None, ...]
    ) -> Launcher:
        """Returns the launcher of the forward (0) or backward (1) pass."""
        steps, batch, _ = x.shape
        both = blocks_for(batch, hidden, self.batch_steps > 0, x.device)
        assert both is not None  # else the call was refused
        blocks = both[direction]
        shared: dict[str, Any] = {
            "active_rows": self.active, "batch_steps": self.batch_steps, "steps": steps,
            "batch": batch, "H": hidden, "CELL_NORM": self.cell_norm,
        }  # fmt: skip
        shared |= blocks._asdict() | dict(zip(_PARAMETERS, parameters, strict=True))
        for name, pair, eps in zip(("ih", "hh", "c"), self.statistics, self.eps, strict=True):
            shared[f"mean_{name}"], shared[f"var_{name}"] = pair or (None, None)
            shared[f"eps_{name}"] = eps
        shape = blocks.chunks, BETWEEN_COUNTERS
        shared["counter"] = torch.empty(shape, dtype=torch.int32, device=x.device)
        shared["BETWEEN_COUNTERS"] = BETWEEN_COUNTERS
        return Launcher(x.device, blocks, shared)


_PARAMETERS = ("bias", "gamma_ih", "gamma_hh", "gamma_c", "beta_c")


class _TritonRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, reference: Reference, *learned: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, h_0, c_0, weight_ih, weight_hh, *parameters = learned
        bias, gamma_ih, *_ = parameters
        steps, batch, _ = x.shape
        hidden = h_0.shape[1]
        with torch.cuda.device_of(x):
            launcher = plan.launcher(0, x, hidden, tuple(parameters))
            blocks = launcher.blocks
            wx = _product(weight_ih, x)
            own = {
                "states": x.new_empty(steps + 1, batch, hidden),
                "cells": x.new_empty(steps + 1, hidden, batch),
                "exchange": x.new_empty(blocks.chunks, 2, hidden, blocks.BLOCK_B),
            }
            programs, features = 1, hidden  # for the initial state alone
            if bias is not None or gamma_ih is not None:
                programs, features = steps + 1, 4 * hidden
            launcher.all_steps("before_forward", programs, features, wx=wx, h_0=h_0, c_0=c_0, **own)
            own |= {"h_n": torch.empty_like(h_0), "c_n": torch.empty_like(c_0)}
            launcher.step_by_step("forward", steps, z_x=wx, weight_hh=weight_hh, **own)
        ctx.plan, ctx.reference = plan, reference
        ctx.set_materialize_grads(False)  # zeros would be written and read for nothing
        statistics = [part for pair in plan.statistics for part in pair or (None, None)]
        states, cells = own["states"], own["cells"]
        ctx.save_for_backward(*learned, states, cells, *statistics)
        return states[1:], own["h_n"], own["c_n"]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        learned, needs_grad = ctx.saved_tensors[:10], ctx.needs_input_grad[2:]
        x = learned[0]
        if needs_reference(*ctx.saved_tensors, *gradients):
            return None, None, *reference_gradients(ctx.reference, learned, gradients, needs_grad)
        with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
            return _backward(ctx, *gradients)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    d_output, d_h, d_c = map(_contiguous, gradients)
    saved = map(_contiguous, ctx.saved_tensors[:12])  # a saved-tensor hook may return views
    x, _, _, weight_ih, weight_hh, *parameters, states, cells = saved
    plan, needs = ctx.plan, ctx.needs_input_grad[2:]
    _, hidden, _ = cells.shape
    steps = x.shape[0]
    launcher = plan.launcher(1, x, hidden, tuple(parameters))
    blocks = launcher.blocks
    wx = _product(weight_ih, x)
    wh = torch.empty_like(wx)  # W_h h_{t-1}
    before = states[:-1].flatten(0, 1)
    torch.mm(weight_hh, before.t(), out=wh.flatten(1))
    scale_hh, shift_c, scale_c = x.new_empty(6 * steps * hidden).split(
        [4 * steps * hidden, steps * hidden, steps * hidden]
    )
    of_steps = {"scale_hh": scale_hh, "shift_c": shift_c, "scale_c": scale_c, "cells": cells}
    launcher.all_steps("before_backward", steps, hidden, wx=wx, wh=wh, **of_steps)

    sums, d_c_0 = x.new_empty(blocks.chunks, 10 * hidden), x.new_empty(x.shape[1], hidden)
    launcher.step_by_step(
        "backward", steps, backwards=True, gates=wx, hats=wh, weight_hh=weight_hh,
        exchange=x.new_empty(blocks.chunks, 2, 4 * hidden, blocks.BLOCK_B), d_output=d_output,
        d_h=d_h, d_c=d_c, d_c_0=d_c_0, sums=sums, **of_steps,
    )  # fmt: skip

    dz, d_wh = wx, wh.flatten(1)  # the kernel has replaced the projections
    d_gamma_ih = None
    if parameters[1] is not None:
        d_gamma_ih = _normalize_inputs_backward(launcher, dz, weight_ih, x)
    d_wx = dz.flatten(1)
    total = sums[0] if blocks.chunks == 1 else sums.sum(0)
    d_bias, d_gamma_hh, d_gamma_c, d_beta_c = total.split([4 * hidden, 4 * hidden, hidden, hidden])
    of_parameters = [
        None if parameter is None else gradient
        for parameter, gradient in zip(
            parameters, [d_bias, d_gamma_ih, d_gamma_hh, d_gamma_c, d_beta_c], strict=True
        )
    ]
    return (
        None,
        None,
        (d_wx.t() @ weight_ih).view_as(x) if needs[0] else None,
        wh[:, 0].t() @ weight_hh if needs[1] else None,
        d_c_0,
        d_wx @ x.flatten(0, 1) if needs[3] else None,
        d_wh @ before if needs[4] else None,
        *of_parameters,
    )


def _normalize_inputs_backward(
    launcher: Launcher, dz: Tensor, weight_ih: Tensor, x: Tensor
) -> Tensor:
    """Replaces dz by the gradient of W_x x_t and returns that of γ_x.

    W_x x_t is computed again, a slice of the steps at a time where it is large, because keeping it
    would take as much memory as the gates.
    """
    features, steps, _ = dz.shape
    d_gamma = dz.new_empty(launcher.blocks.chunks, steps, features)
    slices = min(_SLICES, -(-dz.nbytes // _SLICE_BYTES))
    length = -(-steps // slices)
    for start in range(0, steps, length):
        wx = _product(weight_ih, x[start : start + length])
        launcher.all_steps(
            "normalize_inputs_backward", wx.shape[1], features, dz=dz, wx=wx, d_gamma=d_gamma,
            t_first=start, wx_steps=wx.shape[1],
        )  # fmt: skip
    return d_gamma.sum((0, 1))


def _contiguous(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """Computes W x for all steps: (4H, I), (T, B, I) -> (4H, T, B)."""
    return torch.mm(weight, x.flatten(0, 1).t()).view(-1, *x.shape[:2])
