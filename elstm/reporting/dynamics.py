"""Figures of what happens inside: γ and cell statistics over training, quantities over time steps.

One run stands for each group, since event files are large: its finished run of the lowest seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from elstm.reporting.events import Events, read_events
from elstm.reporting.groups import Group
from elstm.reporting.style import STYLE, Look, legend_below, legend_columns

MAX_COLUMNS = 4
# What a tag means, in the order of the rows or panels.
STATISTICS = {"gamma": "γ", "running_var": "√(mean variance)"}
OVER_TIME = {
    "gradient": "|∂L/∂hₜ|",
    "cell_mean": "mean of the cell",
    "cell_std": "standard deviation of the cell",
}


def read_groups(groups: Sequence[Group]) -> list[tuple[Group, float, Events]]:
    """(group, epochs evaluated, events) of each group's representative with an event file."""
    found = []
    for group in groups:
        run = next((run for run in group.furthest if len(run.validation)), None)
        if run is not None:
            events = read_events(run.folder)
            if events.histograms or events.over_time:
                found.append((group, float(run.validation.epoch[-1]), events))
    return found


def statistics_figure(
    read: Sequence[tuple[Group, float, Events]], look: dict[str, Look], title: str
) -> Figure | None:
    """γ (mean ± standard deviation over the units) and normalised spread against epochs."""
    tags = {tag for _, _, events in read for tag in events.histograms}
    norms = sorted(
        {tag.partition("/")[2] for tag in tags if tag.startswith("gamma/")},
        key=lambda name: (name.rpartition("_l")[2], ("ih" not in name, "hh" not in name), name),
    )[:MAX_COLUMNS]
    if not norms:
        return None
    shown = [
        item
        for item in read
        if any(f"{kind}/{norm}" in item[2].histograms for kind in STATISTICS for norm in norms)
    ]
    labels = [group.label for group, _, _ in shown]
    with rc_context(STYLE):
        rows = -(-len(labels) // legend_columns(labels))
        figure = Figure(figsize=(7.2, 4.1 + 0.2 * rows), layout="constrained")
        grid = figure.subplots(len(STATISTICS), len(norms), squeeze=False, sharex=True)
        for row, (kind, ylabel) in enumerate(STATISTICS.items()):
            for axes, norm in zip(grid[row], norms, strict=True):
                for group, last_epoch, events in shown:
                    series = events.histograms.get(f"{kind}/{norm}")
                    style = look[group.label]
                    if series is None or not series.step or not series.step[-1]:
                        continue
                    x = np.array(series.step) / series.step[-1] * last_epoch
                    mean, sd = np.array(series.mean), np.array(series.sd)
                    y = np.sqrt(np.maximum(mean, 0)) if kind == "running_var" else mean
                    axes.plot(
                        x, y, color=style.colour, ls=style.line, marker=style.marker, ms=4,
                        markevery=max(1, len(x) // 6), mec="white", mew=0.5,
                    )  # fmt: skip
                    if kind == "gamma":
                        axes.fill_between(x, y - sd, y + sd, color=style.colour, alpha=0.12, lw=0)
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
                if row == 0:
                    axes.set_title(norm)
                else:
                    axes.set_xlabel("epoch")
            grid[row][0].set_ylabel(ylabel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        legend_below(figure, [(label, look[label]) for label in labels])
    return figure


def time_steps_figure(
    read: Sequence[tuple[Group, float, Events]], look: dict[str, Look], title: str
) -> Figure | None:
    """|∂L/∂h_t| and cell statistics over the time steps, at the last evaluation."""
    tags = sorted({tag for _, _, events in read for tag in events.over_time})
    order = list(OVER_TIME)
    names = sorted(
        (tag.split("/")[1] for tag in tags),
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )
    names = list(dict.fromkeys(names))[:MAX_COLUMNS]
    if not names:
        return None
    shown = [item for item in read if item[2].over_time]
    labels = [group.label for group, _, _ in shown]
    with rc_context(STYLE):
        rows = -(-len(labels) // legend_columns(labels))
        figure = Figure(figsize=(7.2, 2.9 + 0.2 * rows), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for group, _, events in shown:
                style = look[group.label]
                for tag, values in events.over_time.items():
                    if tag.split("/")[1] == name:
                        # A gradient that has vanished leaves a gap on the logarithmic axis.
                        y = np.where(values > 0, values, np.nan) if name == "gradient" else values
                        axes.plot(
                            np.arange(1, len(y) + 1), y, color=style.colour, ls=style.line,
                            marker=style.marker, ms=4, markevery=max(1, len(y) // 7),
                            mec="white", mew=0.5,
                        )  # fmt: skip
            axes.set_xlabel("time step t")
            axes.set_ylabel(OVER_TIME.get(name, name))
            if name == "gradient":
                axes.set_yscale("log")
                plain = FuncFormatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_major_formatter(plain)
                axes.yaxis.set_minor_formatter(NullFormatter())
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        legend_below(figure, [(label, look[label]) for label in labels])
    return figure
