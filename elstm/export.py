"""Lets `python -m elstm.export` run `elstm-export` (elstm.commands.export)."""

import sys

from elstm.commands.export import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
