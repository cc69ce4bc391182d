"""Tells the files of an earlier report from the user's own.

A report replaces the texts of an earlier one, and no other file of their names. It lists its
figures in report.html, so that a later report removes the old ones.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from elstm.errors import UserError

PAGE = "report.html"
MAX_HEAD = 4_000_000  # bytes of the page that are searched for the list, which is at the top
MAX_FIGURE = 64_000_000
# Only such files are ever removed.
_FIGURE = re.compile(r"figures/[A-Za-z0-9_=][A-Za-z0-9_.=-]*\.(?:png|svg)")
_LIST = re.compile(r'<meta name="elstm-figures" content="([^"]*)">')

# What each text of a report holds, of earlier versions too.
_MARKS = {
    PAGE: b"How these numbers are",
    "report.md": b"How these numbers are",
    "results.csv": b"task,group,model,",
    "summary.csv": b"task,group,model,",
}


def refuse_others(output: Path) -> None:
    """Raises UserError where a file with the name of a report's text is not a report's."""
    for name, mark in _MARKS.items():
        path = output / name
        try:
            other = path.exists() and not (path.is_file() and mark in path.read_bytes())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        if other:
            raise UserError(
                f"{path} is not the {name} of an earlier report, and would be overwritten: choose "
                "another folder with -o DIR, or move the file away"
            )


def figure_checksums(files: Mapping[str, bytes]) -> str:
    """Returns the figures among the files as JSON: the SHA-256 of each by its name."""
    return json.dumps({name: _digest(files[name]) for name in sorted(files) if _is_figure(name)})


def earlier_figures(output: Path) -> dict[str, str]:
    """Returns the figures that the report in a folder lists; none without a readable list."""
    page = output / PAGE
    try:
        if page.is_symlink() or not page.is_file():
            return {}
        with page.open("rb") as file:
            head = file.read(MAX_HEAD).decode("utf-8", errors="replace")
        found = _LIST.search(head)
        figures = json.loads(html.unescape(found[1])) if found else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(figures, dict):
        return {}
    return {name: digest for name, digest in figures.items() if _is_figure(name)}


def remove_figures(output: Path, figures: Mapping[str, str]) -> None:
    """Removes the listed figures, except those that have changed since the report."""
    folder = output / "figures"
    if folder.is_symlink():
        return
    for name, digest in figures.items():
        path = output / name
        with suppress(OSError):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FIGURE:
                continue
            if _digest(path.read_bytes()) == digest:
                path.unlink()
    with suppress(OSError):  # a folder that holds something stays
        folder.rmdir()


def _is_figure(name: str) -> bool:
    return _FIGURE.fullmatch(name) is not None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
