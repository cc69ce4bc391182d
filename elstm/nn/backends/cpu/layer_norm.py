"""Runs the recurrence with layer normalisation by the C library (layer_norm.h).

The forward pass saves for the backward pass, in numbers of T * B * H, W_h h (4) and the cell (1),
beside the output (1). W_x x is computed again if the input is narrow, and saved (4) if not, as in
backend.py. The four numbers that normalise a row at a step are saved as well.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from elstm.nn.backends.cpu import backend
from elstm.nn.backends.cpu.library import LAYER, Constants
from elstm.nn.layer_norm import LayerNormCall, merged_recurrence


def refuses(call: LayerNormCall) -> str | None:
    """Returns why this backend cannot serve the call, in one line; None where it can."""
    norms = call.norm_ih, call.norm_hh, call.norm_c
    of_norms = [weight for norm in norms for weight in (norm.weight, norm.bias)]
    weights = call.weight_ih, call.weight_hh, call.bias
    return backend.refuses_tensors(call.x, call.h_0, call.c_0, *weights, *of_norms)


def recurrence(call: LayerNormCall) -> tuple[Tensor, Tensor, Tensor]:
    """Does what layer_norm_recurrence does, for a call that `refuses` lets through."""
    norms = call.norm_ih, call.norm_hh, call.norm_c
    bias = norms[0].bias + norms[1].bias
    if call.bias is not None:
        bias = bias + call.bias
    gammas = [norm.weight for norm in norms]
    weights = call.weight_ih, call.weight_hh
    learned = (call.x, call.h_0, call.c_0, *weights, bias, *gammas, norms[2].bias)
    sizes = None if call.batch_sizes is None else tuple(call.batch_sizes)
    eps = tuple(norm.eps for norm in norms)
    constants = Constants(sizes, (0, 0, 0), LAYER, eps, (None,) * 6, False)
    output, h_n, c_n = backend.run(partial(merged_recurrence, sizes, eps), constants, learned)[:3]
    return output, h_n, c_n
