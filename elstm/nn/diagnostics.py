"""Looking into a recurrence: how much of the loss's gradient reaches each time step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from elstm.nn.base import RecurrentBase
from elstm.nn.norm import batch_statistics


def hidden_gradient_norms(
    layer: RecurrentBase,
    x: Tensor | PackedSequence,
    loss: Callable[[Any, Any], Tensor],
) -> Tensor:
    """|dL/dh_t| for every step t of the last layer, forward direction: (T,).

    The total derivative, through all later steps, as the Frobenius norm over units and over the
    sequences alive at t. The reference recurrence computes it, in batch mode without dropout or
    noise; statistics, gradients and the random state stay as they were.

    Args:
        layer: LSTM, BNLSTM, ELSTMBN, LayerNormLSTM or GRU.
        x: a batch as `layer` takes it.
        loss: loss(output, (h_n, c_n)) -> scalar; of a GRU loss(output, h_n), as its call returns.
    """
    taps: list[list[Tensor]] = []

    def tapped(x: Tensor, *call: Any) -> Any:
        taps.append([])
        if not x.requires_grad:  # or there would be no graph where the parameters are frozen
            x = x.detach().requires_grad_()
        return layer._reference(x, *call, hidden=taps[-1])

    with batch_statistics(layer), torch.enable_grad():
        value = loss(*layer._run(x, None, tapped))
        forward = taps[-2 if layer.bidirectional else -1]
        gradients = torch.autograd.grad(value, forward, materialize_grads=True)
    return torch.stack([gradient.norm() for gradient in gradients])
