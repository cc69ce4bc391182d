"""Lets `python -m elstm.predict` run `elstm-predict` (elstm.commands.predict)."""

import sys

from elstm.commands.predict import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
