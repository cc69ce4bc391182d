"""Reads the status of the runs of a sweep under ./outputs while it is active."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 600  # seconds, of a machine that has much else to do


def statuses() -> list[dict[str, Any]]:
    """Returns the status of all runs under ./outputs."""
    return [json.loads(p.read_text()) for p in Path("outputs").glob("*/*/*/*/status.json")]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
