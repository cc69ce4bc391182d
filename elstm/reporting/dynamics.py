"""Draws γ and the statistics of the norms over training, and quantities over the time steps.

One run represents each group, its finished run of the lowest seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from elstm.records.drawing import isolated_settings
from elstm.reporting.groups import Group
from elstm.reporting.internals import OVER_TIME, Internals, read_internals
from elstm.reporting.runs import Run
from elstm.reporting.style import STYLE, GroupStyle, legend_below, legend_columns

MAX_COLUMNS = 4
YLABELS = {
    "gradient": "|∂L/∂hₜ|",
    "cell_mean": "mean of cₜ",
    "cell_std": "standard deviation of cₜ",
}


def representative(group: Group) -> Run | None:
    """Returns the run that represents its group in these figures."""
    return next((run for run in group.counted_runs if len(run.validation)), None)


def read_groups(groups: Sequence[Group]) -> list[tuple[Group, Internals]]:
    """Returns each group with the records of its representative, if it has any."""
    found = []
    for group in groups:
        run = representative(group)
        if run is not None:
            inside = read_internals(run.stored)
            if inside.norms or inside.over_time:
                found.append((group, inside))
    return found


def _norms(read: Sequence[tuple[Group, Internals]]) -> list[str]:
    return sorted(
        {name for _, inside in read for name in inside.norms},
        key=lambda name: (name.rpartition("_l")[2], ("ih" not in name, "hh" not in name), name),
    )


def shown_norms(read: Sequence[tuple[Group, Internals]]) -> str:
    """Describes which normalisations `statistics_figure` draws."""
    count = len(_norms(read))
    few = count <= MAX_COLUMNS
    return "each normalisation" if few else f"the first {MAX_COLUMNS} of {count} normalisations"


def statistics_figure(
    read: Sequence[tuple[Group, Internals]], group_styles: dict[str, GroupStyle], title: str
) -> Figure | None:
    """Draws γ (mean ± standard deviation over the units) and the spread against epochs."""
    norms = _norms(read)[:MAX_COLUMNS]
    if not norms:
        return None
    shown = [item for item in read if any(norm in item[1].norms for norm in norms)]
    labels = [group.label for group, _ in shown]
    with isolated_settings(STYLE):
        rows = -(-len(labels) // legend_columns(labels))
        figure = Figure(figsize=(7.2, 4.1 + 0.2 * rows), layout="constrained")
        grid = figure.subplots(2, len(norms), squeeze=False, sharex=True)
        for column, norm in enumerate(norms):
            above, below = grid[0][column], grid[1][column]
            for group, inside in shown:
                course = inside.norms.get(norm)
                if course is None:
                    continue
                style = group_styles[group.label]
                x, mean, sd = course.epoch, course.gamma_mean, course.gamma_std
                _line(above, x, mean, style)
                above.fill_between(x, mean - sd, mean + sd, color=style.colour, alpha=0.12, lw=0)
                _line(below, x, course.spread, style)
            above.set_title(norm)
            below.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
            below.set_xlabel("epoch")
        grid[0][0].set_ylabel("γ")
        grid[1][0].set_ylabel("√(mean variance)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        legend_below(figure, [(label, group_styles[label]) for label in labels])
    return figure


def time_steps_figure(
    read: Sequence[tuple[Group, Internals]], group_styles: dict[str, GroupStyle], title: str
) -> Figure | None:
    """Draws |∂L/∂h_t| and the cell's statistics over the time steps, at the last evaluation."""
    names = [n for n in OVER_TIME if any(n in inside.over_time for _, inside in read)]
    if not names:
        return None
    shown = [item for item in read if item[1].over_time]
    labels = [group.label for group, _ in shown]
    with isolated_settings(STYLE):
        rows = -(-len(labels) // legend_columns(labels))
        figure = Figure(figsize=(7.2, 2.9 + 0.2 * rows), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for group, inside in shown:
                if name in inside.over_time:
                    y = inside.over_time[name]
                    if name == "gradient":  # a vanished gradient leaves a gap
                        y = np.where(y > 0, y, np.nan)
                    _line(axes, np.arange(1, len(y) + 1), y, group_styles[group.label])
            axes.set_xlabel("time step t")
            axes.set_ylabel(YLABELS[name])
            if name == "gradient":
                axes.set_yscale("log")
                plain = FuncFormatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_major_formatter(plain)
                axes.yaxis.set_minor_formatter(NullFormatter())
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        legend_below(figure, [(label, group_styles[label]) for label in labels])
    return figure


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, style: GroupStyle) -> None:
    axes.plot(
        x, y, color=style.colour, ls=style.line, marker=style.marker, ms=4,
        markevery=max(1, len(x) // 7), **style.faces(),
    )  # fmt: skip
