"""The recurrence on a CPU by a plain C library (cpu.c) that is compiled at first use.

Serves float32 and float64 and the cell norms none, output and update, with or without norms of the
projections. One pass over time in each direction does everything, products included; see cpu_call.h
for how threads share the work.

Kept for the backward pass, in units of T * B * H numbers: the products W_h h (4) and the raw cell
(1), beside the output (1), which the caller has anyway; W_x x is computed again where the input is
narrow and kept (4) where it is not. torch.nn.LSTM keeps about 15.5 beside its output.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from elstm.nn.backends import build
from elstm.nn.recurrence import NormInputs, Statistics

log = logging.getLogger(__name__)

_CELLS = {"none": 0, "output": 1, "update": 2}
_BITS = {torch.float32: 32, torch.float64: 64}


class _Pool(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("parallel", "thread", "threads")]


class _Norm(ctypes.Structure):
    _pointers = ("gamma", "beta", "mean", "var", "batch_mean", "batch_var", "d_gamma", "d_beta")
    _fields_ = [*((name, ctypes.c_void_p) for name in _pointers), ("eps", ctypes.c_double)]


class _Call(ctypes.Structure):
    """struct call of cpu_call.h."""

    _numbers = ("steps", "rows", "inputs", "units", "batch_steps", "cell", "threads")
    _before = ("batch_sizes", "x", "h_0", "c_0", "w_x", "w_h", "bias")
    _norms = ("norm_x", "norm_h", "norm_c")
    _after = (
        *("output", "h_n", "c_n", "saved_zh", "saved_zx", "saved_c"),
        *("d_output", "d_h_n", "d_c_n", "d_x", "d_h_0", "d_c_0", "d_w_x", "d_w_h", "d_bias"),
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _numbers),
        *((name, ctypes.c_void_p) for name in _before),
        *((name, _Norm) for name in _norms),
        *((name, ctypes.c_void_p) for name in _after),
        ("pool", _Pool),
    ]


@cache
def _library(bits: int, target: str | None = None) -> ctypes.CDLL:
    library = build.load("cpu.c", (f"-DREAL_BITS={bits}",), target)
    for name in ("elstm_forward", "elstm_backward"):
        getattr(library, name).argtypes = [ctypes.POINTER(_Call)]
    for name in ("elstm_lanes", "elstm_call_size"):
        getattr(library, name).restype = ctypes.c_int64
    if library.elstm_call_size() != ctypes.sizeof(_Call):
        raise build.BuildError("the compiled library and cpu.py disagree")
    return library


@cache
def _unavailable(bits: int) -> str | None:
    try:
        _library(bits)
    except build.BuildError as error:
        log.warning("BN layers run on the reference, several times slower: %s", error)
        return str(error)
    return None


@cache
def _openmp() -> tuple[int | None, int | None, int | None]:
    """Entry points of the OpenMP library that torch has loaded, so that no second one is needed."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    try:
        loaded = ctypes.CDLL(None)
        pointers = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in names]
    except (AttributeError, OSError):
        return None, None, None
    return pointers[0], pointers[1], pointers[2]


def refuses(
    x: Tensor,
    batch_sizes: list[int] | None,
    batch_steps: int,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    norm_ih: NormInputs | None,
    norm_hh: NormInputs | None,
    norm_c: NormInputs | None,
    norm_c2: NormInputs | None,
    cell_norm: str,
) -> str | None:
    """Why this backend cannot serve the call, in one line; None where it can."""
    if cell_norm not in _CELLS:
        return f"cell_norm {cell_norm!r} (it has {', '.join(_CELLS)})"
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export cannot look into C"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if x.dtype not in _BITS:
        return f"dtype {x.dtype} (it has float32 and float64)"
    for tensor in (h_0, c_0, weight_ih, weight_hh, bias, *_tensors(norm_ih, norm_hh, norm_c)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            return f"tensors of {x.dtype} on {x.device} and of {tensor.dtype} on {tensor.device}"
    if not x.shape[0] or not x.shape[1]:
        return "there is no step or no sequence"
    return _unavailable(_BITS[x.dtype])


def _tensors(*norms: NormInputs | None) -> list[Tensor | None]:
    return [tensor for norm in norms if norm is not None for tensor in norm[:4]]


def recurrence(
    x: Tensor,
    batch_sizes: list[int] | None,
    batch_steps: int,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    norm_ih: NormInputs | None,
    norm_hh: NormInputs | None,
    norm_c: NormInputs | None,
    norm_c2: NormInputs | None,
    cell_norm: str,
) -> tuple[Tensor, Tensor, Tensor, tuple[Statistics | None, ...]]:
    """As elstm.nn.recurrence.recurrence, for a call that `refuses` lets through."""
    norms = (norm_ih, norm_hh, norm_c)
    constants = (
        None if batch_sizes is None else tuple(batch_sizes),
        batch_steps,
        _CELLS[cell_norm],
        tuple(0.0 if norm is None else norm.eps for norm in norms),
        tuple(
            None
            if norm is None or norm.mean is None or norm.var is None
            else (norm.mean.contiguous(), norm.var.contiguous())
            for norm in norms
        ),
    )
    learned = (
        *(x, h_0, c_0, weight_ih, weight_hh, bias),
        *(None if norm is None else norm.weight for norm in norms),
        None if norm_c is None else norm_c.bias,
    )
    output, h_n, c_n, *statistics = _Recurrence.apply(constants, *learned)
    pairs = zip(norms, statistics[::2], statistics[1::2], strict=True)
    found = [None if norm is None else Statistics(mean, var) for norm, mean, var in pairs]
    return output, h_n, c_n, (*found, None)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, constants: tuple[Any, ...], *learned: Tensor | None) -> Any:
        keep = any(ctx.needs_input_grad)
        learned = tuple(None if t is None else t.contiguous() for t in learned)
        results, saved = _forward(constants, learned, keep)
        ctx.constants = constants
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[3:])
        if keep:
            ctx.save_for_backward(*learned, results[0], *results[3:], *saved)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        given = [None if g is None else g.contiguous() for g in gradients[:3]]
        return None, *_backward(
            ctx.constants,
            saved[:10],
            saved[10],
            saved[11:17],
            saved[17:],
            given,
            ctx.needs_input_grad[1:],
        )


def _forward(constants: tuple[Any, ...], learned: Sequence[Tensor | None], keep: bool) -> Any:
    x, _, _, _, weight_hh = learned[:5]
    assert x is not None
    assert weight_hh is not None
    steps, rows, inputs = x.shape
    units = weight_hh.shape[1]
    library = _library(_BITS[x.dtype])
    lanes = library.elstm_lanes()
    slices = -(-units // lanes)
    joint = learned[6] is None and learned[7] is None
    output = x.new_empty(steps, rows, units)
    h_n, c_n = x.new_empty(rows, units), x.new_empty(rows, units)
    statistics = [
        x.new_empty(
            constants[1] if gamma is not None else 0, units if gamma is None else gamma.shape[0]
        )
        for gamma in learned[6:9]
        for _ in range(2)
    ]
    saved: list[Tensor | None] = [None, None, None]
    if keep:
        saved[0] = x.new_empty(slices, steps, rows, 4 * lanes)
        if not joint and inputs > 16:
            saved[1] = x.new_empty(slices, steps, rows, 4 * lanes)
        saved[2] = x.new_empty(slices, steps, rows, lanes)
    call = _fill(constants, learned, statistics)
    for name, tensor in zip(_Call._after, (output, h_n, c_n, *saved), strict=False):
        setattr(call, name, None if tensor is None else tensor.data_ptr())
    if library.elstm_forward(ctypes.byref(call)):
        raise MemoryError("no memory for the recurrence")
    return (output, h_n, c_n, *statistics), saved


def _backward(
    constants: tuple[Any, ...],
    learned: Sequence[Tensor | None],
    output: Tensor,
    statistics: Sequence[Tensor],
    saved: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    results: list[Tensor | None] = []
    for index, tensor in enumerate(learned):
        always = index > 2  # of the parameters
        results.append(
            torch.empty_like(tensor) if tensor is not None and (always or wanted[index]) else None
        )
    call = _fill(constants, learned, statistics)
    kept = (output, None, None, *saved, *gradients, *results[:6])
    for name, tensor in zip(_Call._after, kept, strict=True):
        setattr(call, name, None if tensor is None else tensor.data_ptr())
    for norm, gamma in zip((call.norm_x, call.norm_h, call.norm_c), results[6:9], strict=True):
        norm.d_gamma = None if gamma is None else gamma.data_ptr()
    call.norm_c.d_beta = None if results[9] is None else results[9].data_ptr()
    if _library(_BITS[output.dtype]).elstm_backward(ctypes.byref(call)):
        raise MemoryError("no memory for the recurrence")
    return results


def _fill(
    constants: tuple[Any, ...], learned: Sequence[Tensor | None], statistics: Sequence[Tensor]
) -> _Call:
    """The parts of a call that both directions share."""
    sizes, batch_steps, cell, eps, population = constants
    x, weight_hh = learned[0], learned[4]
    assert x is not None
    assert weight_hh is not None
    call = _Call(*x.shape, weight_hh.shape[1], batch_steps, cell, torch.get_num_threads())
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in learned]
    call.x, call.h_0, call.c_0, call.w_x, call.w_h, call.bias = pointers[:6]
    if sizes is not None:
        call.sizes = (ctypes.c_int64 * len(sizes))(*sizes)  # kept alive with the call
        call.batch_sizes = ctypes.addressof(call.sizes)
    for index, norm in enumerate((call.norm_x, call.norm_h, call.norm_c)):
        norm.gamma, norm.eps = pointers[6 + index], eps[index]
        norm.batch_mean, norm.batch_var = (
            t.data_ptr() for t in statistics[2 * index : 2 * index + 2]
        )
        if population[index] is not None:
            norm.mean, norm.var = (t.data_ptr() for t in population[index])
    call.norm_c.beta = pointers[9]
    call.pool = _Pool(*_openmp())
    return call
