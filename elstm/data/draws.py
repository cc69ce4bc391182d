"""Draws the rows of splits and folds class by class, and without cutting groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from elstm.data.image_sets import random_order
from elstm.data.labelled import class_names
from elstm.errors import UserError


def parts_of(labels: Sequence[str], count: int, *key: str | int) -> list[np.ndarray]:
    """Distributes rows over `count` parts, each with the same share of every class."""
    names = class_names(labels)
    index = np.array([names.index(label) for label in labels])
    parts: list[list[int]] = [[] for _ in range(count)]
    dealt = 0
    for label in range(len(names)):
        rows = np.flatnonzero(index == label)
        for row in rows[random_order(len(rows), "deal", label, *key).numpy()]:
            parts[dealt % count].append(int(row))
            dealt += 1
    return [np.sort(np.array(part, np.int64)) for part in parts]


def stratified_draw(labels: Sequence[str], fraction: float, *key: str | int) -> np.ndarray:
    """Returns the rows of a stratified draw, in order; at least one, and one of each class of 3.

    A class's share is rounded to the nearest number. Classes of one or two sequences only train.
    """
    names = class_names(labels)
    index = np.array([names.index(label) for label in labels])
    chosen: list[int] = []
    for label in range(len(names)):
        rows = np.flatnonzero(index == label)
        quota = int(len(rows) * fraction + 0.5)
        quota = min(max(quota, 1), len(rows) - 1) if len(rows) >= 3 else 0
        order = random_order(len(rows), "draw", label, *key).numpy()
        chosen += [int(row) for row in rows[order[:quota]]]
    if not chosen:
        raise UserError(
            f"{len(labels)} sequences in {len(names)} classes are too few to draw a split from: at "
            "least one class needs 3"
        )
    return np.sort(np.array(chosen, np.int64))


def grouped_parts(
    labels: Sequence[str], groups: Sequence[str], shares: Sequence[float], least: Sequence[int],
    *key: str | int,
) -> list[np.ndarray]:  # fmt: skip
    """Distributes rows over parts, all rows of a group to one part.

    The largest groups are dealt first. Each goes to the part that then has the least of the group's
    classes compared with its share, so that the parts have similar shares of every class where the
    groups allow it. The order of groups of about one size is random.

    Args:
        labels, groups: of each row.
        shares: of each part; their sum is 1.
        least: number of groups that each part gets at least.
        key: the random order depends on it alone.

    Returns: the rows of each part, in order.
    Raises:
        UserError: there are too few groups.
    """
    names, place = sorted(set(groups)), class_names(labels)
    if len(names) < sum(least):
        raise UserError(
            f"{len(labels)} sequences of {len(names)} group{'s' if len(names) > 1 else ''} "
            f"(data.group) are too few for the splits: a group is never cut, so {sum(least)} "
            "groups are needed at least"
        )
    rows: dict[str, list[int]] = {name: [] for name in names}
    counts = np.zeros((len(names), len(place)), np.int64)
    number_of_group, number_of_class = (
        {n: i for i, n in enumerate(each)} for each in (names, place)
    )
    for row, (group, label) in enumerate(zip(groups, labels, strict=True)):
        rows[group].append(row)
        counts[number_of_group[group], number_of_class[label]] += 1
    sizes = counts.sum(1).tolist()
    order = random_order(len(names), "groups", *key).tolist()
    order.sort(key=lambda group: -sizes[group].bit_length())
    of_class = counts.sum(0)
    dealt = np.zeros((len(shares), len(place)), np.int64)
    parts: list[list[int]] = [[] for _ in shares]
    lacking = list(least)
    for done, group in enumerate(order):
        allowed = [part for part, lack in enumerate(lacking) if lack > 0]
        if sum(lacking[part] for part in allowed) < len(order) - done:
            allowed = list(range(len(parts)))
        held = np.flatnonzero(counts[group])
        added = counts[group, held]
        # By how much each part's sum over classes of (dealt / total)^2 / share grows; the sum over
        # all parts is least where they are filled by their shares. fsum is the same everywhere.
        grown = added * (2 * dealt[:, held] + added) / of_class[held] ** 2
        growth = [math.fsum(row) / share for row, share in zip(grown.tolist(), shares, strict=True)]
        chosen = min(allowed, key=growth.__getitem__)
        lacking[chosen] -= 1
        dealt[chosen] += counts[group]
        parts[chosen] += rows[names[group]]
    return [np.sort(np.array(part, np.int64)) for part in parts]
