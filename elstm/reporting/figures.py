"""Draws curves, accuracies and times to an accuracy, also for print and colour-blind readers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from elstm.records.drawing import FigureCanvasAgg, isolated_settings
from elstm.reporting import wording
from elstm.reporting.document import CurveLine
from elstm.reporting.groups import Group, folds_of
from elstm.reporting.measures import Analysis, Reach
from elstm.reporting.runs import Curve, Run
from elstm.reporting.stats import MIN_SEEDS, Band, Summary, band
from elstm.reporting.style import STYLE, GroupStyle, legend_below, legend_columns, time_unit

VALUE_GAP = 4  # points between a bar and its value
TITLE_WIDTH = 100  # characters across a figure
THIN = 0.7  # width of the line of a single seed, or of the mean of only some


def curves_figure(
    groups: Sequence[Group],
    group_styles: dict[str, GroupStyle],
    curve_of: Callable[[Run], Curve],
    ylabel: str,
    *,
    title: str,
    percent: bool,
    times: bool,
) -> Figure | None:
    """Draws a quantity against epochs, and with `times` also against wall-clock time.

    It returns None if nothing is logged. The lines are means over seeds with a 95 % t band. Where
    only some of the seeds have a point, the mean of those is a thin line without a band. With fewer
    than `MIN_SEEDS` seeds, each seed has a thin line.
    """
    bands = _bands(groups, curve_of)
    if not bands:
        return None
    drawn = list(dict.fromkeys(group for group, _ in bands))
    scale = 100.0 if percent else 1.0
    latest = max((float(np.nanmax(b.seconds)) for _, b in bands if _any(b.seconds)), default=0.0)
    per_unit, unit = time_unit(latest)
    with isolated_settings(STYLE):
        labels = [_legend(group) for group in drawn]
        figure, (left, *others) = _axes(len(labels), labels, panels=2 if times else 1)
        for group, b in bands:
            style = group_styles[group.label]
            _line(left, b.x, b, scale, style)
            for right in others:
                if _any(b.seconds):
                    _line(right, b.seconds / per_unit, b, scale, style)
        left.set_xlabel("epoch")
        left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        left.set_ylabel(ylabel)
        left.set_title(_wrapped(title, 1 + len(others)))
        left.set_xlim(left=0)
        for right in others:
            right.set_xlabel(f"wall-clock time, {unit}, with evaluation")
            right.set_xlim(left=0)
            if not any(_any(b.seconds) for _, b in bands):
                right.text(0.5, 0.5, "no times logged", ha="center", transform=right.transAxes)
        if percent:
            _limit_accuracy(
                left,
                scale * np.concatenate([b.mean for _, b in bands]),
                scale * np.concatenate([b.mean + b.half_width for _, b in bands]),
            )
        else:
            _log_axis(left, np.concatenate([b.mean for _, b in bands]))
        legend_below(figure, [(_legend(group), group_styles[group.label]) for group in drawn])
    return figure


def curve_lines(
    groups: Sequence[Group],
    group_styles: dict[str, GroupStyle],
    curve_of: Callable[[Run], Curve],
    *,
    percent: bool,
) -> list[CurveLine]:
    """Returns the lines of `curves_figure` as numbers."""
    lines = []
    for group, b in _bands(groups, curve_of):
        style = group_styles[group.label]
        kept = np.isfinite(b.mean)
        dash = "" if isinstance(style.line, str) else " ".join(f"{2 * d:g}" for d in style.line[1])
        y = [float(f"{value:.5g}") for value in b.mean[kept] * (100.0 if percent else 1.0)]
        lines.append(CurveLine(group.label, style.colour, dash, b.x[kept].tolist(), y))
    log = not percent and all(value > 0 for line in lines for value in line.y)
    return [replace(line, log=log) for line in lines]


def _bands(groups: Sequence[Group], curve_of: Callable[[Run], Curve]) -> list[tuple[Group, Band]]:
    """Returns the mean over a group's seeds, or each of fewer than `MIN_SEEDS` seeds."""
    bands: list[tuple[Group, Band]] = []
    for group in groups:
        curves = [curve_of(run) for run in group.runs]
        measured = [(c.epoch, c.seconds, c.value) for c in curves if len(c)]
        if len(measured) < MIN_SEEDS:
            bands += [(group, band([one])) for one in measured]
        else:
            runs = [run for run, curve in zip(group.runs, curves, strict=True) if len(curve)]
            bands.append((group, band(measured, folds_of(runs, group.folds))))
    return bands


def accuracy_figure(
    analysis: Analysis, groups: Sequence[Group], group_styles: dict[str, GroupStyle]
) -> Figure | None:
    """Draws the final test accuracy of each seed, and the mean with its 95 % t interval."""
    by_label = {result.group.label: result for result in analysis.results}
    rows = [group for group in groups if by_label[group.label].test_accuracy is not None]
    if not rows:
        return None
    with isolated_settings(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for y, group in enumerate(rows):
            style = group_styles[group.label]
            values = [100 * r.test_accuracy for r in group.runs if r.test_accuracy is not None]
            axes.plot(
                values, [y + 0.16] * len(values), style.marker,
                color=style.colour, ms=4, alpha=0.55,
                **(style.faces() if style.open else {"mec": "none"}),
            )  # fmt: skip
            summary = by_label[group.label].test_accuracy
            assert summary is not None
            half = summary.half_width if summary.n >= MIN_SEEDS else None
            _mean_mark(axes, y - 0.16, summary, 100, half, style)
            right = max([*values, 100 * summary.mean + (100 * half if half else 0)])
            _value(axes, right, y, wording.percent(summary))
        _rows(axes, [_legend(group, only_done=True) for group in rows])
        axes.set_xlabel("test accuracy, %")
        axes.set_title(analysis.section.title)
        _make_room(figure)
    return figure


def reach_figure(
    analysis: Analysis,
    groups: Sequence[Group],
    group_styles: dict[str, GroupStyle],
    *,
    times: bool,
) -> Figure | None:
    """Draws epochs, and with `times` seconds, to the baseline's best validation accuracy."""
    by_label = {result.group.label: result for result in analysis.results}
    found = [(group, by_label[group.label].to_best.reach) for group in groups]
    rows = [(group, reach) for group, reach in found if reach is not None]
    if len(rows) < 2:
        return None
    slowest = max((r.seconds.mean for _, r in rows if r.seconds is not None), default=0.0)
    per_unit, unit = time_unit(slowest)
    with isolated_settings(STYLE):
        figure = Figure(figsize=(7.2, 1.1 + 0.34 * len(rows)), layout="constrained")
        left, *others = figure.subplots(1, 2 if times else 1, sharey=True, squeeze=False)[0]
        for y, (group, reach) in enumerate(rows):
            _bar(left, y, reach, reach.epochs, 1, group_styles[group.label])
            for right in others:
                _bar(right, y, reach, reach.seconds, per_unit, group_styles[group.label])
        _rows(left, [group.label for group, _ in rows])
        left.set_xlabel("epochs")
        left.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        for right in others:
            right.set_xlabel(f"wall-clock time, {unit}")
            right.tick_params(left=False)
            right.grid(False, axis="y")
        title = f"{analysis.section.title}: to {analysis.section.baseline.label}'s best"
        left.set_title(_wrapped(title, 2 if times else 1))
        for axes in (left, *others):
            axes.set_xlim(left=0)
        _make_room(figure)
    return figure


def _wrapped(title: str, panels: int) -> str:
    """Breaks a title into lines as wide as one of the panels."""
    return textwrap.fill(title, TITLE_WIDTH // panels)


def _axes(lines: int, labels: Sequence[str], *, panels: int) -> tuple[Figure, list[Axes]]:
    rows = -(-lines // legend_columns(labels))
    figure = Figure(figsize=(7.2, 3.05 + 0.2 * rows), layout="constrained")
    return figure, list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])


def _line(axes: Axes, x: np.ndarray, b: Band, scale: float, style: GroupStyle) -> None:
    y, half = b.mean * scale, b.half_width * scale
    whole = b.n == b.n.max()  # all seeds have this point
    every = max(1, len(x) // 8)
    single = b.n.max() == 1
    axes.plot(
        np.where(whole, x, np.nan), y, color=style.colour, ls=style.line, marker=style.marker,
        lw=THIN if single else None, ms=3.5 if single else 4.5, markevery=every,
        **style.faces(),
    )  # fmt: skip
    if not whole.all():
        # The thin line starts at the last point that all seeds have.
        rest = np.convolve(~whole, [1, 1, 1])[1:-1] > 0  # "same" would make 3 points of 2
        axes.plot(np.where(rest, x, np.nan), y, color=style.colour, ls=style.line, lw=THIN)
    shown = whole & np.isfinite(half)
    if shown.any():
        axes.fill_between(
            x, y - half, y + half, where=shown, color=style.colour, alpha=0.15, lw=0,
        )  # fmt: skip


def _limit_accuracy(axes: Axes, means: np.ndarray, tops: np.ndarray) -> None:
    """Cuts off the first steep epochs if only a few pixels would remain for the rest."""
    means, tops = means[np.isfinite(means)], tops[np.isfinite(tops)]
    low, high = float(np.quantile(means, 0.08)), float(means.max())
    if low - float(means.min()) < 0.3 * (high - low):
        low = float(means.min())
    # The axis covers the bands too, unless a few seeds make them very wide.
    high = min(max([high, *tops]), high + 0.35 * (high - low))
    pad = 0.06 * max(high - low, 0.5)
    axes.set_ylim(max(low - pad, 0), min(high + pad, 100.5))


def _log_axis(axes: Axes, values: np.ndarray) -> None:
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive) or len(positive) < np.isfinite(values).sum():
        return  # a loss of 0 has no place on a logarithmic axis
    axes.set_yscale("log")
    axes.margins(y=0.06)
    ratio = positive.max() / positive.min()
    if ratio < 30:
        ticks = (1, 1.5, 2, 3, 4, 5, 7) if ratio < 8 else (1, 2, 5)
        few = MaxNLocator(5) if ratio < 2 else LogLocator(subs=ticks, numticks=12)
        axes.yaxis.set_major_locator(few)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mean_mark(
    axes: Axes, y: float, summary: Summary, scale: float, half: float | None, style: GroupStyle
) -> None:
    axes.errorbar(
        [scale * summary.mean], [y], xerr=None if half is None else [scale * half],
        color=style.colour, marker=style.marker, ms=6.5, **style.faces(),
        capsize=3, elinewidth=1.6, capthick=1.4, ls="none",
    )  # fmt: skip


def _bar(
    axes: Axes, y: float, reach: Reach, summary: Summary | None, per_unit: float, style: GroupStyle
) -> None:
    if summary is None:
        return
    mean = summary.mean / per_unit
    known = summary.half_width if reach.all_reached and summary.n >= MIN_SEEDS else None
    error = known / per_unit if known else None
    fill = to_rgba(style.colour, 0.55 if reach.all_reached else 0.0)
    axes.barh(
        y, mean, height=0.55, color=fill, edgecolor=style.colour, xerr=error,
        hatch=None if reach.all_reached else "////",
        error_kw={"elinewidth": 1.1, "capsize": 2.5, "ecolor": "#000000"},
    )  # fmt: skip
    sign = "" if reach.all_reached else "> "
    note = "" if reach.all_reached else f" ({reach.reached}/{reach.runs})"
    _value(axes, mean + (error or 0), y, f"{sign}{mean:.3g}{note}")


def _value(axes: Axes, x: float, y: float, text: str) -> None:
    """Writes a value to the right of a bar or mark that ends at x."""
    axes.annotate(text, (x, y), (VALUE_GAP, 0), textcoords="offset points", va="center", fontsize=8)


def _make_room(figure: Figure) -> None:
    """Extends each x axis so that all its values end within the panel."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # the layout decides how wide a panel is
    for axes in figure.axes:
        low, high = axes.get_xlim()
        width = axes.get_window_extent().width
        for text in axes.texts:
            if isinstance(text, Annotation):
                free = width - text.get_window_extent().width - 2 * VALUE_GAP * figure.dpi / 72
                x = float(text.xy[0])
                high = max(high, low + (x - low) * width / max(free, 0.2 * width))
        axes.set_xlim(low, high)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)  # first on top
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", left=False)


def _legend(group: Group, *, only_done: bool = False) -> str:
    """Returns the label with the number of runs behind the line."""
    if only_done:
        return f"{group.label} (n = {group.count('done')})"
    notes = [f"n = {len(group.runs)}"]
    for state in ("running", "interrupted", "pruned"):
        if count := group.count(state):
            notes.append(f"{count} {state}")
    return f"{group.label} ({', '.join(notes)})"


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())
