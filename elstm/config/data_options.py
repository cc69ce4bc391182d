"""Defines the options of the group data, by the source of the sequences."""

from __future__ import annotations

from dataclasses import dataclass

from elstm.config.fields import MISSING, bounded, choice, nested, setting

# The resolvers that a config may hold: an environment variable, and a name from a path.
DATA_ROOT = "${oc.env:ELSTM_DATA,data}"
DATA_NAME = "${data_name:${data.path}}"


@dataclass
class AugmentPicturesConfig:
    """Holds the random changes of training pictures, drawn anew in each epoch."""

    shift: int = bounded(
        0, ge=0, le=1000,
        help="Shifts training pictures by up to this number of pixels, up or down and left or "
        "right.",
    )  # fmt: skip
    rotation: float = bounded(
        0.0,
        ge=0,
        le=180,
        help="Rotates training pictures by up to this number of degrees, both ways.",
    )
    crop: float = bounded(
        1.0, gt=0, le=1,
        help="Cuts a random part out of training pictures and enlarges it to their size. The part "
        "has at least this fraction of their area; 1 cuts nothing off.",
    )  # fmt: skip
    flip: bool = setting(
        False,
        help="Swaps left and right of half of the training pictures. Their mirror images "
        "have to belong to the same class, as those of photos mostly do and of characters do not.",
    )
    fill: int = bounded(
        0, ge=0, le=255,
        help="Brightness of the area that a shift or rotation brings in from outside of a picture; "
        "0 is black, 255 is white.",
    )  # fmt: skip


@dataclass
class AugmentSeriesConfig:
    """Holds the random changes of training series, drawn anew in each epoch."""

    jitter: float = bounded(
        0.0, ge=0, le=100,
        help="Adds normal noise to each value of training sequences, in standard deviations of its "
        "feature.",
    )  # fmt: skip
    scale: float = bounded(
        0.0, ge=0, lt=1,
        help="Multiplies the deviations of a training sequence from the training mean by one "
        "random number from 1 - scale to 1 + scale.",
    )  # fmt: skip
    time_mask: float = bounded(
        0.0, ge=0, lt=1,
        help="Replaces one stretch of a training sequence by the training mean. Its length is "
        "random, up to this fraction of the steps.",
    )  # fmt: skip


@dataclass
class DataConfig:
    """Holds the options of every data set."""

    name: str = setting(MISSING, help="Names the data set. Choose it with data=NAME.")
    train_size: int | None = bounded(
        None, ge=2,
        help="Number of training sequences that are used: of each class the first ones. null uses "
        "all.",
    )  # fmt: skip
    batch_size: int = bounded(
        128, ge=2, help="Number of sequences in a training batch of each process."
    )
    eval_batch_size: int = bounded(
        1000, ge=2, affects_training=False, help="Number of sequences in an evaluation batch."
    )


@dataclass
class PixelsConfig:
    """Holds the options of all pictures, published and own."""

    permute: bool = setting(
        False, help="Reads the pixels of every image in one fixed random order."
    )
    permute_seed: int | None = bounded(
        0, ge=0, help="Seed of the order of data.permute. null uses the seed of the run."
    )
    augment: AugmentPicturesConfig = nested(AugmentPicturesConfig)


@dataclass
class DigitsConfig(PixelsConfig, DataConfig):
    """Holds the options of the images that come with scikit-learn."""

    pixels_per_step: int = bounded(
        28, ge=1,
        help="Number of pixels that the model reads at each step; it has to divide the number of "
        "an image.",
    )  # fmt: skip


@dataclass
class ImageSetConfig(DigitsConfig):
    """Holds the options of images in files that are downloaded."""

    root: str = setting(
        DATA_ROOT, affects_result=False,
        help="Folder that holds the data set, or into which it is downloaded. ELSTM_DATA sets the "
        "default.",
    )  # fmt: skip


@dataclass
class UserDataConfig(DataConfig):
    """Holds the options of the user's labelled sequences; `source` decides how `path` is read."""

    source: str = setting(MISSING, help="Format of the files. Choose it with data=FORMAT.")
    name: str = setting(DATA_NAME)
    path: str = setting(MISSING, affects_result=False, help="File or folder that holds the data.")
    batch_size: int = bounded(32, ge=2)
    val_fraction: float = bounded(
        0.15, ge=0, lt=1,
        help="Fraction of the sequences outside the test split that validates, if the files have "
        "no validation split. With 0 all of them train, and the last epoch is tested.",
    )  # fmt: skip
    test_fraction: float = bounded(
        0.15, gt=0, lt=1,
        help="Fraction of the sequences that tests, if the files have no test split.",
    )  # fmt: skip
    split_seed: int = bounded(0, ge=0, help="Seed of the random splits.")
    folds: int | None = bounded(
        None, ge=2, le=1000, help="Number of parts for cross-validation; data.fold chooses one."
    )
    fold: int | None = bounded(
        None, ge=0, help="Number of the part that tests in cross-validation, counted from 0."
    )


@dataclass
class SeriesConfig(UserDataConfig):
    """Holds the options of sequences of numbers."""

    standardize: bool = setting(
        True, help="Scales each feature to mean 0 and variance 1 over the training sequences."
    )
    missing: str = choice(
        "error", "error", "zero", "forward",
        help="Treatment of missing values: error refuses them, zero sets them to 0 after the "
        "scaling, forward repeats the value before them, or sets 0 if there is none.",
    )  # fmt: skip
    bucket: bool = setting(
        False, help="Puts sequences of similar length into a batch, which saves computation."
    )
    augment: AugmentSeriesConfig = nested(AugmentSeriesConfig)


@dataclass
class GroupedConfig(SeriesConfig):
    """Holds the options of sequences that may belong to groups."""

    group: str | None = setting(
        None,
        help="Column, or array of an .npz file, that holds the group of each sequence, such as a "
        "person or a device. Splits and folds are drawn without cutting a group.",
    )


@dataclass
class ArraysConfig(GroupedConfig):
    source: str = setting("arrays")
    layout: str = choice(
        "ntc", "ntc", "nct", "nt",
        help="Axes of X in the file: n for sequences, t for steps, c for features.",
    )  # fmt: skip


@dataclass
class TableConfig(GroupedConfig):
    source: str = setting("table")
    id: str = setting(MISSING, help="Column with the id of the sequence that a row belongs to.")
    label: str = setting(MISSING, help="Column that holds the class of the sequence.")
    time: str | None = setting(
        None, help="Column by which the steps are sorted. null keeps the order of the file."
    )
    features: str | None = setting(
        None, help='Columns that are features, as "a,b". null uses all other columns.'
    )
    separator: str = setting(",", help=r"Character between the cells of a CSV file; \t is a tab.")
    decimal: str = choice(
        ".", ".", ",", help="Sign before the decimals of numbers in a CSV file, a point or a comma."
    )


@dataclass
class TsConfig(SeriesConfig):
    source: str = setting("ts")


@dataclass
class ImagesConfig(PixelsConfig, UserDataConfig):
    source: str = setting("images")
    channels: int = choice(1, 1, 3, help="1 reads pictures as shades of grey, 3 as colours.")
    image_size: int | str | None = setting(
        None,
        help="Size of all pictures after scaling: 28, or 28x32 for rows and columns. null requires "
        "that all pictures have one size.",
    )
    pixels_per_step: int | None = bounded(
        None, ge=1,
        help="Number of pixels that the model reads at each step. null reads one row of a picture.",
    )  # fmt: skip


# The options of each source of user data; sources that are not listed use SeriesConfig.
USER_DATA: dict[str, type[UserDataConfig]] = {
    "arrays": ArraysConfig,
    "table": TableConfig,
    "ts": TsConfig,
    "images": ImagesConfig,
}
