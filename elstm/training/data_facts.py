"""Checks a checkpoint's facts about its data, which define inputs (`SequenceData.facts`)."""

from __future__ import annotations

import math
from typing import Any

import torch

from elstm.config.data_options import DataConfig, DigitsConfig, ImagesConfig, UserDataConfig
from elstm.data.catalog import DATA_SETS
from elstm.data.image_sets import pixel_order
from elstm.data.sequences import SequenceData
from elstm.errors import UserError, show
from elstm.training.content import describe, integer, number, same

MAX_CLASSES, MAX_FEATURES, MAX_STEPS = 100_000, 1_000_000, 2**31


def model_sizes(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the sizes that a model needs, from facts that were checked."""
    if "num_steps" in facts:
        sizes = {"input_size": facts["input_size"], "num_steps": facts["num_steps"]}
    else:
        per_step = facts["pixels_per_step"]
        sizes = {
            "input_size": per_step * facts.get("channels", 1),
            "num_steps": facts["pixels"] // per_step,
        }
    return sizes | {"num_classes": len(facts["class_names"])}


def expected_facts(data: DataConfig) -> dict[str, Any] | None:
    """Returns the facts of a published set as far as they are known without its files."""
    if not isinstance(data, DigitsConfig):
        return None
    source = DATA_SETS[data.name]
    return {
        "name": data.name,
        "class_names": list(source.class_names),
        "image_size": list(source.image_size),
        "pixels": source.pixels,
        "pixels_per_step": data.pixels_per_step,
        **({"channels": source.channels} if source.channels > 1 else {}),
    }


def check_facts(facts: dict[str, Any], data: DataConfig) -> None:
    """Raises ValueError where a checkpoint's facts do not belong to the config's data set."""
    expected = expected_facts(data) or {"name": data.name}
    for name, value in expected.items():
        if not same(facts.get(name), value):
            raise ValueError(f"its data have {name} {describe(facts.get(name))}, not {show(value)}")
    names = facts.get("class_names")
    if (
        not isinstance(names, list)
        or not 2 <= len(names) <= MAX_CLASSES
        or not all(type(name) is str for name in names)
    ):
        raise ValueError("its data have no names of classes")
    if isinstance(data, UserDataConfig) and type(facts.get("fingerprint")) is not str:
        raise ValueError("its data have no fingerprint")
    if isinstance(data, DigitsConfig | ImagesConfig):
        _check_image_facts(facts, data)
    else:
        _check_series_facts(facts)


def _check_series_facts(facts: dict[str, Any]) -> None:
    features = integer("the number of its features", facts.get("input_size"), 1, MAX_FEATURES)
    integer("the number of its steps", facts.get("num_steps"), 1, MAX_STEPS)
    names = facts.get("features", [])
    if not isinstance(names, list) or len(names) not in (0, features):
        raise ValueError(f"its data have features {describe(names)}, not a name for each")
    if not all(type(name) is str for name in names):
        raise ValueError("its data have features that are no names")
    for name, least in (("mean", -math.inf), ("std", math.ulp(0))):
        values = facts.get(name)
        if not isinstance(values, list) or len(values) != features:
            raise ValueError(f"its data have {name} {describe(values)}, not one for each feature")
        for value in values:
            number(f"the {name} of its data", value, least, math.inf)


def _check_image_facts(facts: dict[str, Any], data: DigitsConfig | ImagesConfig) -> None:
    number("the mean of its data", facts.get("mean"), 0, 1)
    number("the standard deviation of its data", facts.get("std"), math.ulp(0), 1)
    integer("the number of its training images", facts.get("train_images"), 1, 2**53)
    if type(facts.get("stratified", False)) is not bool:
        raise ValueError(f"its data are stratified: {describe(facts['stratified'])}")
    if isinstance(data, ImagesConfig):
        pixels = integer("the number of its pixels", facts.get("pixels"), 1, MAX_STEPS)
        per_step = integer("its pixels_per_step", facts.get("pixels_per_step"), 1, pixels)
        size = facts.get("image_size")
        if not isinstance(size, list) or len(size) != 2 or not same(size[0] * size[1], pixels):
            raise ValueError(f"its data have image_size {describe(size)}")
        if pixels % per_step or not same(facts.get("channels"), data.channels):
            raise ValueError("its data have other channels or pixels_per_step than its pictures")
    order, total = facts.get("permutation"), facts["pixels"]
    if data.permute:
        pixels_order = pixel_order(total, data.permute_seed)
        if not isinstance(order, torch.Tensor) or describe(order) != describe(pixels_order):
            raise ValueError("its data have no order of the pixels")
        if not torch.equal(order, pixels_order):
            raise ValueError(
                f"its pixels are in another order than permute_seed {data.permute_seed}"
            )
    elif order is not None:
        raise ValueError("its data have an order of the pixels")


def is_stratified(facts: dict[str, Any] | None) -> bool:
    """Returns whether the training images of a checkpoint or new run preserve the classes' shares.

    Checkpoints of commit d8d01eb and earlier do not record it, because theirs did not.
    """
    return facts is None or bool(facts.get("stratified"))


def check_same_data(facts: dict[str, Any], data: SequenceData) -> None:
    """Raises UserError where `data` are not those on which a checkpoint's model was trained."""
    here = data.facts()
    place = "data.path" if "fingerprint" in here else "data.root"
    for name, value in here.items():
        if name == "content" and name not in facts:
            continue  # a checkpoint of an earlier version
        saved = facts.get(name, False if name == "stratified" else None)
        if isinstance(value, torch.Tensor):
            equal = isinstance(saved, torch.Tensor) and torch.equal(value, saved)
        else:
            equal = same(saved, value)
        if not equal:
            reason = f"{name} differs"
            if name in ("fingerprint", "content"):
                reason = f"values, labels or splits differ: checksum {value}, not {describe(saved)}"
            raise UserError(
                f"the data are not those that the run was trained on ({reason}): set {place}= to "
                "the same files"
            )
