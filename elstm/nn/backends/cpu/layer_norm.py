"""The recurrence with layer normalisation by the C library (layer_norm.h).

C runs what has to go step by step: the product W_h h_{t-1}, its norm and the cell, and the same
backward. LN(W_x x_t), the biases and the products over all steps are left to torch.

Kept for the backward pass, in numbers of T * B * H: the input's part of z (4), W_h h (4) and the
cell (1), beside the output (1) and what torch keeps for LN(W_x x_t) (4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elstm.nn.backends.cpu import library, memory
from elstm.nn.backends.cpu.library import BITS, pointer
from elstm.nn.backends.cpu.structs import CallStruct, ThreadPool
from elstm.nn.backends.gradients import needs_reference
from elstm.nn.layer_norm import LayerNormCall, run_steps

Kept = tuple[Tensor, Tensor]  # W_h h and the cell, as layer_norm.h lays them out


class LayerNormConstants(NamedTuple):
    """Holds what a call has beside tensors."""

    batch_sizes: tuple[int, ...] | None
    eps_h: float
    eps_c: float


class LayerNormInputs(NamedTuple):
    """Holds what gradients flow to. `given` (T, B, 4H) is all of z but LN(W_h h_{t-1})."""

    given: Tensor
    h_0: Tensor
    c_0: Tensor
    weight_hh: Tensor
    gamma_h: Tensor
    gamma_c: Tensor
    beta_c: Tensor


def refuses(call: LayerNormCall) -> str | None:
    """Returns why this backend cannot serve the call, in one line; None where it can."""
    x = call.x
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    if torch.compiler.is_exporting():
        return "an exported program must run without this package"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if x.dtype not in BITS:
        return f"dtype {x.dtype} (it has float32 and float64)"
    norms = call.norm_ih, call.norm_hh, call.norm_c
    weights = [weight for norm in norms for weight in (norm.weight, norm.bias)]
    for tensor in (call.h_0, call.c_0, call.weight_ih, call.weight_hh, call.bias, *weights):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            return f"tensors of {x.dtype} on {x.device} and of {tensor.dtype} on {tensor.device}"
    if not x.shape[0] or not x.shape[1]:
        return "there is no step or no sequence"
    return library.unavailable(BITS[x.dtype])


def recurrence(call: LayerNormCall) -> tuple[Tensor, Tensor, Tensor]:
    """Does what layer_norm_recurrence does, for a call that `refuses` lets through."""
    norm_hh, norm_c = call.norm_hh, call.norm_c
    given = call.norm_ih(F.linear(call.x, call.weight_ih)) + norm_hh.bias
    if call.bias is not None:
        given = given + call.bias
    learned = (given, call.h_0, call.c_0, call.weight_hh, norm_hh.weight, norm_c.weight)
    contiguous = LayerNormInputs(*(t.contiguous() for t in (*learned, norm_c.bias)))
    sizes = None if call.batch_sizes is None else tuple(call.batch_sizes)
    constants = LayerNormConstants(sizes, norm_hh.eps, norm_c.eps)
    if torch.is_grad_enabled() and any(t.requires_grad for t in contiguous):
        output, h_n, c_n = _LayerNormInC.apply(constants, *contiguous)
        return output, h_n, c_n
    return _forward(constants, contiguous, None)


class _LayerNormInC(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, constants: LayerNormConstants, *tensors: Tensor) -> tuple[Tensor, ...]:
        learned = LayerNormInputs(*tensors)
        kept = _empty_kept(learned)
        output, h_n, c_n = _forward(constants, learned, kept)
        ctx.constants = constants
        ctx.set_materialize_grads(False)
        saved = (*learned, output, *kept)
        ctx.layouts = [(t.shape, t.dtype, t.device) for t in saved]
        ctx.save_for_backward(*saved)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        for tensor, layout in zip(saved, ctx.layouts, strict=True):
            if (tensor.shape, tensor.dtype, tensor.device) != layout:
                raise RuntimeError(
                    "a saved-tensor hook returned a tensor of another shape, dtype or device:"
                    f" {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
                )
        learned = LayerNormInputs(*saved[:7])
        if needs_reference(*saved, *upstream):
            return None, *_gradients_by_operators(ctx.constants, learned, upstream, wanted)
        contiguous = LayerNormInputs(*(t.contiguous() for t in learned))
        output, zh, cell = (t.contiguous() for t in saved[7:])
        kept = tuple(t.clone() if t.data_ptr() % 64 else t for t in (zh, cell))
        found = _backward(ctx.constants, contiguous, output, kept, upstream)
        return None, *(g if want else None for g, want in zip(found, wanted, strict=True))


def _by_operators(
    constants: LayerNormConstants, learned: LayerNormInputs
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the same by torch's operators, which can be differentiated as often as wanted."""
    given, h_0, c_0, weight_hh, gamma_h, gamma_c, beta_c = learned
    sizes = None if constants.batch_sizes is None else list(constants.batch_sizes)
    return run_steps(
        given,
        sizes,
        h_0,
        c_0,
        weight_hh,
        lambda z: F.layer_norm(z, gamma_h.shape, gamma_h, None, constants.eps_h),
        lambda c: F.layer_norm(c, gamma_c.shape, gamma_c, beta_c, constants.eps_c),
    )


def _gradients_by_operators(
    constants: LayerNormConstants,
    learned: LayerNormInputs,
    upstream: tuple[Tensor | None, ...],
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """Returns what elstm.nn.backends.gradients.reference_gradients does, for this recurrence."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # Copies of the inputs as variables of their own: one input may depend on another.
        pairs = zip(learned, wanted, strict=True)
        variables = LayerNormInputs(*(t.view_as(t) if want else t for t, want in pairs))
        results = [
            (result, gradient)
            for result, gradient in zip(_by_operators(constants, variables), upstream, strict=True)
            if gradient is not None and result.requires_grad
        ]
        chosen = [t for t, want in zip(variables, wanted, strict=True) if want]
        if not results or not chosen:
            return [None] * len(wanted)
        found = iter(
            torch.autograd.grad(
                [result for result, _ in results],
                chosen,
                [gradient for _, gradient in results],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return [next(found) if want else None for want in wanted]


def _empty_kept(learned: LayerNormInputs) -> Kept:
    steps, rows, units = *learned.given.shape[:2], learned.weight_hh.shape[1]
    lanes = library.library(BITS[learned.given.dtype]).elstm_lanes()
    slices = -(-units // lanes)
    zh = memory.empty(learned.given, steps, rows, slices * 4 * lanes)
    return zh, memory.empty(learned.given, steps, rows, slices * lanes)


def _call(constants: LayerNormConstants, learned: LayerNormInputs, kept: Kept | None) -> CallStruct:
    steps, rows, features = learned.given.shape
    units = features // 4
    call = CallStruct(steps, rows, features, units, 0, 0, torch.get_num_threads())
    library.set_batch_sizes(call, constants.batch_sizes)
    call.x, call.h_0, call.c_0, call.w_h = (pointer(t) for t in learned[:4])
    call.norm_h.gamma, call.norm_h.eps = pointer(learned.gamma_h), constants.eps_h
    call.norm_c.gamma, call.norm_c.beta = pointer(learned.gamma_c), pointer(learned.beta_c)
    call.norm_c.eps = constants.eps_c
    if kept is not None:
        call.saved_zh, call.saved_c = map(pointer, kept)
    call.pool = ThreadPool(*library.openmp())
    return call


def _forward(
    constants: LayerNormConstants, learned: LayerNormInputs, kept: Kept | None
) -> tuple[Tensor, Tensor, Tensor]:
    steps, rows, units = *learned.given.shape[:2], learned.weight_hh.shape[1]
    output = memory.empty(learned.given, steps, rows, units)
    h_n, c_n = torch.empty_like(learned.h_0), torch.empty_like(learned.c_0)
    call = _call(constants, learned, kept)
    call.output, call.h_n, call.c_n = pointer(output), pointer(h_n), pointer(c_n)
    library.run("elstm_layer_norm", "forward", BITS[output.dtype], call)
    return output, h_n, c_n


def _backward(
    constants: LayerNormConstants,
    learned: LayerNormInputs,
    output: Tensor,
    kept: Kept,
    upstream: tuple[Tensor | None, ...],
) -> LayerNormInputs:
    """Returns the gradients of `learned`."""
    given = [None if g is None else g.contiguous() for g in upstream]
    d_given, d_zh = (memory.empty(output, *learned.given.shape) for _ in range(2))
    small = [torch.empty_like(t) for t in (learned.h_0, learned.c_0, *learned[4:])]
    call = _call(constants, learned, kept)
    call.output = pointer(output)
    call.d_output, call.d_h_n, call.d_c_n = map(pointer, given)
    call.d_x, call.saved_zx = pointer(d_given), pointer(d_zh)
    call.d_h_0, call.d_c_0, call.norm_h.d_gamma = map(pointer, small[:3])
    call.norm_c.d_gamma, call.norm_c.d_beta = map(pointer, small[3:])
    library.run("elstm_layer_norm", "backward", BITS[output.dtype], call)
    d_weight = d_zh[0].t() @ learned.h_0
    if len(output) > 1:
        d_weight.addmm_(d_zh[1:].flatten(0, 1).t(), output[:-1].flatten(0, 1))
    return LayerNormInputs(d_given, small[0], small[1], d_weight, *small[2:])
