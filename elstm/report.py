"""Lets `python -m elstm.report` run `elstm-report` (elstm.commands.report)."""

import sys

from elstm.commands.report import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
