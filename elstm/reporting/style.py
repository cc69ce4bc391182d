"""Defines colours, lines, markers and legend of every figure, and renders it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from elstm.records.drawing import FigureCanvasAgg, isolated_settings

# The colour, marker and first line of each model, the same in every report. The colours are those
# of Okabe and Ito, without the yellow, which is too pale on paper. In black and white the markers
# tell models apart.
MODELS = {
    "lstm": ("#000000", "o", 0),
    "elstm_bn": ("#D55E00", "s", 1),
    "bn_lstm": ("#0072B2", "^", 2),
    "ln_lstm": ("#009E73", "D", 3),
    "gru": ("#CC79A7", "v", 4),
    "bn_lstm_input": ("#E69F00", "P", 5),
    "bn_lstm_published": ("#56B4E9", "X", 0),
    "bn_lstm_gates": ("#8C8C8C", "p", 3),
    "elstm_bn_center": ("#882255", "H", 2),
}
# Other models get one of each by a hash of their names. No model above has such a marker.
COLOURS = ("#8C8C8C", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("<", ">", "h", "*", "d", "8")
LINES = (
    "-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
PNG_DPI = 200

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "elstm",  # the same runs give the same bytes
    "text.parse_math": False,  # a $ in a label is a $
    "axes.formatter.use_mathtext": False,
}


@dataclass(frozen=True)
class GroupStyle:
    """Holds the colour, line and marker of a group in every figure."""

    colour: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str
    open: bool = False  # the marker is only an outline

    def faces(self) -> dict[str, Any]:
        """Returns how matplotlib fills and outlines the marker."""
        if self.open:
            return {"mfc": "white", "mec": self.colour, "mew": 1.0}
        return {"mec": "white", "mew": 0.5}


def group_styles(sections: Sequence[Sequence[tuple[str, str]]]) -> list[dict[str, GroupStyle]]:
    """Returns for each section, given as (label, model), the style of each label.

    The model alone decides the colour and the marker. Groups of one model differ by the line, and
    from the seventh on by an open marker, so that 12 groups are distinct. A label has the same
    style in all sections as far as that allows.
    """
    kept: dict[str, int] = {}
    result = []
    for groups in sections:
        taken: dict[tuple[str, str], dict[str, int]] = {}  # by colour and marker
        ordered = [*(item for item in groups if item[0] in kept), *groups]
        for label, model in ordered:
            indices = taken.setdefault(_look(model)[:2], {})
            if label not in indices:
                wanted = kept.get(label, 0)
                free = next(i for i in (wanted, *range(10_000)) if i not in indices.values())
                indices[label] = free
                kept.setdefault(label, free)
        result.append(
            {label: _style(model, taken[_look(model)[:2]][label]) for label, model in groups}
        )
    return result


def _look(model: str) -> tuple[str, str, int]:
    """Returns the colour, the marker and the first line of a model."""
    if model in MODELS:
        return MODELS[model]
    number = int.from_bytes(hashlib.sha256(model.encode()).digest()[:4], "big")
    number, colour = divmod(number, len(COLOURS))
    number, marker = divmod(number, len(MARKERS))
    return COLOURS[colour], MARKERS[marker], number % len(LINES)


def _style(model: str, index: int) -> GroupStyle:
    colour, marker, first = _look(model)
    line = LINES[(first + index) % len(LINES)]
    return GroupStyle(colour, line, marker, open=index // len(LINES) % 2 == 1)


def render(figure: Figure) -> tuple[bytes, bytes]:
    """Renders the figure as (PNG, SVG).

    The PNG has a palette of 256 colours, which makes it three times smaller.
    """
    full, png, svg = io.BytesIO(), io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure)
    with isolated_settings(STYLE):
        figure.savefig(full, format="png", dpi=PNG_DPI, pil_kwargs={"compress_level": 0})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    image = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(png, "PNG", dpi=(PNG_DPI, PNG_DPI))
    return png.getvalue(), svg.getvalue()


def time_unit(seconds: float) -> tuple[float, str]:
    """Returns (seconds per unit, its symbol) of the unit that suits a time."""
    if seconds < 180:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def legend_columns(labels: Sequence[str]) -> int:
    """Returns how many columns of the legend fit under a figure 7.2 inches wide."""
    longest = max(len(label) for label in labels)
    return max(1, min(4, len(labels), 104 // (longest + 9)))


def legend_below(figure: Figure, entries: Sequence[tuple[str, GroupStyle]]) -> None:
    handles = [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, ms=5, **look.faces())
        for _, look in entries
    ]
    labels = [f" {label}" if label.startswith("_") else label for label, _ in entries]  # _ hides
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=legend_columns(labels),
        handlelength=3.2,
        columnspacing=1.6,
    )
