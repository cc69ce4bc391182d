"""Calls cpu.c from Python, with a function for each direction."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from elstm.nn.backends.cpu import build, check, memory
from elstm.nn.backends.cpu.structs import CallStruct, ThreadPool, prototypes

log = logging.getLogger(__name__)

BITS = {torch.float32: 32, torch.float64: 64}
LAYER = 4  # CELL_LAYER of call.h: layer normalisation
Empty = Callable[..., Tensor]  # (like, *shape)
# W_x x is computed again in the backward pass up to this I, where that costs less than keeping it.
RECOMPUTED_INPUTS = 16


class Constants(NamedTuple):
    """Holds the parts of a call that need no gradients."""

    batch_sizes: tuple[int, ...] | None
    batch_steps: tuple[int, ...]  # of norm_ih, norm_hh and norm_c, as below
    cell: int  # enum cell of call.h
    eps: tuple[float, ...]
    population: tuple[Tensor | None, ...]  # mean and var, (T, F), of each
    recompute: bool  # save only the raw cell for backward


class Learned(NamedTuple):
    """Holds the contiguous tensors that gradients flow to; a norm that is absent is None."""

    x: Tensor
    h_0: Tensor
    c_0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    gamma_ih: Tensor | None
    gamma_hh: Tensor | None
    gamma_c: Tensor | None
    beta_c: Tensor | None

    @property
    def gammas(self) -> tuple[Tensor | None, ...]:
        return self.gamma_ih, self.gamma_hh, self.gamma_c

    @property
    def statistics(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        """Returns two tensors for each norm, with the shapes of its mean and its variance.

        A part is None where a norm has no such statistics. The cell's norm may have β and a mean
        alone.
        """
        of_cell = self.beta_c if self.gamma_c is None else self.gamma_c
        means = self.gamma_ih, self.gamma_hh, of_cell
        return tuple(zip(means, self.gammas, strict=True))


class Computed(NamedTuple):
    """Holds what forward computes; a tensor that does not apply is empty."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    statistics: tuple[Tensor, ...]  # batch mean and variance of each norm, (batch_steps, F)
    kept: tuple[Tensor, ...]  # for backward: W_h h, W_x x, the raw cell


@cache
def library(bits: int, target: str | None = None) -> ctypes.CDLL:
    """Returns the library for float (32) or double (64); `target` as in build.load.

    Raises:
        build.BuildError: there is none; the message gives the reason.
    """
    verify = partial(check.in_own_process, bits=bits)
    loaded = build.load("cpu.c", (f"-DREAL_BITS={bits}",), target, verify)
    prototypes(loaded)
    if loaded.elstm_call_size() != ctypes.sizeof(CallStruct):
        raise build.BuildError("the compiled library and structs.py disagree")
    return loaded


@cache
def unavailable(bits: int) -> str | None:
    """Returns why there is no library, in one line; None where there is."""
    try:
        library(bits)
    except build.BuildError as error:
        log.warning("BN layers run on the reference, several times slower: %s", error)
        return str(error)
    return None


@cache
def openmp() -> tuple[int | None, ...]:
    """Returns functions of the OpenMP library that torch has loaded, so no second one is needed.

    Without them (three times None) the C code starts POSIX threads.
    """
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    try:
        loaded = ctypes.CDLL(None)
        return tuple(ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in names)
    except (AttributeError, OSError, TypeError):
        return None, None, None


def empty_results(
    constants: Constants, learned: Learned, keep: bool, empty: Empty = Tensor.new_empty
) -> Computed:
    """Allocates the results; those that only backward needs, if `keep`."""
    x, units = learned.x, learned.weight_hh.shape[1]
    steps, rows, inputs = x.shape
    lanes = library(BITS[x.dtype]).elstm_lanes()
    slices = -(-units // lanes)
    plain = learned.gamma_ih is None and learned.gamma_hh is None
    gates, nothing = (slices, steps, rows, 4 * lanes), (0,)
    keep_zh = keep and not constants.recompute
    keep_zx = keep_zh and not plain and inputs > RECOMPUTED_INPUTS
    return Computed(
        empty(x, steps, rows, units),
        empty(x, rows, units),
        empty(x, rows, units),
        tuple(empty(x, *shape) for shape in _statistics(constants, learned, keep)),
        (
            empty(x, *(gates if keep_zh else nothing)),
            empty(x, *(gates if keep_zx else nothing)),
            empty(x, *((slices, steps, rows, lanes) if keep else nothing)),
        ),
    )


def _statistics(constants: Constants, learned: Learned, keep: bool) -> list[tuple[int, ...]]:
    """Returns the shapes of mean and variance of each norm."""
    if constants.cell == LAYER:  # of rows; only that of the cell has a mean
        of_rows = tuple(learned.x.shape[:2]) if keep else (0,)
        return [(0,), of_rows, (0,), of_rows, of_rows, of_rows]
    return [
        (0,) if like is None else (steps, like.shape[0])
        for pair, steps in zip(learned.statistics, constants.batch_steps, strict=True)
        for like in pair
    ]


def empty_gradients(
    learned: Learned, needs_grad: Sequence[bool], empty: Empty = Tensor.new_empty
) -> list[Tensor]:
    """Allocates the gradients; x, h_0 and c_0 have one only if they need it."""
    return [
        empty(tensor, *tensor.shape)
        if tensor is not None and (index > 2 or needs_grad[index])
        else learned.x.new_empty(0)
        for index, tensor in enumerate(learned)
    ]


def forward(constants: Constants, learned: Learned, keep: bool) -> Computed:
    results = empty_results(constants, learned, keep, memory.empty)
    _run("forward", BITS[learned.x.dtype], _call(constants, learned, results))
    return results


def backward(
    constants: Constants,
    learned: Learned,
    results: Computed,
    upstream: Sequence[Tensor | None],
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    """Returns the gradients of `learned`, given those of output, h_n and c_n (None: zero)."""
    gradients = empty_gradients(learned, needs_grad, memory.empty)
    call = _call(constants, learned, results)
    for name, tensor in zip(CallStruct.gradients, (*upstream, *gradients[:6]), strict=True):
        setattr(call, name, _pointer(tensor))
    for name, d_gamma in zip(CallStruct.norms, gradients[6:9], strict=True):
        getattr(call, name).d_gamma = _pointer(d_gamma)
    call.norm_c.d_beta = _pointer(gradients[9])
    _run("backward", BITS[learned.x.dtype], call)
    return gradients


def _run(direction: str, bits: int, call: CallStruct) -> None:
    """Runs the function elstm_forward or elstm_backward."""
    loaded = library(bits)
    block = memory.acquire(loaded.elstm_workspace(call, direction == "backward"))
    call.workspace = block.address
    getattr(loaded, f"elstm_{direction}")(call)
    memory.release(block)


def _set_batch_sizes(call: CallStruct, sizes: Sequence[int] | None) -> None:
    if sizes is not None:
        call.sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        call.batch_sizes = ctypes.addressof(call.sizes)  # `sizes` lives as long as the call


def _pointer(tensor: Tensor | None) -> int | None:
    """Returns the address of a tensor; null for an empty one, as torch has it, and for None."""
    return None if tensor is None else tensor.data_ptr() or None


def _call(constants: Constants, learned: Learned, results: Computed) -> CallStruct:
    """Fills the struct of a call, all but the gradients."""
    units = learned.weight_hh.shape[1]
    call = CallStruct(
        *(
            *learned.x.shape,
            units,
            max(constants.batch_steps),
            constants.cell,
            torch.get_num_threads(),
        )
    )
    for name, tensor in zip(CallStruct.given[1:], learned, strict=False):
        setattr(call, name, _pointer(tensor))
    _set_batch_sizes(call, constants.batch_sizes)
    for index, name in enumerate(CallStruct.norms):
        norm = getattr(call, name)
        norm.gamma, norm.eps = _pointer(learned.gammas[index]), constants.eps[index]
        norm.batch_steps = constants.batch_steps[index]
        population = constants.population[2 * index : 2 * index + 2]
        norm.mean, norm.var = (_pointer(t) for t in population)
        of_batch = results.statistics[2 * index : 2 * index + 2]
        norm.batch_mean, norm.batch_var = (_pointer(t) for t in of_batch)
    call.norm_c.beta = _pointer(learned.beta_c)
    kept = (results.output, results.h_n, results.c_n, *results.kept)
    for name, tensor in zip(CallStruct.results, kept, strict=True):
        setattr(call, name, _pointer(tensor))
    call.pool = ThreadPool(*openmp())
    return call
