"""From run folders to curves, tables and tests; knows files only, and no torch."""

import elstm.records.drawing  # noqa: F401  # before any module here imports matplotlib
