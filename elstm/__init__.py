"""Provides LSTMs with batch normalisation (elstm.nn), and experiments with them (elstm-train).

- elstm.nn has the layers, which import torch alone; elstm.models has the classifier.
- elstm.data, elstm.config, elstm.records, elstm.training and elstm.sweeps train and record runs.
- elstm.reporting compares runs; elstm.commands has the command lines beside elstm-train.
"""

__version__ = "0.1.0"
