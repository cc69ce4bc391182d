"""Turns run folders and archives into curves, tables, tests and pages. It needs no torch."""

import elstm.records.drawing  # noqa: F401  # before any module here imports matplotlib
