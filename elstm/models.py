"""Builds classifiers of sequences from the table of models that `model=` names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from elstm.nn import BNLSTM, ELSTMBN, GRU, LSTM, LayerNormLSTM
from elstm.nn.base import RecurrentBase, State
from elstm.nn.bn_lstm import NormalizedLSTM

RECURRENT_LAYERS: dict[str, type[RecurrentBase]] = {
    "lstm": LSTM,
    "gru": GRU,
    "ln_lstm": LayerNormLSTM,
    "bn_lstm": BNLSTM,
    "bn_lstm_published": BNLSTM,
    "bn_lstm_input": ELSTMBN,  # cell_norm none, normalize_hidden false: Laurent et al. 2015
    "bn_lstm_gates": ELSTMBN,  # cell_norm none
    "elstm_bn": ELSTMBN,
    "elstm_bn_center": ELSTMBN,  # cell_norm center
}


class SequenceClassifier(nn.Module):
    """Classifies sequences by recurrent layers and a linear head on the last hidden state.

        logits = W h_T + b        with h_T of both directions, where there are two

    Attributes:
        rnn: a layer of elstm.nn.
        head: nn.Linear(D * H, num_classes).
    """

    def __init__(self, rnn: RecurrentBase, num_classes: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.directions = 2 if rnn.bidirectional else 1
        self.head = nn.Linear(self.directions * rnn.hidden_size, num_classes)

    def logits(self, state: State | Tensor) -> Tensor:
        """Maps the layers' final state, as `rnn` returns it, to logits (B, num_classes)."""
        h_n = state if isinstance(state, Tensor) else state[0]  # a GRU's state is h_n alone
        return self.head(h_n[-self.directions :].transpose(0, 1).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps sequences (T, B, F) to logits (B, num_classes)."""
        _, state = self.rnn(x)
        return self.logits(state)


def build_model(
    name: str,
    options: Mapping[str, Any],
    *,
    input_size: int,
    num_steps: int,
    num_classes: int,
    sync_batch_stats: bool = False,
) -> SequenceClassifier:
    """Builds a model of the table with weights from torch's generator.

    Args:
        name: a key of RECURRENT_LAYERS.
        options: arguments of its layer.
        num_steps: T; the layer keeps statistics for each of these steps.
        sync_batch_stats: batch statistics of all processes; ignored by layers without any.
    """
    layer = RECURRENT_LAYERS[name]
    sync = {"sync_batch_stats": sync_batch_stats} if issubclass(layer, NormalizedLSTM) else {}
    rnn = layer(input_size, max_steps=num_steps, **options, **sync)
    return SequenceClassifier(rnn, num_classes)


def equations(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options that decide what function a model's weights compute, and its norms' eps.

    Two models with the same result compute the same function from the same weights, whatever their
    names are. Sizes are as in `options`. Options that only train or initialise weights are left
    out.

    Args:
        name, options: as in `build_model`.
    """
    smallest = {**options, "hidden_size": 2, "num_layers": 1, "dropout": 0.0}
    with torch.device("meta"):
        layer = RECURRENT_LAYERS[name](1, max_steps=1, **smallest)
    kind = NormalizedLSTM if isinstance(layer, NormalizedLSTM) else type(layer)
    found = {"layer": kind.__name__}
    for key in ("cell_norm", "normalize_input", "normalize_hidden"):
        if hasattr(layer, key):
            found[key] = getattr(layer, key)
    for key in ("hidden_size", "num_layers", "bidirectional", "learn_initial_state"):
        found[key] = options[key]
    eps: dict[str, Any] = {
        norm.partition("_l0")[0]: module.eps
        for norm, module in layer.named_children()
        if hasattr(module, "eps")
    }
    return found, eps
