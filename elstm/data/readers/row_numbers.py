"""Finds columns that number the rows or the sequences of a table."""

from __future__ import annotations

from collections.abc import Sequence

LEAST = 10  # rises, from which a column is reported


class RowNumbers:
    """Finds features that never fall in a file and rise from each sequence to the next.

    Row numbers, time stamps and numbers of sequences do so. Files are often sorted by class, and
    then such a feature gives the class away.
    """

    def __init__(self) -> None:
        self._last: dict[int, float] | None = None  # the values of the features that are left
        self._rises: dict[int, int] = {}
        self._sequence: object = None

    def add(self, sequence: object, row: Sequence[float]) -> None:
        """Adds the next row of the file, which belongs to a sequence."""
        same, self._sequence = sequence is self._sequence, sequence
        if self._last is None:
            self._last = dict(enumerate(row))
            self._rises = dict.fromkeys(self._last, 0)
            return
        kept = {}
        for feature, last in self._last.items():
            value = row[feature]
            if value > last or (same and value == last):
                kept[feature] = value
                self._rises[feature] += value > last
        self._last = kept

    def found(self) -> list[int]:
        """Returns the indices of these features."""
        return [feature for feature in self._last or () if self._rises[feature] >= LEAST]
