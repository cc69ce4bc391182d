"""A document of a few kinds of blocks, written as GitHub's Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


class Bold(str):
    """Text in bold."""


class Code(str):
    """Text as it stands in a file."""


Inline = str | Sequence[str]  # pieces, some of them Bold or Code


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: Inline


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Inline]


@dataclass(frozen=True)
class Table:
    """The first column is aligned left, as are those named in `left`; numbers go right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Inline]]
    left: Sequence[int] = (0,)


@dataclass(frozen=True)
class Picture:
    """A figure, at `path` beside the report; HTML carries the SVG within itself."""

    path: str  # of the PNG, relative to the report
    svg: bytes
    caption: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away at first."""

    summary: str
    blocks: Sequence[Block] = field(default_factory=list)


Block = Heading | Paragraph | Bullets | Table | Picture | Details

# What Markdown or HTML would take as a sign of its own; an underscore within a word is none.
_SPECIAL = re.compile(r"[\\`*\[\]|~&$]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])")


def to_markdown(blocks: Sequence[Block]) -> str:
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
    escaped = _SPECIAL.sub(lambda match: "\\" + match[0], piece)
    return f"**{escaped}**" if isinstance(piece, Bold) else escaped


_CSS = """
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  color: #1a1a1a; background: #fff; max-width: 72rem; margin: 0 auto;
  padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; margin: 0 0 .5rem; }
h2 { font-size: 1.4rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 2px solid #1a1a1a; }
h3 { font-size: 1.1rem; margin: 1.9rem 0 .5rem; }
p, li { max-width: 54rem; }
.table { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
th { border-bottom: 1.5px solid #1a1a1a; vertical-align: bottom; font-weight: 600; }
th.l, td.l { text-align: left; }
td { white-space: nowrap; }
td.l { white-space: normal; min-width: 7.5rem; overflow-wrap: break-word; }
td:first-child { white-space: nowrap; }
tbody tr:hover { background: #f5f5f5; }
figure { margin: 1.2rem 0 1.6rem; }
figure img { width: 100%; max-width: 54rem; height: auto; }
figcaption { font-size: .85rem; color: #444; max-width: 54rem; }
code { font: .85em ui-monospace, "DejaVu Sans Mono", monospace; background: #f2f2f2;
  padding: .1em .3em; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { font-size: 10pt; max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; } }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One file that needs no other and runs no script."""
    # The policy keeps even a mistake in escaping from loading or running anything.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_ht(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_ht(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>\n" + "\n".join(f"<li>{_ht(item)}</li>" for item in block.items) + "\n</ul>"
    if isinstance(block, Table):
        head = _cells("th", block.header, block.left)
        body = "\n".join(f"<tr>{_cells('td', row, block.left)}</tr>" for row in block.rows)
        table = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
        return f'<div class="table"><table>\n{table}\n</table></div>'
    if isinstance(block, Picture):
        # As an image, so that its identifiers stay its own and nothing in it can run.
        data = base64.b64encode(block.svg).decode("ascii")
        caption = _ht(block.caption)
        return (
            f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    inner = "\n".join(_html(inner) for inner in block.blocks)
    return f"<details>\n<summary>{html.escape(block.summary)}</summary>\n{inner}\n</details>"


def _cells(tag: str, row: Sequence[Inline], left: Sequence[int]) -> str:
    return "".join(
        f'<{tag} class="l">{_ht(cell)}</{tag}>' if i in left else f"<{tag}>{_ht(cell)}</{tag}>"
        for i, cell in enumerate(row)
    )


def _ht(text: Inline) -> str:
    pieces = [text] if isinstance(text, str) else text
    return "".join(_ht_piece(piece) for piece in pieces)


def _ht_piece(piece: str) -> str:
    escaped = html.escape(piece)
    if isinstance(piece, Code):
        return f"<code>{escaped}</code>" if piece else ""
    return f"<strong>{escaped}</strong>" if isinstance(piece, Bold) else escaped
