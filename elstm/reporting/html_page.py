"""Converts a document to one HTML file, by the template page.html.jinja."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from elstm.reporting.document import Block, CurveLine, Inline

TEMPLATE = "page.html.jinja"
SCRIPT = Path(__file__).with_name("curves.js")


def to_html(title: str, blocks: Sequence[Block], figure_list: str = "{}") -> str:
    """Converts the blocks to one HTML file that needs no other file and loads no other script.

    Args:
        title: the page's title.
        blocks: its content.
        figure_list: the figures beside the page (elstm.reporting.figure_list), stored in its head.
    """
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return _template().render(
        title=title, blocks=blocks, figure_list=figure_list, script=script, digest=digest
    )


@lru_cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        kind=lambda value: type(value).__name__, pieces=_pieces, base64=_base64, curves=_curves
    )
    return environment.get_template(TEMPLATE)


def _pieces(text: Inline) -> Sequence[str]:
    return [text] if isinstance(text, str) else text


def _curves(lines: Sequence[CurveLine]) -> str:
    return json.dumps([asdict(line) for line in lines])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
