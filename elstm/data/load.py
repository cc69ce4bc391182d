"""Loads the data set that a config names, an image set of the table or user data by a reader."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elstm.data import checks, preparing
from elstm.data.augment import SeriesAugmentation
from elstm.data.catalog import DATA_SETS, READERS, DataOptions, check_sizes, check_user_sizes
from elstm.data.image_sets import Split, files_exist, load_image_set, pixel_order, stratified
from elstm.data.labelled import LabelledSet, Source
from elstm.data.sequences import ImageSequences, SequenceData
from elstm.data.series import SeriesData, SeriesSplit
from elstm.errors import UserError, printable

log = logging.getLogger(__name__)


def load_data(options: Any, *, stratify: bool = True) -> SequenceData:
    """Returns the data set that the group `data` of a config names, on the CPU.

    Args:
        options: the group `data`: of user data it has a `source`.
        stratify: see `load_image_sequences`.

    Raises:
        UserError: files are missing, damaged or cannot be downloaded, or an option does not fit
            them.
    """
    own = getattr(options, "source", None) is not None
    data = load_user_data(options) if own else load_image_sequences(options, stratify=stratify)
    return _with_augmentation(data, getattr(options, "augment", None))


def _with_augmentation(data: SequenceData, options: Any) -> SequenceData:
    """Returns the data with the augmentation that the group `data.augment` requests."""
    if options is None or options == type(options)():  # all at their defaults: nothing changes
        return data
    if isinstance(data, SeriesData):
        values, lengths = data.train.values, data.train.lengths
        return replace(data, augmentation=SeriesAugmentation(options, values, lengths))
    assert isinstance(data, ImageSequences)
    # torchvision's transforms take two seconds to import, so only runs that use them do.
    from elstm.data.augment_images import PictureAugmentation

    augmentation = PictureAugmentation(options, data.image_size, data.channels)
    return replace(data, augmentation=augmentation)


def with_location(options: Any, place: str) -> Any:
    """Returns the options with another place of the files.

    Raises:
        UserError: the data set has no files.
    """
    name = next((name for name in ("path", "root") if hasattr(options, name)), None)
    if name is None:
        raise UserError(f"{options.name} has no files, so no other place can be given")
    return replace(options, **{name: place})


def read_user_data(options: Any, *, labelled: bool = True) -> Source:
    """Reads the files of user data.

    Args:
        labelled: False: sequences without labels are read too, by readers that can.

    Raises:
        UserError: they are missing, or do not fit the option of the group `data`.
    """
    options = replace(options, path=str(existing(options.path)))
    reader = import_module(READERS[options.source])
    read = reader.read if labelled else getattr(reader, "read_unlabelled", reader.read)
    try:
        source: Source = read(options)
    except OSError as error:
        raise UserError(
            f"{error.filename or options.path} cannot be read: {error.strerror or error}"
        ) from error
    return source


def existing(given: str, option: str = "data.path=") -> Path:
    """Returns the file or folder that an option names; ~ is the home folder.

    Raises:
        UserError: there is none, or it is neither.
    """
    advice = f"set {option.strip()} to where the data lie"
    try:
        path = Path(given).expanduser()
        if path.is_file() or path.is_dir():
            return path
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no permission; ~somebody
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{option}{given} cannot be read ({reason}): {advice}") from error
    if there:
        raise UserError(f"{option}{given} is neither a file nor a folder: {advice}")
    raise UserError(f"{option}{given}: there is no such file or folder; {advice}")


def data_fingerprint(options: Any) -> str | None:
    """Returns the checksum of user data by reading them; None for a published set."""
    if getattr(options, "source", None) is None:
        return None
    return preparing.fingerprint(read_user_data(options))


def load_user_data(options: Any) -> SequenceData:
    """Reads user data, draws the splits that the files lack, and logs what was read."""
    source = read_user_data(options)
    checksum = preparing.fingerprint(source)
    # These messages are logged after the one that describes what was read.
    notes: list[tuple[Any, ...]] = []
    parts = preparing.split(source, _split_options(options), note=lambda *args: notes.append(args))
    warnings = [text for part in source.values() for text in part.notes]
    del source  # its values are copied where splits were drawn
    if options.train_size is not None:
        train = parts["train"]
        if options.train_size > len(train):
            raise UserError(
                f"data.train_size={options.train_size} is more than the training sequences of "
                f"{options.name}: at most {len(train)}"
            )
        index = torch.tensor([sorted(set(train.labels)).index(label) for label in train.labels])
        parts["train"] = preparing.select_rows(train, stratified(index, options.train_size).numpy())
    parts = preparing.alike(parts, options.path)
    check_user_sizes(options, len(parts["train"]))
    names = preparing.classes(parts)
    description = preparing.describe(parts, names)
    log.info("%s: %s", options.name, description)
    for args in notes:
        log.info(*args)
    for text in warnings:
        log.warning("%s", printable(text))  # it has names in files
    splits = {"training": parts["train"], "validation": parts["val"], "test": parts["test"]}
    present = {what: set(part.labels) for what, part in splits.items() if len(part)}
    checks.warn_of_missing_classes(names, present)
    checks.warn_of_class_names(names, [label for part in parts.values() for label in part.labels])
    checks.warn_of_copies(parts)
    checks.note_same_ids(parts)
    checks.warn_of_shared_groups(parts)
    build = _images if parts["train"].image_size is not None else _series
    return build(options, parts, names, checksum, description)


def raw_series(options: Any, split: str) -> LabelledSet:
    """Returns a split of user series unscaled, with its features in the order of training.

    Raises:
        UserError: see `load_user_data`, which has to have accepted the options.
    """
    parts = preparing.split(
        read_user_data(options), _split_options(options), note=lambda *args: None
    )
    return preparing.alike(parts, options.path)[split]


def _split_options(options: Any) -> preparing.SplitOptions:
    return preparing.SplitOptions(
        options.val_fraction, options.test_fraction, options.split_seed,
        options.folds, options.fold, getattr(options, "group", None),
    )  # fmt: skip


def labels_of(part: LabelledSet, names: tuple[str, ...]) -> Tensor:
    """Returns the class of each sequence as its place among `names`, int64 (N,)."""
    place = {name: index for index, name in enumerate(names)}
    return torch.tensor([place[label] for label in part.labels], dtype=torch.int64)


def _series(
    options: Any,
    parts: dict[str, LabelledSet],
    names: tuple[str, ...],
    checksum: str,
    description: str,
) -> SeriesData:
    checks.warn_of_single_steps(parts)
    checks.warn_of_known_classes(parts["train"])
    checks.warn_of_unlearned_features(parts)
    parts = preparing.fill_missing(parts, options.missing)
    mean, std = preparing.moments(parts["train"])
    if not options.standardize:
        mean, std = 0 * mean, 0 * std + 1
    rare = preparing.rare_steps(parts["train"].lengths)
    if rare:
        log.info(
            "%d of %d steps are reached by fewer than %d training sequences: their statistics are "
            "rough", rare, int(parts["train"].lengths.max()), preparing.FEW,
        )  # fmt: skip
    splits = {
        name: SeriesSplit(
            preparing.standardized(part, mean, std),
            torch.from_numpy(part.lengths),
            labels_of(part, names),
            part.ids,
        )
        for name, part in parts.items()
    }
    return SeriesData(
        name=options.name,
        class_names=names,
        mean=torch.from_numpy(mean),
        std=torch.from_numpy(std),
        batch_size=options.batch_size,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        fingerprint=checksum,
        description=description,
        bucket=options.bucket,
        features=parts["train"].features,
    )


def _images(
    options: Any,
    parts: dict[str, LabelledSet],
    names: tuple[str, ...],
    checksum: str,
    description: str,
) -> ImageSequences:
    size = parts["train"].image_size
    assert size is not None
    pixels = math.prod(size)
    per_step = options.pixels_per_step or size[1]
    if pixels % per_step:
        raise UserError(
            f"data.pixels_per_step={per_step} does not divide the {pixels} pixels of "
            f"{size[0]} x {size[1]} pictures; {size[1]} is a row a step"
        )
    splits = {
        name: Split(torch.from_numpy(part.values).flatten(1), labels_of(part, names))
        for name, part in parts.items()
    }
    mean, std = mean_and_std(splits["train"].images)
    order = pixel_order(pixels, options.permute_seed) if options.permute else None
    return ImageSequences(
        name=options.name,
        class_names=names,
        image_size=size,
        pixels_per_step=per_step,
        mean=mean,
        std=std,
        permutation=order,
        batch_size=options.batch_size,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        channels=options.channels,
        fingerprint=checksum,
        description=description,
    )


def images_checksum(options: Any) -> str | None:
    """Returns the checksum of a published set (`content`) by reading its files.

    Returns None where files are missing, or come with a package; nothing is downloaded.
    """
    if not files_exist(options.name, options.root or "data"):
        return None
    images = load_image_set(options.name, options.root or "data")
    if options.train_size is not None and options.train_size > len(images.train):
        return None
    return _checksum((_train_part(images.train, options.train_size), images.val, images.test))


def _train_part(train: Split, size: int | None, *, stratify: bool = True) -> Split:
    """Returns the training images that `train_size` selects."""
    if size is None:
        return train
    rows = stratified(train.labels, size) if stratify else torch.arange(size)
    return Split(train.images[rows], train.labels[rows])


def load_image_sequences(options: DataOptions, *, stratify: bool = True) -> ImageSequences:
    """Returns the image set that the options name, on the CPU, and downloads it if necessary.

    `train_size` selects that many images of the training split after validation was split off, so
    that runs of every size are validated on the same images. It preserves the classes' shares.

    Args:
        options: the group `data` of a config.
        stratify: False: `train_size` takes the first images instead, as runs up to commit d8d01eb
            did; their checkpoints are resumed and evaluated with it.

    Raises:
        UserError: files are missing, damaged or cannot be downloaded, or an option does not fit the
            set.
    """
    # An environment variable that is set and empty counts as not set.
    images = load_image_set(options.name, getattr(options, "root", "") or "data")
    train, pixels = images.train, math.prod(images.image_size)
    check_sizes(options, pixels, len(train))
    train = _train_part(train, options.train_size, stratify=stratify)
    mean, std = mean_and_std(train.images)
    order = pixel_order(pixels, options.permute_seed) if options.permute else None
    names = images.class_names
    description = (
        f"{preparing.counts(len(train), len(images.val), len(images.test))} "
        f"{preparing.images_of(images.image_size, images.channels)}, {len(names):,} classes, from "
        f"{images.origin}"
    )
    log.info("%s: %s", options.name, description)
    there = len(images.train) + len(images.val), len(images.test)
    published = DATA_SETS[options.name].file_images
    if DATA_SETS[options.name].folder and there != published:  # the digits come with a package
        log.warning(
            "the files hold %s training and %s test images instead of %s and %s, so they are not "
            "the published set", *(f"{count:,}" for count in (*there, *published)),
        )  # fmt: skip
    splits = {"training": train, "validation": images.val, "test": images.test}
    present = {
        what: {names[label] for label in split.labels.unique().tolist()}
        for what, split in splits.items()
    }
    checks.warn_of_missing_classes(names, present, "image")
    return ImageSequences(
        name=options.name,
        class_names=images.class_names,
        image_size=images.image_size,
        pixels_per_step=options.pixels_per_step,
        mean=mean,
        std=std,
        permutation=order,
        stratified=stratify,
        batch_size=options.batch_size,
        train=train,
        val=images.val,
        test=images.test,
        channels=images.channels,
        description=description,
        content=_checksum(splits.values()),
    )


def _checksum(splits: Iterable[Split]) -> str:
    """Returns a checksum of all images and labels, which distinguishes files of one name."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.labels.numpy().astype("<i8").tobytes())
        digest.update(split.images.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def mean_and_std(images: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation of pixels in [0, 1], exact sums of integers."""
    counts = torch.bincount(images.flatten(), minlength=256).tolist()
    n = sum(counts)
    total = sum(count * value for value, count in enumerate(counts))
    squares = sum(count * value**2 for value, count in enumerate(counts))
    std = math.sqrt(n * squares - total**2) / (255 * n)
    return total / (255 * n), std or 1.0  # 1 for constant pixels: they become 0
