"""Provides LSTMs with batch normalisation (elstm.nn), and experiments with them (elstm-train)."""

__version__ = "0.1.0"
