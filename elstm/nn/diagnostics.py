"""Measures a recurrence at each time step: gradients and cell statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from elstm.nn.base import RecurrentBase, State
from elstm.nn.statistics import batch_statistics


def over_time(
    layer: RecurrentBase,
    x: Tensor | PackedSequence,
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, Tensor]:
    """Measures gradient and cell at every step t of the last layer, forward direction; each (T,).

        gradient   |dL/dh_t|, the total derivative, through all later steps: the Frobenius norm
                   over units and over the sequences active at t
        cell_mean  mean of c_t over the same; a GRU has none
        cell_std   its standard deviation

    The reference recurrence computes them with batch statistics, without dropout or noise. Running
    statistics, gradients and the random state stay as they were.

    Args:
        layer: LSTM, BNLSTM, ELSTMBN, LayerNormLSTM or GRU.
        x: a batch as `layer` takes it.
        loss: loss(output, (h_n, c_n)) -> scalar; of a GRU loss(output, h_n), as its call returns.
    """
    taps: list[list[State]] = []

    def tapped(call: Any) -> Any:
        taps.append([])
        if not call.x.requires_grad:  # or there would be no graph where the parameters are frozen
            call = call._replace(x=call.x.detach().requires_grad_())
        return layer._reference(call, states=taps[-1])

    with batch_statistics(layer), torch.enable_grad():
        value = loss(*layer._run(x, None, tapped))
        forward = taps[-2 if layer.bidirectional else -1]
        hidden = [h for h, *_ in forward]
        gradients = torch.autograd.grad(value, hidden, materialize_grads=True)
    found = {"gradient": torch.stack([gradient.norm() for gradient in gradients])}
    cells = [c.detach() for _, *rest in forward for c in rest]
    if cells:
        found["cell_mean"] = torch.stack([c.mean() for c in cells])
        found["cell_std"] = torch.stack([c.std(correction=0) for c in cells])
    return found


def hidden_gradient_norms(
    layer: RecurrentBase,
    x: Tensor | PackedSequence,
    loss: Callable[[Any, Any], Tensor],
) -> Tensor:
    """Returns |dL/dh_t| for every step t, (T,); see `over_time`."""
    return over_time(layer, x, loss)["gradient"]
