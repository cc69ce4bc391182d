"""Reads data that a run was not trained on, in the form that its model takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elstm.data import preparing
from elstm.data.catalog import DATA_SETS, DataSet
from elstm.data.image_sets import Split, load_files
from elstm.data.labelled import (
    MISSING_CELLS,
    UNLABELLED,
    LabelledSet,
    Source,
    with_classes,
    with_features,
)
from elstm.data.load import (
    data_fingerprint,
    existing,
    labels_of,
    read_user_data,
    with_location,
)
from elstm.data.sequences import ImageSequences, SequenceData
from elstm.data.series import SeriesData, SeriesSplit
from elstm.errors import UserError
from elstm.files.bounded import file_text


def load_unseen(
    options: Any, facts: dict[str, Any], path: str, split: str
) -> tuple[SequenceData, str]:
    """Returns data that a run has not seen, scaled by the statistics of its training split.

    All sequences of files without splits are taken; of other files only `split` is. The text that
    is returned says which.

    Args:
        options: the group `data` of the run.
        facts: how its files became inputs (`SequenceData.facts`), which were checked.
        path: the file or folder of the other data, in the format of the run's. For a run on a
            published set a folder with files of that format, or with a folder for each class.

    Raises:
        UserError: the data cannot be read, do not fit the run's model, or are those of the run
            without splits, which hold its training sequences.
    """
    names, taken = tuple(facts["class_names"]), f"{split} split"
    if getattr(options, "source", None) is None:
        published = DATA_SETS[options.name]
        place = existing(path, "--data ")
        files = load_files(published, place, split)
        if files is not None:
            return _image_sequences(options, files, facts, names, path), taken
        source = _class_folders(published, facts, place, options.name)
    else:
        source = _read(options, facts, path)
        named = _named(source, path)
        if named is not None and named != split:
            raise UserError(
                f"{path} is the {named} split of two files, and the {split} split is evaluated: "
                f"give --split {named}, or the other file"
            )
    if "all" in source:
        if _fingerprint(source, options, path) == facts.get("fingerprint"):
            raise UserError(
                f"{path} holds the run's own data, training sequences too: leave --data out, which "
                f"evaluates the {split} split, or give moved files by --data-root"
            )
        taken = "all"
    part = source.get("all", source.get(split))
    if part is None:
        raise UserError(f"{path} has no split {split}: it has {', '.join(source)}")
    part = with_classes(part, names)
    unknown = sorted(set(part.labels) - set(names))
    if unknown:
        raise UserError(
            f"{path} has labels that the run was not trained on: {', '.join(unknown[:5])}; its "
            f"classes are {', '.join(names[:20])}"
        )
    if part.image_size is not None:
        return _images(options, part, facts, names, path), taken
    return _series(options, part, facts, names, path), taken


def load_series(options: Any, facts: dict[str, Any], path: str) -> tuple[SeriesData, LabelledSet]:
    """Returns the sequences of files, labelled or not, as a model takes them and as read.

    All splits that readers find are taken, one after the other. If they share ids, each id gets
    the name of its split. Labels are not checked.

    Args:
        options, facts, path: see `load_unseen`.

    Raises:
        UserError: the files cannot be read, or do not fit the model.
    """
    source = _read(options, facts, path, labelled=False)
    ids = [set(part.ids) for part in source.values()]
    if len(set().union(*ids)) < sum(map(len, ids)):  # as of tables that count from 1
        source = {
            split: replace(part, ids=tuple(f"{split}: {name}" for name in part.ids))
            for split, part in source.items()
        }
    parts = [with_features(part, facts.get("features", ()), path) for part in source.values()]
    for each in parts:
        _check_features(each, facts, path)
    part = preparing.concatenated(parts)
    plain, names = replace(part, labels=(UNLABELLED,) * len(part)), tuple(facts["class_names"])
    given = with_classes(part, names)
    missing = [label.lower() in MISSING_CELLS and label not in names for label in given.labels]
    labels = (UNLABELLED if no else label for no, label in zip(missing, given.labels, strict=True))
    return _series(options, plain, facts, names, path), replace(given, labels=tuple(labels))


def _read(options: Any, facts: dict[str, Any], path: str, *, labelled: bool = True) -> Source:
    """Reads files as those of the run; columns of a table that it was not trained on are left out.

    Raises:
        UserError: they cannot be read in the format of the run's.
    """
    options, features = with_location(options, path), tuple(facts.get("features", ()))
    if hasattr(options, "group"):
        options = replace(options, group=None)  # no split is drawn
    if features and hasattr(options, "features"):
        options = replace(options, features=features)
    try:
        return read_user_data(options, labelled=labelled)
    except UserError as error:
        if re.search(r"\bdata\.(?!path=)[a-z_]+=", str(error)) is None:
            raise
        raise UserError(
            f"{error}. Only a new run can have other options data.*; here those of this run hold, "
            "so change the file"
        ) from error


def _fingerprint(source: Source, options: Any, path: str) -> str | None:
    """Returns the checksum that a run on these files would record; groups are a part of it."""
    if getattr(options, "group", None) is None:
        return preparing.fingerprint(source)
    try:
        return data_fingerprint(with_location(options, path))
    except UserError:  # other files need no groups
        return None


def _named(source: Source, path: str) -> str | None:
    """Returns the split that a named file is, where a reader has read its partner too."""
    file = existing(path)
    files = {split: part.files for split, part in source.items()}
    if len({*files.values()}) < 2:
        return None
    return next((split for split, each in files.items() if each == (file,)), None)


def _series(
    options: Any, part: LabelledSet, facts: dict[str, Any], names: tuple[str, ...], path: str
) -> SeriesData:
    part = with_features(part, facts.get("features", ()), path)
    _check_features(part, facts, path)
    advice = "the run was trained with data.missing=error, so fill them in the file"
    part = preparing.fill_missing({path: part}, options.missing, advice)[path]
    mean, std = (torch.tensor(facts[name], dtype=torch.float64) for name in ("mean", "std"))
    unlabelled = torch.zeros(len(part), dtype=torch.int64)
    split = SeriesSplit(
        preparing.standardized(part, mean.numpy(), std.numpy()),
        torch.from_numpy(part.lengths),
        unlabelled if UNLABELLED in part.labels else labels_of(part, names),
        part.ids,
    )
    return SeriesData(
        name=file_text(path), class_names=names, mean=mean, std=std, batch_size=options.batch_size,
        train=split, val=split, test=split, fingerprint="", description="",
    )  # fmt: skip


def _images(
    options: Any, part: LabelledSet, facts: dict[str, Any], names: tuple[str, ...], path: str
) -> ImageSequences:
    size = tuple(facts["image_size"])
    if part.image_size != size:
        raise UserError(
            f"{path} has pictures of {'x'.join(map(str, part.image_size or ()))} pixels, and the "
            f"run was trained on {'x'.join(map(str, size))}"
        )
    images = torch.from_numpy(part.values.reshape(len(part), -1))
    return _image_sequences(options, Split(images, labels_of(part, names)), facts, names, path)


def _image_sequences(
    options: Any, split: Split, facts: dict[str, Any], names: tuple[str, ...], path: str
) -> ImageSequences:
    rows, columns = facts["image_size"]
    return ImageSequences(
        name=file_text(path), class_names=names, image_size=(rows, columns),
        pixels_per_step=facts["pixels_per_step"], mean=facts["mean"], std=facts["std"],
        permutation=facts["permutation"], batch_size=options.batch_size,
        train=split, val=split, test=split, channels=facts.get("channels", 1),
    )  # fmt: skip


def _class_folders(
    published: DataSet, facts: dict[str, Any], place: Path, name: str
) -> dict[str, LabelledSet]:
    """Reads class folders of pictures, in the size and the colours of a published set.

    Pictures are read as elstm-predict reads them, so that those that are dark on light are inverted
    where the run's are light on dark.

    A folder has the name of a class, with - or _ in place of a slash, or its number from 0 where
    no class is named by a number.
    """
    from elstm.data.placement import read_as_trained  # and with it Pillow
    from elstm.data.readers.image_folders import read_image_folders

    if not place.is_dir() or not any(entry.is_dir() for entry in place.iterdir()):
        files = "" if published.folder is None else f" the files of {name} or"
        raise UserError(
            f"{place} has to be a folder with{files} a folder of pictures for each class: "
            f"{', '.join(facts['class_names'][:20])}"
        )
    rows, columns = facts["image_size"]
    classes = facts["class_names"]
    spelled = {each.replace("/", sign): each for each in classes for sign in "-_/"}
    if not any(each.isdecimal() for each in classes):
        spelled |= {str(number): each for number, each in enumerate(classes)}

    def decode(file: Path, note: Callable[[str], None]) -> np.ndarray:
        return read_as_trained(file, facts, published.box, note=note)

    source = read_image_folders(place, published.channels, (rows, columns), decode)
    return {
        split: replace(part, labels=tuple(spelled.get(label, label) for label in part.labels))
        for split, part in source.items()
    }


def _check_features(part: LabelledSet, facts: dict[str, Any], path: str) -> None:
    features = part.values.shape[2]
    if features != facts["input_size"]:
        raise UserError(
            f"{path} has {features} features, and the run was trained on {facts['input_size']}"
        )
