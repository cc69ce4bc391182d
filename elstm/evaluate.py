"""Lets `python -m elstm.evaluate` run `elstm-eval` (elstm.commands.evaluate)."""

import sys

from elstm.commands.evaluate import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
