"""Runs the recurrence on a CPU by a plain C library (cpu.c) that is compiled at first use.

It serves float32 and float64 and the cell norms none, output, update and center, with or without
norms of the projections. One pass over time in each direction does everything, products included;
see call.h for how threads share the work.

The forward pass saves for the backward pass, in units of T * B * H numbers, the products W_h h (4)
and the raw cell (1), beside the output (1), which the caller has anyway. W_x x is computed again if
the input is narrow, and saved (4) if not. With `recompute` only the raw cell (1) is saved. The
products are then computed again, in the same order of sums, so that every gradient has the same
bits. The batch statistics are saved (18 T H at most). torch.nn.LSTM saves about 15.5 beside its
output.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elstm.nn.backends.cpu import library
from elstm.nn.backends.cpu.library import BITS, LAYER, Computed, Constants, Learned
from elstm.nn.backends.gradients import (
    Reference,
    learned_tensors,
    needs_reference,
    reference_gradients,
    reference_of,
)
from elstm.nn.backends.plain import constant_result
from elstm.nn.layer_norm import merged_recurrence
from elstm.nn.recurrence import Call, NormInputs, Results, Statistics

_CELLS = {"none": 0, "output": 1, "update": 2, "center": 3}  # and LAYER


def refuses(call: Call) -> str | None:
    """Returns why this backend cannot serve the call, in one line; None where it can."""
    x, cell_norm = call.x, call.cell_norm
    if cell_norm not in _CELLS:
        return f"cell_norm {cell_norm!r} (it has {', '.join(_CELLS)})"
    weights = call.weight_ih, call.weight_hh, call.bias
    return refuses_tensors(x, call.h_0, call.c_0, *weights, *_tensors(*call.norms))


def refuses_tensors(x: Tensor, *others: Tensor | None) -> str | None:
    """Returns why the library cannot take these tensors, in one line; None where it can."""
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    if torch.compiler.is_exporting():
        return "an exported program must run without this package"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if x.dtype not in BITS:
        return f"dtype {x.dtype} (it has float32 and float64)"
    for tensor in others:
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            return f"tensors of {x.dtype} on {x.device} and of {tensor.dtype} on {tensor.device}"
    if not x.shape[0] or not x.shape[1]:
        return "there is no step or no sequence"
    return _unavailable(BITS[x.dtype])


@constant_result
def _unavailable(bits: int) -> str | None:
    return library.unavailable(bits)


def _tensors(*norms: NormInputs | None) -> list[Tensor | None]:
    return [t for norm in norms if norm is not None for t in norm[:4]]


def recurrence(call: Call) -> Results:
    """Does what elstm.nn.recurrence.recurrence does, for a call that `refuses` lets through."""
    output, h_n, c_n, *found = run(reference_of(call), _constants(call), learned_tensors(call))
    pairs = zip(call.norms[:3], found[::2], found[1::2], strict=True)
    statistics = [
        None if norm is None else Statistics(mean, None if norm.weight is None else var)
        for norm, mean, var in pairs
    ]
    return Results(output, h_n, c_n, (*statistics, None))


def run(
    reference: Reference, constants: Constants, learned: Sequence[Tensor | None]
) -> Sequence[Tensor]:
    """Runs the library, and connects its results to the graph of autograd.

    Returns:
        output, h_n, c_n, and mean and variance of the three norms.
    """
    # ctx.needs_input_grad does not depend on whether gradients are enabled.
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learned)
    if torch.compiler.is_dynamo_compiling():
        found = torch.ops.elstm.cpu_forward(*learned, *_schema_order(constants), keep)
        return found[:9]
    if keep:
        # Contiguous before autograd sees them: what it saves has to be the inputs themselves.
        contiguous = [None if t is None else t.contiguous() for t in learned]
        return _CpuRecurrence.apply(reference, constants, *contiguous)
    results = library.forward(constants, _contiguous(learned), False)
    return (*results[:3], *results.statistics)


def _constants(call: Call) -> Constants:
    norms = call.norms[:3]
    population = [t for n in norms for t in ((None,) * 2 if n is None else (n.mean, n.var))]
    return Constants(
        None if call.batch_sizes is None else tuple(call.batch_sizes),
        tuple(0 if norm is None else norm.batch_steps for norm in norms),
        _CELLS[call.cell_norm],
        tuple(0.0 if norm is None else norm.eps for norm in norms),
        tuple(None if t is None else t.contiguous() for t in population),
        call.recompute,
    )


class _CpuRecurrence(torch.autograd.Function):
    """Runs the recurrence in eager mode, where a custom op adds several times its overhead."""

    @staticmethod
    def forward(
        ctx: Any, reference: Reference, constants: Constants, *learned: Tensor | None
    ) -> tuple[Tensor, ...]:
        contiguous = _contiguous(learned)
        output, h_n, c_n, statistics, kept = library.forward(constants, contiguous, True)
        ctx.reference, ctx.constants = reference, constants
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*statistics)
        saved = (*learned, output, *statistics, *kept)
        ctx.layouts = [None if t is None else (t.shape, t.dtype, t.device) for t in saved]
        ctx.save_for_backward(*saved)
        return output, h_n, c_n, *statistics

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, given = ctx.saved_tensors, upstream[:3]
        for tensor, layout in zip(saved, ctx.layouts, strict=True):
            if tensor is not None and (tensor.shape, tensor.dtype, tensor.device) != layout:
                raise RuntimeError(
                    "a saved-tensor hook returned a tensor of another shape, dtype or device:"
                    f" {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
                )
        learned, needs_grad = saved[:_LEARNED_END], ctx.needs_input_grad[2:]
        if needs_reference(*saved, *given):
            return None, None, *reference_gradients(ctx.reference, learned, given, needs_grad)
        results = _results([_aligned(t) for t in saved[_LEARNED_END:]])
        gradients = [None if g is None else g.contiguous() for g in given]
        found = library.backward(
            ctx.constants, _contiguous(learned), results, gradients, needs_grad
        )
        returned = (g if needed else None for g, needed in zip(found, needs_grad, strict=True))
        return None, None, *returned


def _contiguous(learned: Sequence[Tensor | None]) -> Learned:
    return Learned(*(None if t is None else t.contiguous() for t in learned))  # type: ignore[arg-type]


def _aligned(tensor: Tensor) -> Tensor:
    """Returns the tensor as the C code reads saved tensors: contiguous, aligned to 64 bytes.

    A saved-tensor hook may return it anywhere.
    """
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 64 else tensor


def _results(saved: Sequence[Tensor]) -> Computed:
    """Reads the output, six statistics and three kept tensors; backward needs no h_n and c_n."""
    nothing = saved[0].new_empty(0)
    return Computed(saved[0], nothing, nothing, tuple(saved[1:7]), tuple(saved[7:]))


# The same as a custom op, for torch.compile, which cannot trace C.

_LEARNED = (
    "Tensor x, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias,"
    " Tensor? gamma_ih, Tensor? gamma_hh, Tensor? gamma_c, Tensor? beta_c"
)
_POPULATION = ", ".join(
    f"Tensor? {s}_{norm}" for norm in ("ih", "hh", "c") for s in ("mean", "var")
)
_NUMBERS = "int[]? batch_sizes, SymInt[] batch_steps, int cell, float[] eps, bool recompute"
_CONSTANTS = f"{_POPULATION}, {_NUMBERS}"
# Where the tensors with gradients end in a call, then all tensors, then all constants.
_LEARNED_END = len(Learned._fields)
_TENSORS_END = _LEARNED_END + 6
_CALL_END = _TENSORS_END + 5
_FORWARD_SCHEMA = f"({_LEARNED}, {_CONSTANTS}, bool keep) -> ({', '.join(['Tensor'] * 12)})"
_BACKWARD_SCHEMA = (
    f"({_LEARNED}, {_CONSTANTS}, Tensor[] results, Tensor?[] upstream, bool[] needs_grad)"
    " -> Tensor[]"
)


def _schema_order(constants: Constants) -> tuple[Any, ...]:
    sizes, batch_steps, cell, eps, population, recompute = constants
    return *population, sizes, batch_steps, cell, eps, recompute


def _from_schema(arguments: tuple[Any, ...]) -> tuple[Constants, Learned]:
    sizes, batch_steps, cell, eps, recompute = arguments[_TENSORS_END:_CALL_END]
    constants = Constants(
        sizes, tuple(batch_steps), cell, tuple(eps), arguments[_LEARNED_END:_TENSORS_END], recompute
    )
    return constants, _contiguous(arguments[:_LEARNED_END])


@torch.library.custom_op("elstm::cpu_forward", mutates_args=(), schema=_FORWARD_SCHEMA)
def _forward_op(*arguments: Any) -> tuple[Tensor, ...]:
    results = library.forward(*_from_schema(arguments), arguments[_CALL_END])
    return *results[:3], *results.statistics, *results.kept


@_forward_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    results = library.empty_results(*_from_schema(arguments), arguments[_CALL_END])
    return *results[:3], *results.statistics, *results.kept


@torch.library.custom_op("elstm::cpu_backward", mutates_args=(), schema=_BACKWARD_SCHEMA)
def _backward_op(*arguments: Any) -> list[Tensor]:
    constants, learned = _from_schema(arguments)
    results, upstream, needs_grad = arguments[_CALL_END:]
    given = [None if g is None else g.contiguous() for g in upstream]
    return library.backward(constants, learned, _results(results), given, needs_grad)


@_backward_op.register_fake
def _(*arguments: Any) -> list[Tensor]:
    return library.empty_gradients(_from_schema(arguments)[1], arguments[_CALL_END + 2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.constants = inputs[_TENSORS_END:_CALL_END]
    ctx.save_for_backward(*inputs[:_TENSORS_END], output[0], *output[3:])


def _gradient(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    saved, needs_grad = ctx.saved_tensors, list(ctx.needs_input_grad[:_LEARNED_END])
    learned, given = saved[:_LEARNED_END], list(upstream[:3])
    if torch.is_grad_enabled():
        reference = _reference_of(saved[_LEARNED_END:_TENSORS_END], learned, *ctx.constants)
        gradients = reference_gradients(reference, learned, given, needs_grad)
    else:
        results = list(saved[_TENSORS_END:])
        found = torch.ops.elstm.cpu_backward(
            *saved[:_TENSORS_END], *ctx.constants, results, given, needs_grad
        )
        gradients = [g if needed else None for g, needed in zip(found, needs_grad, strict=True)]
    return *gradients, *[None] * (_CALL_END + 1 - _LEARNED_END)


def _reference_of(
    population: Sequence[Tensor | None],
    learned: Sequence[Tensor | None],
    sizes: Sequence[int] | None,
    batch_steps: Sequence[int],
    cell: int,
    eps: Sequence[float],
    recompute: bool,
) -> Reference:
    """Returns the reference for the call that the arguments of the custom op came from."""
    if cell == LAYER:
        return partial(merged_recurrence, sizes, eps)
    nothing: Any = None

    def norm(n: int) -> NormInputs | None:
        gamma, beta = learned[6 + n], learned[9] if n == 2 else None
        if gamma is None and beta is None:
            return None
        mean, var = population[2 * n : 2 * n + 2]
        return NormInputs(gamma, beta, mean, var, eps[n], batch_steps[n])

    name = next(name for name, number in _CELLS.items() if number == cell)
    call = Call(
        x=nothing,
        batch_sizes=None if sizes is None else list(sizes),
        h_0=nothing,
        c_0=nothing,
        weight_ih=nothing,
        weight_hh=nothing,
        bias=None,
        norm_ih=norm(0),
        norm_hh=norm(1),
        norm_c=norm(2),
        norm_c2=None,
        cell_norm=name,
        recompute=recompute,
    )
    return reference_of(call)


_forward_op.register_autograd(_gradient, setup_context=_save)
