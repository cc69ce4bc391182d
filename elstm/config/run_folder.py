"""Names run folders: outputs/DATA/MODEL/CHANGES/TIME-ID, made of A-Z, a-z, 0-9, ".", "_" and "-".

Such a path is valid on all file systems, and as a value on a command line without quotes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from elstm.config.hints import all_keys
from elstm.config.schema import settings_outside_training

CHOICES = (
    "model",
    "data",
    "experiment",
)
TRAINERS = ("default", "gpu", "deterministic")  # they only decide where and how it is computed
MAX_CHANGES = 60  # characters of CHANGES without the seed
MAX_NUMBER = 8  # characters of a number that is written in full
HASH = 6


_RUN_NAME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}-[0-9a-f]{6}")


def is_run_name(name: str) -> bool:
    """Returns whether `run_name` gives such names."""
    return _RUN_NAME.fullmatch(name) is not None


def run_name() -> str:
    """Returns a folder name that no other run has: time to the microsecond, and a random id."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}-{secrets.token_hex(3)}"


def run_changes(overrides: Sequence[str], seed: Any) -> str:
    """Returns the changes of a run against its experiment, and its seed: "lr-0.003_seed-1".

    Settings that do not affect what is trained are left out. A long text is cut, and a hash of the
    complete one replaces the rest.

    Args:
        overrides: of the command line, KEY=VALUE with one value each.
    """
    changes: dict[str, str] = {}
    left_out = settings_outside_training()
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        group = key.partition(".")[0]
        if (
            (key in CHOICES and not value.strip().startswith("{"))
            or key in ("seed", "data.name")
            or key.startswith("hydra")
            or key in left_out
            or group in left_out
            or (key == "trainer" and value in TRAINERS)
        ):
            continue
        changes[key] = value
    text = "_".join(
        f"{_safe(_short_keys().get(key, key))}-{_safe(_value(value))}"
        for key, value in changes.items()
    )
    if len(text) > MAX_CHANGES:
        complete = "\n".join(f"{key}={value}" for key, value in changes.items())
        digest = hashlib.sha256(complete.encode(errors="replace")).hexdigest()[:HASH]
        text = f"{text[: MAX_CHANGES - HASH - 1].rstrip('-._')}-{digest}"
    last = f"seed-{_safe(str(seed)[:20])}"
    return f"{text}_{last}" if text else last


def _safe(text: str) -> str:
    return re.sub("[^A-Za-z0-9._-]+", "-", text).strip(".") or "none"


def _value(text: str) -> str:
    """Shortens a number with many digits, and a path to its last part."""
    text = text.strip().strip("'\"")
    try:
        number = float(text)
    except ValueError:
        return text.rstrip("/").rpartition("/")[2].strip("{}[]()'\" ")
    return text if len(text) <= MAX_NUMBER else f"{number:.4g}"


@lru_cache
def _short_keys() -> dict[str, str]:
    """Returns the part of each key after the dot where only one key has it."""
    keys = all_keys()
    counts = Counter(key.rpartition(".")[2] for key in keys)
    return {key: name for key in keys if counts[name := key.rpartition(".")[2]] == 1}
