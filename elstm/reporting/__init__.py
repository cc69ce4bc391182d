"""Makes reports with curves, tables and tests from run folders and archives. It needs no torch.

- runs reads runs, groups sorts them by task and settings, and measures compares the groups.
- stats has the tests and intervals; figures and dynamics draw, and section and pages write.
- write makes a report, and pack an archive.
"""

import elstm.records.drawing  # noqa: F401  # before any module here imports matplotlib
