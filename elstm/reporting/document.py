"""Defines a document of a few kinds of blocks, and converts it to GitHub's Markdown."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace


class Bold(str):
    """Marks text that is bold."""


class Code(str):
    """Marks text that is copied literally, such as a name in a file."""


class Link(str):
    """Marks text that leads to `href`, a relative URL or an anchor of the page."""

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        link = super().__new__(cls, text)
        link.href = href
        return link


Inline = str | Sequence[str]  # pieces, some of them Bold, Code or Link


@dataclass(frozen=True)
class Heading:
    level: int
    text: str
    anchor: str = ""  # the name that GitHub gives it, set by `anchored`


@dataclass(frozen=True)
class Paragraph:
    text: Inline


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Inline]


@dataclass(frozen=True)
class Table:
    """Holds a table whose columns are aligned right, except those in `left`."""

    header: Sequence[str]
    rows: Sequence[Sequence[Inline]]
    left: Sequence[int] = (0,)


@dataclass(frozen=True)
class CurveLine:
    """Holds one line of a figure, which a reader of the HTML page can hover over and hide."""

    label: str
    colour: str
    dash: str  # as in SVG; empty for a solid line
    x: list[float]
    y: list[float]
    log: bool = False  # the y axis of the figure is logarithmic


@dataclass(frozen=True)
class Picture:
    """Holds a figure at `path` beside the report; the HTML page contains the SVG itself."""

    path: str  # of the PNG, relative to the report
    svg: bytes
    caption: str
    curves: Sequence[CurveLine] = ()


@dataclass(frozen=True)
class Details:
    """Holds blocks that the reader unfolds."""

    summary: str
    blocks: Sequence[Block] = field(default_factory=list)


Block = Heading | Paragraph | Bullets | Table | Picture | Details

# Special characters of Markdown or HTML. An underscore within a word is none.
_SPECIAL = re.compile(r"[\\`*\[\]|~&$]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])")


def anchored(blocks: Sequence[Block]) -> list[Block]:
    """Returns the blocks with the anchors that GitHub derives from the text of each heading."""
    counts: Counter[str] = Counter()
    result: list[Block] = []
    for block in blocks:
        if isinstance(block, Heading):
            slug = re.sub(r"[^\w\- ]", "", block.text.strip().lower()).replace(" ", "-")
            anchor = f"{slug}-{counts[slug]}" if counts[slug] else slug
            counts[slug] += 1
            block = replace(block, anchor=anchor)
        result.append(block)
    return result


def to_markdown(blocks: Sequence[Block]) -> str:
    """Writes the blocks as GitHub's Markdown, in which foreign text stays text."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_md(block.text)}"
    if isinstance(block, Paragraph):
        return _md(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_md(item)}" for item in block.items)
    if isinstance(block, Table):
        rule = [":--" if i in block.left else "--:" for i in range(len(block.header))]
        rows = [map(_md, block.header), rule, *(map(_md, row) for row in block.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    if isinstance(block, Picture):
        return f"![{_md(block.caption)}]({block.path})\n\n*{_md(block.caption)}*"
    inner = "\n\n".join(_markdown(inner) for inner in block.blocks)
    return f"<details>\n<summary>{html.escape(block.summary)}</summary>\n\n{inner}\n\n</details>"


def _md(text: Inline) -> str:
    pieces = [text] if isinstance(text, str) else text
    return "".join(_md_piece(piece) for piece in pieces)


def _md_piece(piece: str) -> str:
    if isinstance(piece, Code):
        # In a table a bar ends the cell even within code, and \\| would be a backslash and a bar.
        bars = re.sub(r"\\*\|", r"\\|", piece)
        return "`" + bars.replace("`", "'") + "`" if piece else ""
    if isinstance(piece, Link):
        return f"[{_md_piece(str(piece))}]({piece.href})"
    escaped = _SPECIAL.sub(lambda match: "\\" + match[0], piece)
    return f"**{escaped}**" if isinstance(piece, Bold) else escaped
