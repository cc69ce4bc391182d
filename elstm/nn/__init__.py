"""Provides recurrent layers with batch normalisation that take the place of torch.nn.LSTM.

- BNLSTM and ELSTMBN normalise with batch statistics for each time step.
- LayerNormLSTM normalises over the units of each sequence. LSTM and GRU normalise nothing.
- recompute_statistics replaces population statistics before an evaluation, and batch_statistics
  makes a model evaluate with those of each batch.
- over_time and hidden_gradient_norms measure gradients and the cell at each time step.

The package imports torch alone. elstm/nn/README.md explains equations, statistics and backends.
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
