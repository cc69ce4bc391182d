"""LSTMs with batch normalisation: `elstm.nn` has the layers, `elstm-train` runs experiments."""

__version__ = "0.1.0"
