"""Defines colours, lines, markers and legend of every figure, and renders it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from elstm.records.drawing import FigureCanvasAgg, own_settings

# Okabe and Ito's colours, with grey for the yellow, which is too pale on paper; lines and markers
# differ too, so that no two groups are drawn alike in black and white either.
COLOURS = (
    "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
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
    """The colour, line and marker of a group in every figure."""

    colour: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str


def group_styles(sections: Sequence[Sequence[str]]) -> list[dict[str, GroupStyle]]:
    """Returns for each section the style of each of its labels; the baseline's comes first.

    Within a section all styles differ, up to 8 labels by colour and up to 40 with the line. A
    label keeps its style from section to section as far as that allows.
    """
    kept: dict[str, int] = {}
    result = []
    for labels in sections:
        taken: dict[str, int] = {}
        for label in [*labels[:1], *(label for label in labels if label in kept), *labels]:
            if label not in taken:
                wanted = 0 if label == labels[0] else kept.get(label, 0)
                free = next(i for i in (wanted, *range(1, 10_000)) if i not in taken.values())
                taken[label] = free
                kept.setdefault(label, free)
        result.append({label: _style(index) for label, index in taken.items()})
    return result


def _style(index: int) -> GroupStyle:
    n = len(COLOURS)
    # Only the baseline is black.
    colour = COLOURS[index] if index < n else COLOURS[1 + (index - n) % (n - 1)]
    return GroupStyle(
        colour, LINES[(index + index // n) % len(LINES)], MARKERS[index % len(MARKERS)]
    )


def render(figure: Figure) -> tuple[bytes, bytes]:
    """Renders the figure as (PNG, SVG)."""
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure)
    with own_settings(STYLE):
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
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
        Line2D(
            [], [], color=look.colour, ls=look.line, marker=look.marker, ms=5, mec="white", mew=0.5
        )
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
