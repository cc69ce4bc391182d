"""Defines the errors that commands print as one message, and the parts of such messages."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Other names of options, each with the options that it may mean.
ALIASES = {
    "gpu": ("cuda", "triton"),
    "cuda": ("gpu", "triton"),
    "none": ("constant",),
    "float16": ("fp16",),
    "float32": ("fp32",),
    "validation": ("val",),
}
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class UserError(Exception):
    """Reports an error that the user can fix: what was wrong, what is allowed, and how to fix it.

    A command prints the message on one line and exits with 1.
    """


class OtherProcessError(Exception):
    """Reports that another process of the job failed first and has printed its error.

    Args:
        summary: its rank and its error, on one line.
        details: its traceback.
    """

    def __init__(self, summary: str, details: str) -> None:
        super().__init__(summary)
        self.details = details


def out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out, that of the machine or of a GPU."""
    text = " ".join(str(error).split())
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )


def show(value: Any) -> str:
    """Returns a value as the user may have typed it, printable and short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = str(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a huge number"
    return _at_most(80, printable(text))  # printable first: the part that stays is not all blanks


def in_full(text: str) -> str:
    """Returns a path or command for the user to copy, printable and at most 600 characters long."""
    return _at_most(600, printable(text))


def printable(text: str) -> str:
    return re.sub(" +", " ", "".join(c if c.isprintable() else "?" for c in text))


def _at_most(length: int, text: str) -> str:
    return text if len(text) <= length else f"{text[:60]}... ({len(text):,} characters)"


def show_key(key: str) -> str:
    """Returns a key as an error message shows it."""
    return show(key) or "''"


def near_option(name: str, options: Iterable[str]) -> str | None:
    """Returns the nearest option without regard to case and underscores, or None."""
    plain = {_plain(option): option for option in reversed(list(options))}
    plain_name, meanings = _plain(name), ALIASES.get(name.lower(), ())
    for meaning in (plain_name, *meanings):
        if meaning in plain:
            return plain[meaning]
    if meanings:  # gpu is near cpu, which it does not mean
        return None
    if len(plain_name) > 2:
        starts = [option for key, option in plain.items() if key.startswith(plain_name)]
        if starts:
            return starts[-1]
    near = difflib.get_close_matches(plain_name, plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def suggestion(near: Sequence[str]) -> str:
    """Returns "; did you mean a, b or c?", or "" if nothing is near."""
    if not near:
        return ""
    *others, last = near
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns "; did you mean OPTION?", or "" if no option is near."""
    near = near_option(name, options)
    return suggestion([near] if near else [])


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
