"""Formats numbers and states as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from elstm.files.bounded import Config
from elstm.reporting.groups import Group
from elstm.reporting.measures import Reach
from elstm.reporting.runs import STATES, Run
from elstm.reporting.stats import MIN_SEEDS, PairedTest, Summary

NONE = "–"


def percent(summary: Summary | None) -> str:
    """Returns a fraction in percent, with its standard deviation if there is one: 89.53 ± 0.21."""
    return spread(summary, 100, 2)


def spread(summary: Summary | None, scale: float = 1, digits: int = 1) -> str:
    if summary is None:
        return NONE
    mean = f"{scale * summary.mean:.{digits}f}"
    return mean if summary.sd is None else f"{mean} ± {scale * summary.sd:.{digits}f}"


def interval(summary: Summary | None) -> str:
    """Returns the 95 % interval of a mean accuracy, in percent; none for fewer than 3 seeds."""
    if summary is None or summary.half_width is None or summary.n < MIN_SEEDS:
        return NONE
    low, high = summary.mean - summary.half_width, summary.mean + summary.half_width
    return f"{100 * low:.2f} to {100 * high:.2f}"


def seconds(summary: Summary | None) -> str:
    """Returns mean seconds with three digits (0.412, 4.12, 41.2, 412) and standard deviation."""
    if summary is None:
        return NONE
    digits = 3 if summary.mean < 1 else 2 if summary.mean < 10 else 1 if summary.mean < 100 else 0
    return spread(summary, digits=digits)


def signed(value: float, digits: int = 2) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def points(test: PairedTest | None) -> str:
    """Returns the difference in percentage points, with its 95 % interval."""
    if test is None:
        return NONE
    if test.low is None or test.high is None:
        return signed(100 * test.difference)
    low, high = signed(100 * test.low), signed(100 * test.high)
    return f"{signed(100 * test.difference)} ({low} to {high})"


def reached(reach: Reach | None, clock: str) -> str:
    """Returns 12.3 ± 0.4 if all runs reach it, else > 17.4 (3 of 5).

    `clock` is "epochs" or "seconds".
    """
    summary: Summary | None = getattr(reach, clock, None)
    if reach is None or summary is None:
        return NONE
    if reach.all_reached:
        return spread(summary)
    return f"> {summary.mean:.1f} ({reach.reached} of {reach.runs})"


def ratio(value: float | None, reach: Reach | None) -> str:
    if value is None or reach is None:
        return NONE
    return f"{value:.2f}" if reach.all_reached else f"> {value:.2f}"


def states(group: Group) -> str:
    """Returns a group's states, such as 5 done, 1 running, 2 failed."""
    return count_states([*group.runs, *group.failed]) or NONE


def count_states(runs: Iterable[Run]) -> str:
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])


def tested_items(configs: Iterable[Config]) -> str:
    """Returns what the test set of the runs holds: "images", or "sequences" of other data."""
    return "images" if any("data.pixels_per_step" in each for each in configs) else "sequences"


def epochs(value: float | None) -> str:
    return NONE if value is None else f"{value:.10g}" if value == round(value) else f"{value:.1f}"


def timestamp(iso: str) -> str:
    """Returns a time as 2025-01-02 04:00 UTC, if it is in UTC."""
    if not iso.endswith(("+00:00", "Z")):
        return iso or "unknown"
    return f"{iso[:16].replace('T', ' ')} UTC"
