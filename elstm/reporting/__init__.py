"""Makes reports with curves, tables and tests from run folders and archives. It needs no torch."""

import elstm.records.drawing  # noqa: F401  # before any module here imports matplotlib
