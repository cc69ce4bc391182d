"""Reads a run's records of its norms over training and of its values over the time steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elstm.files.bounded import one_line
from elstm.records.stored import StoredRun, table_rows

MAX_NORMS = 200  # of one run
OVER_TIME = ("gradient", "cell_mean", "cell_std")


@dataclass(frozen=True)
class NormCourse:
    """Holds the course of one normalisation over training; all arrays are (evaluations,)."""

    epoch: np.ndarray
    gamma_mean: np.ndarray
    gamma_std: np.ndarray  # over the units
    spread: np.ndarray  # root of the population variance, averaged over time steps and units


@dataclass(frozen=True)
class Internals:
    """Holds the tables of one run; they are empty if it recorded none."""

    norms: dict[str, NormCourse]  # by name, such as norm_c_l0
    over_time: dict[str, np.ndarray]  # (T,), by the names in OVER_TIME


def read_internals(run: StoredRun) -> Internals:
    """Reads the two tables of a run; damaged or missing parts are left out."""
    courses: dict[str, list[list[float]]] = {}
    for row in table_rows(run, "norms.csv"):
        name = one_line(row.get("norm") or "", 40)
        if name in courses or len(courses) < MAX_NORMS:
            fields = ("epoch", "gamma_mean", "gamma_std", "spread")
            courses.setdefault(name, []).append([_number(row.get(field)) for field in fields])
    table = table_rows(run, "over_time.csv")
    over_time = {
        name: np.array([_number(row.get(name)) for row in table])
        for name in OVER_TIME
        if table and name in table[0]
    }
    return Internals(
        {name: NormCourse(*np.array(rows).T) for name, rows in courses.items()},
        {name: values for name, values in over_time.items() if np.isfinite(values).any()},
    )


def _number(cell: str | None) -> float:
    """Returns a cell as a number; NaN if it is none or too large to draw."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return float("nan")
    return value if abs(value) < 1e30 else float("nan")
