"""Logs what may be wrong with the splits of a data set, and is no error.

Names in files are made printable, because a terminal would execute control characters.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from unicodedata import normalize

import numpy as np

from elstm.data.labelled import MISSING_CELLS, LabelledSet, number_of
from elstm.errors import printable
from elstm.files.bounded import one_line

log = logging.getLogger(__name__)


def warn_of_missing_classes(
    names: Sequence[str], present: Mapping[str, Collection[str]], what_it_holds: str = "sequence"
) -> None:
    """Logs a warning for each split that lacks a class, because the file may be sorted.

    Args:
        present: the classes of each split, by the split's name.
        what_it_holds: the noun for the members of a split.
    """
    for what, found in present.items():
        missing = [name for name in names if name not in found]
        if missing:
            log.warning(
                "the %s split holds no %s of %s %s", what, what_it_holds,
                "class" if len(missing) == 1 else "classes", printable(", ".join(missing)),
            )  # fmt: skip


def warn_of_class_names(names: Sequence[str], labels: Collection[str]) -> None:
    """Logs a warning for classes that may be no classes: missing labels, and equal ones.

    Args:
        labels: those of all sequences.
    """
    for name in names:
        if name.lower() in MISSING_CELLS:
            log.warning(
                "%d sequences have the class %s: leave them out if it stands for a missing label",
                sum(label == name for label in labels), name,
            )  # fmt: skip
    numbers: dict[float, list[str]] = {}
    for name in names:
        with suppress(ValueError):
            numbers.setdefault(number_of(name), []).append(name)
    for same in numbers.values():
        if len(same) > 1:
            log.warning(
                "the classes %s are one number, but differ as text, so they are different classes",
                " and ".join(same),
            )
    looks: dict[str, list[str]] = {}
    for name in names:
        looks.setdefault(normalize("NFC", name), []).append(name)
    for name, same in looks.items():
        if len(same) > 1:
            log.warning(
                "%d classes look like %s, but differ in how accents are stored, so they are "
                "different classes", len(same), printable(name),
            )  # fmt: skip


def warn_of_copies(parts: dict[str, LabelledSet]) -> None:
    """Logs a warning where training sequences validate or test too, value for value."""

    def keys(part: LabelledSet) -> list[bytes]:
        rows = (row[:length] for row, length in zip(part.values, part.lengths, strict=True))
        return [hashlib.sha256(row.tobytes()).digest() for row in rows]

    known = set(keys(parts["train"]))
    for name, what in (("val", "validation"), ("test", "test")):
        count = sum(key in known for key in keys(parts[name]))
        if count:
            log.warning(
                "%d of %d %s sequences are equal to training sequences in all values: that "
                "accuracy is too good, unless copies are to be expected",
                count, len(parts[name]), what,
            )  # fmt: skip


def note_same_ids(parts: dict[str, LabelledSet]) -> None:
    """Logs ids that occur in the training split and in another one, as a person's may."""
    known = set(parts["train"].ids)
    for name, what in (("val", "validation"), ("test", "test")):
        same = [each for each in parts[name].ids if each in known]
        if same:
            log.info(
                "%d of %d ids of the %s split occur in the training split too, such as %s: if an "
                "id means the same person or thing in both, that accuracy is too good",
                len(same), len(parts[name]), what, one_line(same[0], 40),
            )  # fmt: skip


def warn_of_shared_groups(parts: dict[str, LabelledSet]) -> None:
    """Logs a warning for groups that the files have in the training split and in another one."""
    known = set(parts["train"].groups)
    for name, what in (("val", "validation"), ("test", "test")):
        here = set(parts[name].groups)
        shared = sorted(known & here)
        if shared:
            log.warning(
                "%d of %d groups (data.group) of the %s split are in the training split of the "
                "files too, such as %s: that accuracy is too good for new groups",
                len(shared), len(here), what, one_line(shared[0], 40),
            )  # fmt: skip


def warn_of_single_steps(parts: dict[str, LabelledSet]) -> None:
    """Logs a warning where no sequence has a second step, because axes or ids may be mixed up."""
    if all(int(part.lengths.max(initial=1)) == 1 for part in parts.values()):
        log.warning(
            "every sequence has one step of %d features, so there is nothing to remember: a table "
            "needs a row for each step, and data.layout has to name the axes of arrays",
            parts["train"].values.shape[2],
        )  # fmt: skip


def warn_of_known_classes(train: LabelledSet) -> None:
    """Logs a warning for each feature that is the class by another name, such as its number.

    It has one value in all sequences of a class, and another one in those of each other class.
    """
    classes = len(set(train.labels))
    if classes < 2 or len(train) < max(10, 2 * classes):
        return  # it could be so by chance
    beyond = np.arange(train.values.shape[1])[None, :] >= train.lengths[:, None]
    for feature in range(train.values.shape[2]):
        values = train.values[:, :, feature]
        if not ((values == values[:, :1]) | beyond).all():
            continue
        pairs = set(zip(train.labels, values[:, 0].tolist(), strict=True))
        if len(pairs) == classes == len({value for _, value in pairs}):
            log.warning(
                "feature %s has one value for each class in all training steps, so it gives the "
                "class away: leave it out, unless it is known where the class is not",
                _feature(train, feature),
            )


def warn_of_unlearned_features(parts: dict[str, LabelledSet]) -> None:
    """Logs a warning for each feature that is constant or missing in training alone.

    Training gives it neither a scale nor a meaning, and its other values reach the model unscaled.
    """
    train = _known_values(parts["train"])
    if all(len(values) > 1 for values in train):
        return
    others = {"validation": _known_values(parts["val"]), "test": _known_values(parts["test"])}
    for feature, values in enumerate(train):
        if len(values) > 1:
            continue
        where = [what for what, known in others.items() if known[feature] - values]
        if where:
            log.warning(
                "feature %s %s in all training steps, and has other values in the %s split, of "
                "which the model learns nothing: leave the feature out",
                _feature(parts["train"], feature),
                "is the same" if values else "is missing", " and the ".join(where),
            )  # fmt: skip


def _feature(part: LabelledSet, index: int) -> str:
    return printable(part.features[index]) if part.features else str(index)


def _known_values(part: LabelledSet) -> list[set[float]]:
    """Returns up to two different values of each feature that are not missing."""
    active = np.arange(part.values.shape[1])[None, :] < part.lengths[:, None]
    found = []
    for feature in range(part.values.shape[2]):
        values = part.values[:, :, feature][active]
        values = values[~np.isnan(values)]
        found.append({float(values.min()), float(values.max())} if len(values) else set())
    return found
