"""Reads further labelled data in the form that a trained model takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from elstm.data import preparing
from elstm.data.image_sets import Split
from elstm.data.labelled import UNLABELLED, LabelledSet, with_features
from elstm.data.load import labels_of, moved, read_own
from elstm.data.sequences import ImageSequences, SequenceData
from elstm.data.series import SeriesData, SeriesSplit
from elstm.errors import UserError


def load_other(options: Any, facts: dict[str, Any], path: str, split: str) -> SequenceData:
    """Returns data that a run has not seen, scaled by the statistics of its training split.

    Files without splits are taken as a whole; of others `split` is taken.

    Args:
        options: the group `data` of the run.
        facts: how its files became inputs (`SequenceData.facts`), which were checked.
        path: the file or folder of the other data, in the format of the run's.

    Raises:
        UserError: the run is not on own data, or the data do not fit its model.
    """
    if getattr(options, "source", None) is None:
        raise UserError(
            f"the run is on {options.name}, and other data can only be given for runs on own data"
        )
    source = read_own(moved(options, path))
    part = source.get("all", source.get(split))
    if part is None:
        raise UserError(f"{path} has no split {split}: it has {', '.join(source)}")
    names = tuple(facts["class_names"])
    unknown = sorted(set(part.labels) - set(names))
    if unknown:
        raise UserError(
            f"{path} has labels that the run was not trained on: {', '.join(unknown[:5])}; its "
            f"classes are {', '.join(names[:20])}"
        )
    if part.image_size is not None:
        return _images(options, part, facts, names, path)
    return _series(options, part, facts, names, path)


def load_series(options: Any, facts: dict[str, Any], path: str) -> tuple[SeriesData, LabelledSet]:
    """Returns the sequences of files, labelled or not, as a model takes them and as they were read.

    All splits of the files are taken, one behind the other. Labels are not checked.

    Args:
        options, facts, path: see `load_other`.

    Raises:
        UserError: the files cannot be read, or do not fit the model.
    """
    source = read_own(moved(options, path), labelled=False)
    parts = [with_features(part, facts.get("features", ()), path) for part in source.values()]
    for each in parts:
        _check_features(each, facts, path)
    part = preparing.joined(parts)
    plain = replace(part, labels=(UNLABELLED,) * len(part))
    return _series(options, plain, facts, tuple(facts["class_names"]), path), part


def _series(
    options: Any, part: LabelledSet, facts: dict[str, Any], names: tuple[str, ...], path: str
) -> SeriesData:
    part = with_features(part, facts.get("features", ()), path)
    _check_features(part, facts, path)
    (part,) = preparing.fill_missing({"data": part}, options.missing).values()
    mean, std = (torch.tensor(facts[name], dtype=torch.float64) for name in ("mean", "std"))
    unlabelled = torch.zeros(len(part), dtype=torch.int64)
    split = SeriesSplit(
        preparing.standardized(part, mean.numpy(), std.numpy()),
        torch.from_numpy(part.lengths),
        unlabelled if UNLABELLED in part.labels else labels_of(part, names),
        part.ids,
    )
    return SeriesData(
        name=path, class_names=names, mean=mean, std=std, batch_size=options.batch_size,
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
    images = torch.from_numpy(part.values.reshape(len(part), math.prod(size) * options.channels))
    split = Split(images, labels_of(part, names))
    return ImageSequences(
        name=path, class_names=names, image_size=part.image_size,
        pixels_per_step=facts["pixels_per_step"], mean=facts["mean"], std=facts["std"],
        permutation=facts["permutation"], batch_size=options.batch_size,
        train=split, val=split, test=split, channels=options.channels,
    )  # fmt: skip


def _check_features(part: LabelledSet, facts: dict[str, Any], path: str) -> None:
    features = part.values.shape[2]
    if features != facts["input_size"]:
        raise UserError(
            f"{path} has {features} features, and the run was trained on {facts['input_size']}"
        )
