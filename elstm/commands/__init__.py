"""Contains the command lines beside elstm-train: evaluate, predict, export, report."""
