"""Draws the pictures of a run, as PNG bytes.

matplotlib takes half a second to import, so it is imported when the first picture is drawn.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

LARGE, HUGE = 25, 100  # classes
GRADIENT_RANGE = (1e-10, 10.0)
CHARACTER = 0.6 / 72  # about the width of a character, in inches a point of its size
MAX_NAME = 24  # characters of a class's name that are shown


def _under_isolated_settings(draw: Callable[..., Figure]) -> Callable[..., bytes]:
    """Makes a function that draws a figure return its PNG, whatever matplotlib's settings are."""

    @functools.wraps(draw)
    def drawn(*args: Any) -> bytes:
        from elstm.records.drawing import isolated_settings, png

        with isolated_settings():
            return png(draw(*args))

    return drawn


@_under_isolated_settings
def gradient_figure(norms: np.ndarray, epoch: float, title: str) -> Figure:
    """Draws |dL/dh_t| over t on a logarithmic scale of a fixed range.

    Values outside of the range are drawn at its edge.

    Args:
        norms: (T,).
        epoch: the epoch of the measurement.
        title: model and data.
    """
    figure = _figure(3.7, 2.5)  # TensorBoard shows it at this size
    axes = figure.add_axes((0.19, 0.19, 0.77, 0.7))  # computing a layout would take twice the time
    t = np.arange(1, len(norms) + 1)
    seen = np.isfinite(norms) & (norms > 0)  # a gradient that has vanished leaves a gap
    drawn = np.where(seen, np.clip(norms, *GRADIENT_RANGE), np.nan)
    axes.semilogy(t, drawn, color="#0072B2", linewidth=1.8)
    # The same for all epochs and runs, so that their pictures can be compared.
    axes.set_ylim(*GRADIENT_RANGE)
    axes.set_xlim(1, max(len(norms), 2))
    axes.set_xlabel("time step t")
    axes.set_ylabel("|∂L/∂h$_t$|")
    axes.set_title(f"{title}, epoch {epoch:g}", fontsize=9, parse_math=False)
    axes.grid(True, which="major", alpha=0.3)
    return figure


@_under_isolated_settings
def confusion_figure(
    confusion: np.ndarray, class_names: Sequence[str], title: str, what: str = "images"
) -> Figure:
    """Draws the confusion matrix: the share of each true class, in per cent.

    Names of classes and shares are written smaller from LARGE classes on. With more than
    HUGE classes the picture grows no further: the shares and most names are left out.

    Args:
        confusion: (C, C); row: the true class, column: the predicted one.
        what: the noun for the counted items, images or sequences.
    """
    classes = len(class_names)
    many = classes >= LARGE
    images = confusion.sum(1, keepdims=True)
    shown = range(0, classes, -(-classes // HUGE))  # the classes whose names are written
    names = [_shortened(class_names[each]) for each in shown]
    counted = [f"{name} ({count})" for name, count in zip(names, images[shown, 0], strict=True)]
    fontsize = 7 if many else 10
    # Inches: the matrix, its labels on the left and below, and then title and colour bar.
    side = max((0.24 if many else 0.55) * min(classes, HUGE), 1.8)
    left = CHARACTER * fontsize * max(map(len, counted))
    below = CHARACTER * fontsize * max(map(len, names)) * (1 if many else 0.75)
    width = side + left + 1.8
    lines = textwrap.wrap(title, round(10 * width)) or [""]
    figure = _figure(width, side + below + 0.8 + 0.17 * len(lines), layout="constrained")
    axes = figure.add_subplot()
    share = confusion / np.maximum(images, 1)
    # The colours follow the square root, so that confusions of a few per cent can be seen.
    drawn = axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(confusion) if classes <= HUGE else ():
        part = share[row, column]
        axes.text(
            column, row, _percent(part, short=many), ha="center", va="center",
            color="white" if part > 0.3 else "black", fontsize=6 if many else 8,
        )  # fmt: skip
    axes.set_xticks(
        shown, names, rotation=90 if many else 45, ha="center" if many else "right",
        rotation_mode="default" if many else "anchor", fontsize=fontsize,
    )  # fmt: skip
    axes.set_yticks(shown, counted, fontsize=fontsize)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a $ in a name is a $
    axes.set_xlabel("predicted")
    axes.set_ylabel(f"true (number of {what})")
    # Over the full figure, which is wider than the matrix. matplotlib's own wrapping takes a $ for
    # a formula.
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
    bar.set_ticks(
        [p**0.5 for p in (0, 0.01, 0.05, 0.2, 0.5, 1)], labels=["0", "1", "5", "20", "50", "100"]
    )
    bar.set_label("share of the true class, %")
    return figure


@dataclass(frozen=True)
class Mistake:
    """Holds a misclassified test sequence, uint8 (rows, columns, channels) or (T, F)."""

    example: Tensor
    label: str
    predicted: str
    confidence: float


@_under_isolated_settings
def mistakes_figure(mistakes: Sequence[Mistake], title: str) -> Figure:
    """Draws wrongly classified sequences with their labels and the predicted classes.

    Args:
        mistakes: at least one.
    """
    columns = min(len(mistakes), 4)
    rows = -(-len(mistakes) // columns)
    figure = _figure(max(1.9 * columns, 4), 2.2 * rows + 0.6, layout="constrained")
    caption = f"{title}: the most confident mistakes, as label, not prediction (its probability)"
    figure.suptitle(textwrap.fill(caption, 50), fontsize=10, parse_math=False)
    for number, mistake in enumerate(mistakes, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_example(axes, mistake.example)
        names = [_shortened(name) for name in (mistake.label, mistake.predicted)]
        text = f"{names[0]}\nnot {names[1]} ({mistake.confidence:.0%})"
        axes.set_title(text, fontsize=7, parse_math=False)
    return figure


@_under_isolated_settings
def examples_figure(examples: Sequence[Sequence[Tensor]], title: str) -> Figure:
    """Draws sequences, unchanged in the first row and as epochs change them below."""
    columns = len(examples[0])
    figure = _figure(1.2 * columns + 0.4, 1.2 * len(examples) + 0.5, layout="constrained")
    figure.suptitle(textwrap.fill(title, 50), fontsize=9, parse_math=False)
    for row, of_epoch in enumerate(examples):
        for column, example in enumerate(of_epoch, start=1):
            axes = figure.add_subplot(len(examples), columns, row * columns + column)
            _draw_example(axes, example)
            if column == 1:
                axes.set_title("as it is" if row == 0 else f"epoch {row}", fontsize=7)
    return figure


def _draw_example(axes: Any, example: Tensor) -> None:
    """Draws an image (rows, columns, channels) as such, and a series (T, F) as curves."""
    values = example.numpy()
    if values.ndim == 3:
        shown = values[..., 0] if values.shape[2] == 1 else values
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    else:
        axes.plot(np.arange(1, len(values) + 1), values, linewidth=0.8)
        axes.tick_params(labelsize=6)
        axes.locator_params(axis="x", nbins=5, integer=True)  # steps


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _percent(share: float, *, short: bool) -> str:
    """Returns a share in per cent, with a decimal if there is room."""
    percent = 100 * share
    if short:
        return f"{percent:.0f}" if percent >= 0.5 else ""
    if percent < 0.05:
        return "<0.1"
    return f"{percent:.1f}" if percent < 99.95 else "100"


def _figure(width: float, height: float, **options: Any) -> Figure:
    """Makes a figure of a size in inches.

    pyplot is not used, because it keeps every figure and may need a screen.
    """
    from elstm.records.drawing import Figure

    return Figure(figsize=(width, height), dpi=110, **options)
