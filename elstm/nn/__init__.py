"""LSTM layers with batch normalisation, used like torch.nn.LSTM, and what they are compared with.

Needs torch alone.
"""

from elstm.nn.backends import BACKENDS
from elstm.nn.diagnostics import hidden_gradient_norms, over_time
from elstm.nn.gru import GRU
from elstm.nn.layer_norm import LayerNormLSTM
from elstm.nn.layers import BNLSTM, ELSTMBN, LSTM
from elstm.nn.norm import batch_statistics, recompute_statistics, statistics_norms
from elstm.nn.recurrence import CELL_NORMS

__all__ = [
    "BACKENDS",
    "BNLSTM",
    "CELL_NORMS",
    "ELSTMBN",
    "GRU",
    "LSTM",
    "LayerNormLSTM",
    "batch_statistics",
    "hidden_gradient_norms",
    "over_time",
    "recompute_statistics",
    "statistics_norms",
]
