"""Runs the recurrence of LayerNormLSTM by Triton kernels, and its backward pass.

It has run in Triton's interpreter and through its compiler, not on a GPU. So `auto` does not take
it; backend="triton" does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from elstm.nn.backends.cuda import launch
from elstm.nn.sequences import packed_indices

MAX_UNITS = 1024
_PROGRAMS = 50  # at most: with more, they read W_h from L2 faster than it gives


def refuses(call: Any) -> str | None:
    """Returns why the kernels cannot serve a LayerNormCall, or None."""
    for tensor in (call.x, call.h_0, call.c_0, call.weight_ih, call.weight_hh):
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"computes in float32, got {tensor.dtype}"
    if not call.x.numel():
        return "the batch is empty"
    reason = launch.refuses_device(call.x.device)
    if reason is None and call.h_0.shape[1] > MAX_UNITS:
        return f"serves at most {MAX_UNITS} hidden units, got {call.h_0.shape[1]}"
    return reason


@torch.compiler.disable
def recurrence(call: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Runs elstm.nn.layer_norm.layer_norm_recurrence; its gradient cannot be differentiated.

    torch and its autograd compute LN(W_x x_t) + b, which does not depend on the step before.
    """
    x, batch_sizes, h_0, c_0, weight_ih, weight_hh, bias, norm_ih, norm_hh, norm_c = call
    projected = F.linear(x, weight_ih)
    with torch.autocast(x.device.type, enabled=False):
        z_x = norm_ih(projected).float()
        if bias is not None:
            z_x = z_x + bias.float()
        active = None if batch_sizes is None else packed_indices(batch_sizes, x).counts
        plan = _LayerNormPlan(
            active, float(norm_hh.eps), float(norm_c.eps), torch.is_grad_enabled()
        )
        norms = norm_hh.weight, norm_hh.bias, norm_c.weight, norm_c.bias
        tensors = z_x, h_0, c_0, weight_hh, *norms
        results = _LayerNormRecurrence.apply(plan, *(tensor.float() for tensor in tensors))
    output, h_n, c_n = (part.to(projected.dtype) for part in results)
    return output, h_n, c_n


class _LayerNormPlan(NamedTuple):
    """Holds the arguments that need no gradients."""

    active: Tensor | None  # batch_sizes on the device, (T,) int32
    eps_h: float
    eps_c: float
    keep: bool  # what the backward pass needs

    def start(self, name: str, cells: Tensor, **own: Any) -> None:
        steps, batch, hidden = cells.shape
        block_b = rows_of(batch)
        shared = {
            "active_rows": self.active, "eps_h": self.eps_h, "eps_c": self.eps_c,
            "steps": steps - 1, "batch": batch, "H": hidden, "BLOCK_B": block_b,
            "cells": cells, "BLOCK_H": 1 << (hidden - 1).bit_length(), "KEEP": self.keep,
        }  # fmt: skip
        kernel = launch.kernels()[f"layer_norm_{name}"]
        given = shared | own
        arguments = [given[argument] for argument in kernel.arg_names]
        launch.start(kernel, (-(-batch // block_b),), arguments, {"num_warps": 8})


def rows_of(batch: int) -> int:
    """Returns how many sequences a program takes."""
    return 1 << (max(1, -(-batch // _PROGRAMS)) - 1).bit_length()


class _LayerNormRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _LayerNormPlan, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_x, h_0, c_0, weight_hh, a_h, b_h, a_c, b_c = (part.contiguous() for part in inputs)
        steps, (batch, hidden) = z_x.shape[0], h_0.shape
        states, cells = (z_x.new_empty(steps + 1, batch, hidden) for _ in range(2))
        states[0], cells[0] = h_0, c_0
        gates = hats = scales = None
        if plan.keep:
            gates, hats = torch.empty_like(z_x), torch.empty_like(z_x)
            scales = z_x.new_empty(steps, batch)
        h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
        with torch.cuda.device_of(z_x):
            plan.start(
                "forward", cells, z_x=z_x, weight_t=weight_hh.t().contiguous(), a_h=a_h, b_h=b_h,
                a_c=a_c, b_c=b_c, states=states, h_n=h_n, c_n=c_n, gates=gates,
                hats=hats, scales=scales,
            )  # fmt: skip
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight_hh, a_h, a_c, b_c, states, cells, gates, hats, scales)
        return states[1:], h_n, c_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        weight_hh, a_h, a_c, b_c, states, cells, gates, hats, scales = ctx.saved_tensors
        d_output, d_h, d_c = (None if part is None else part.contiguous() for part in gradients)
        _, batch, hidden = states.shape
        dz, d_wh = gates.clone(), hats.clone()  # a second backward pass needs the others again
        programs = -(-batch // rows_of(batch))
        sums = dz.new_empty(programs, 6 * hidden)
        d_h_0, d_c_0 = (torch.empty_like(states[0]) for _ in range(2))
        with torch.autocast(dz.device.type, enabled=False), torch.cuda.device_of(dz):
            ctx.plan.start(
                "backward", cells, gates=dz, hats=d_wh, scales=scales,
                weight=weight_hh, a_h=a_h, a_c=a_c, b_c=b_c, d_output=d_output, d_h=d_h, d_c=d_c,
                d_h_0=d_h_0, d_c_0=d_c_0, sums=sums,
            )  # fmt: skip
            d_weight = d_wh.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
            d_a_h, d_a_c, d_b_c = sums.sum(0).split([4 * hidden, hidden, hidden])
            return None, dz, d_h_0, d_c_0, d_weight, d_a_h, dz.sum((0, 1)), d_a_c, d_b_c
