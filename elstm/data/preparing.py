"""Prepares user data for training: splits, folds, classes, missing values and scaling.

All results depend on the files and the options alone, so that a resume gets the same numbers. Every
draw follows from `split_seed`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from elstm.data.draws import grouped_parts, parts_of, stratified_draw
from elstm.data.labelled import (
    SPLITS,
    LabelledSet,
    Source,
    blocks,
    class_names,
    with_classes,
    with_features,
)
from elstm.errors import UserError

log = logging.getLogger(__name__)

MISSING = ("error", "zero", "forward")
FEW = 10  # steps that fewer sequences reach have rough statistics


@dataclass(frozen=True)
class SplitOptions:
    """Holds the options by which splits that the files lack are drawn.

    Attributes:
        val_fraction, test_fraction: shares of the sequences that are split.
        split_seed: the seed of the draw.
        folds: the number of parts of the training data in k-fold cross-validation.
        fold: which part is the test set, from 0; validation is drawn from the others.
        group: the option data.group; sequences of a group are kept in one split.
    """

    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0
    folds: int | None = None
    fold: int | None = None
    group: str | None = None


def fingerprint(source: Source) -> str:
    """Returns a checksum of values, lengths, labels, groups and their splits."""
    digest = hashlib.sha256()
    for split in sorted(source):
        part = source[split]
        digest.update(f"{split} {part.values.shape} {part.labels!r}".encode())
        digest.update(np.ascontiguousarray(part.values).reshape(-1).data)  # without a copy
        digest.update(part.lengths.astype("<i8").tobytes())
        if part.groups:  # the drawn splits depend on them
            digest.update(repr(part.groups).encode())
    return digest.hexdigest()[:16]


def select_rows(part: LabelledSet, rows: Sequence[int] | np.ndarray) -> LabelledSet:
    """Returns the sequences in `rows`."""
    rows = np.asarray(rows, np.int64)
    return dataclasses.replace(
        part,
        values=part.values[rows],
        lengths=part.lengths[rows],
        labels=tuple(part.labels[row] for row in rows),
        ids=tuple(part.ids[row] for row in rows),
        groups=tuple(part.groups[row] for row in rows) if part.groups else (),
    )


def concatenated(parts: Sequence[LabelledSet]) -> LabelledSet:
    """Returns sets of the same features, one after the other."""
    steps = max(part.values.shape[1] for part in parts)
    values = np.zeros((sum(map(len, parts)), steps, parts[0].values.shape[2]), np.float32)
    first = 0
    for part in parts:
        values[first : first + len(part), : part.values.shape[1]] = part.values
        first += len(part)
    return LabelledSet(
        values,
        np.concatenate([part.lengths for part in parts]),
        tuple(label for part in parts for label in part.labels),
        tuple(name for part in parts for name in part.ids),
        tuple(file for part in parts for file in part.files),
        parts[0].features,
    )


def split(
    source: Source, options: SplitOptions, note: Callable[..., None] = log.info
) -> dict[str, LabelledSet]:
    """Returns train, val and test; splits that the files lack are drawn, which `note` receives."""
    found = dict(source)
    seed = options.split_seed
    whole = found.pop("all", None)
    if whole is not None:
        found["train"] = whole
    if "train" not in found:
        raise UserError(
            f"the data have no training split, but only {' and '.join(found)}: give that too, or "
            "files without splits"
        )
    if options.folds is not None:
        found = _fold(found, options, note)
    for name, fraction in (("test", options.test_fraction), ("val", options.val_fraction)):
        if name in found:
            continue
        part = found["train"]
        if name == "val" and not fraction:
            found[name] = select_rows(part, [])
            note("no validation split (data.val_fraction=0): the last epoch is tested")
            continue
        if part.groups:
            both = name == "test" and "val" not in found and options.val_fraction > 0
            shares, least = (1 - fraction, fraction), (2 if both else 1, 1)
            _, rows = grouped_parts(part.labels, part.groups, shares, least, name, seed)
        else:
            rows = stratified_draw(part.labels, fraction, name, seed)
        rest = np.setdiff1d(np.arange(len(part)), rows)
        found[name], found["train"] = select_rows(part, rows), select_rows(part, rest)
        note(
            "%s split: %d of %d sequences, drawn class by class with data.split_seed=%d%s",
            name, len(rows), len(part), seed, _groups_of(found[name], part, options),
        )  # fmt: skip
    return {name: found[name] for name in SPLITS}


def _fold(
    found: dict[str, LabelledSet], options: SplitOptions, note: Callable[..., None]
) -> dict[str, LabelledSet]:
    folds, fold = options.folds, options.fold
    assert folds is not None
    if fold is None:
        raise UserError(f"data.folds={folds} needs data.fold=0 ... {folds - 1}: which part tests")
    part = found["train"]
    if fold >= folds or folds > len(part):
        raise UserError(
            f"data.fold={fold} of data.folds={folds}: folds are numbered from 0, and there are "
            f"{len(part)} sequences to cut"
        )
    if part.groups:
        # The other parts have to be cut again for validation.
        least = [2 if folds == 2 and options.val_fraction else 1] * folds
        shares, seed = [1 / folds] * folds, options.split_seed
        parts = grouped_parts(part.labels, part.groups, shares, least, "fold", seed)
    else:
        parts = parts_of(part.labels, folds, "fold", options.split_seed)
    rows = parts[fold]
    rest = np.setdiff1d(np.arange(len(part)), rows)
    unused = " and ".join(name for name in ("val", "test") if name in found)
    note(
        "fold %d of %d tests: %d of %d training sequences%s%s", fold, folds, len(rows), len(part),
        _groups_of(select_rows(part, rows), part, options),
        f"; no sequence of the files' {unused} split is used" if unused else "",
    )  # fmt: skip
    return {"test": select_rows(part, rows), "train": select_rows(part, rest)}


def _groups_of(drawn: LabelledSet, part: LabelledSet, options: SplitOptions) -> str:
    """Describes how many groups were drawn; "" if there are none."""
    if not part.groups:
        return ""
    count, total = len(set(drawn.groups)), len(set(part.groups))
    return f", in {count} of {total} groups (data.group={options.group})"


def alike(parts: dict[str, LabelledSet], path: str) -> dict[str, LabelledSet]:
    """Returns the splits with the features and the spelling of the labels of the training split.

    The splits of a folder may have other orders of columns, and may be CSV and Parquet.

    Raises:
        UserError: their features differ.
    """
    train = parts["train"]
    names = class_names(train.labels)
    found = {
        name: with_features(
            with_classes(part, names), train.features, f"the {name} split of {path}"
        )
        for name, part in parts.items()
    }
    features = {name: part.values.shape[2] for name, part in found.items()}
    if len(set(features.values())) > 1:
        listed = ", ".join(f"{count} in {name}" for name, count in features.items())
        raise UserError(f"{path}: the splits have different numbers of features: {listed}")
    return found


def classes(parts: dict[str, LabelledSet]) -> tuple[str, ...]:
    """Returns the classes of all splits.

    Raises:
        UserError: there is only one class.
    """
    names = class_names([label for part in parts.values() for label in part.labels])
    if len(names) < 2:
        raise UserError(f"all sequences have the label {names[0]!r}, so there is nothing to learn")
    return names


def fill_missing(
    parts: dict[str, LabelledSet],
    how: str,
    advice: str = "data.missing=zero or forward fills them",
) -> dict[str, LabelledSet]:
    """Handles NaN: "error" refuses it, "forward" repeats the value before it, "zero" leaves it.

    The remaining NaN become zero, the training mean, when the values are standardised.

    Args:
        advice: for the error message of missing values.

    Raises:
        UserError: there are infinite values, or missing ones with "error". The message has their
            number and the place of the first.
    """
    filled = {}
    for name, part in parts.items():
        values = part.values
        for bad, what in ((np.isinf(values), "infinite"), (np.isnan(values), "missing (NaN)")):
            if not bad.any() or (what != "infinite" and how != "error"):
                continue
            row, step, feature = (int(i) for i in np.argwhere(bad)[0])
            label = part.features[feature] if part.features else f"{feature}"
            hint = f"; {advice}"
            if what == "infinite":
                hint = "; numbers beyond 3.4e+38, the largest in 32 bits, count as infinite"
            if what != "infinite" and _only_ends(bad, part.lengths):
                hint += (
                    "; all are at the ends of sequences, so if they fill up shorter ones, leave "
                    "them out (an .npz file gives their steps in lengths)"
                )
            raise UserError(
                f"{int(bad.sum()):,} values of {name} are {what}, in "
                f"{int(bad.any((1, 2)).sum()):,} of {len(part):,} sequences; the first is in "
                f"{part.ids[row]}, step {step}, feature {label}{hint}"
            )
        if how == "forward":
            values = values.copy()
            for step in range(1, values.shape[1]):
                gap = np.isnan(values[:, step])
                values[:, step] = np.where(gap, values[:, step - 1], values[:, step])
        filled[name] = dataclasses.replace(part, values=values)
    return filled


def _only_ends(missing: np.ndarray, lengths: np.ndarray) -> bool:
    """Returns whether values (N, T, F) miss only in steps that have none, at sequences' ends."""
    gone = missing.all(2) | (np.arange(missing.shape[1])[None, :] >= lengths[:, None])
    ends = np.logical_and.accumulate(gone[:, ::-1], 1)[:, ::-1]
    return not (missing & ~ends[:, :, None]).any()


def moments(part: LabelledSet) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each feature over all steps, (F,), in float64.

    A constant feature has the deviation 1, so that it becomes zero. How small the numbers are does
    not matter, because magnetic fields are some 1e-13 tesla.
    """
    # (steps of all sequences, F), changed in place, because it takes the most memory of loading
    sequences = [row[:length] for row, length in zip(part.values, part.lengths, strict=True)]
    steps = np.concatenate(sequences, dtype=np.float64)
    missing = np.isnan(steps)
    count = np.maximum((~missing).sum(0), 1)
    steps[missing] = 0
    mean = steps.sum(0) / count
    steps -= mean
    np.square(steps, out=steps)
    steps[missing] = 0
    variance = steps.sum(0) / count
    std = np.sqrt(variance)
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)


def standardized(part: LabelledSet, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
    """Returns float32 (N, T, F): standardised, zero where a value is missing or past the end."""
    values: np.ndarray = np.empty(part.values.shape, np.float32)
    for rows in blocks(values.shape):  # each is in float64
        scaled = (part.values[rows] - mean) / std
        beyond = np.arange(values.shape[1])[None, :] >= part.lengths[rows, None]
        values[rows] = np.where(np.isnan(scaled) | beyond[:, :, None], 0, scaled)
    return torch.from_numpy(values)


def describe(parts: dict[str, LabelledSet], names: Sequence[str]) -> str:
    """Describes in one line what was read: sizes, lengths, features, classes, files."""
    train, val, test = (parts[name] for name in SPLITS)
    lengths = np.concatenate([part.lengths for part in parts.values()])
    low, high = int(lengths.min()), int(lengths.max())
    steps = f"{low:,} to {high:,}" if low != high else f"{high:,}"
    features = train.values.shape[2]
    files = dict.fromkeys(str(file) for part in parts.values() for file in part.files)
    what = f"sequences of {steps} steps x {features:,} feature{'' if features == 1 else 's'}"
    if train.image_size is not None:
        what = images_of(train.image_size, features)
    return (
        f"{counts(len(train), len(val), len(test))} {what}, {len(names):,} classes, from "
        f"{', '.join(files)}"
    )


def counts(train: int, val: int, test: int) -> str:
    """Describes how many sequences each split has."""
    return f"{train:,} training, {val:,} validation, {test:,} test"


def images_of(size: tuple[int, int], channels: int) -> str:
    """Describes the images of a set."""
    colour = "grey" if channels == 1 else "in colour"
    return f"images of {size[0]} x {size[1]} pixels, {colour}"


def rare_steps(lengths: np.ndarray) -> int:
    """Returns how many steps fewer than FEW sequences reach."""
    reached = (lengths[:, None] > np.arange(lengths.max())[None, :]).sum(0)
    return int((reached < FEW).sum())
