"""LSTM layers with batch normalisation, used like torch.nn.LSTM, and the layers to compare with.

This package needs torch alone.
"""

from elstm.nn.backends import BACKENDS
from elstm.nn.bn_lstm import BNLSTM, ELSTMBN
from elstm.nn.diagnostics import hidden_gradient_norms, over_time
from elstm.nn.gru import GRU
from elstm.nn.layer_norm_lstm import LayerNormLSTM
from elstm.nn.lstm import LSTM
from elstm.nn.recurrence import CELL_NORMS
from elstm.nn.statistics import batch_statistics, recompute_statistics, statistics_norms

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
