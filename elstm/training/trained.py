"""A trained model out of its run folder, for evaluation and prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elstm.config.check import load_run_config, show
from elstm.config.schema import Config, DataConfig
from elstm.data.catalog import DATA_SETS
from elstm.data.sequences import ImageSequences
from elstm.errors import UserError
from elstm.files.atomic import refuse_links
from elstm.models import SequenceClassifier, build_model
from elstm.training import checkpoint


@dataclass(frozen=True)
class Trained:
    """A model in eval mode on the CPU, and what it was trained on.

    Attributes:
        facts: see `data_facts`.
        step: optimizer steps behind it.
        epoch: epochs behind it.
    """

    config: Config
    path: Path
    model: SequenceClassifier
    facts: dict[str, Any]
    step: int
    epoch: int


def load_trained(run_dir: Path, which: str = "best") -> Trained:
    """The model of a checkpoint.

    Args:
        run_dir: the run's folder; its config is read from there.
        which: best, last, or the path of a checkpoint of this run.

    Raises:
        UserError: no run folder, no checkpoint, a damaged one, or one of another model.
    """
    if not run_dir.is_dir():
        raise UserError(f"there is no run folder {run_dir}")
    config = load_run_config(run_dir)
    if which in ("best", "last"):
        path = run_dir / "checkpoints" / f"{which}.pt"
        refuse_links(path.parent, path)
        if not path.exists():
            raise UserError(
                f"{run_dir} has no {which} checkpoint: it appears after the first epoch"
            )
    else:
        path = Path(which)
    try:
        content = checkpoint.load(path)
    except checkpoint.Unreadable as error:
        raise UserError(f"{error}{_instead(run_dir, which)}") from error
    try:
        check_fits(content, config)
    except ValueError as error:
        raise UserError(f"{path} does not fit the config of {run_dir}: {error}") from error
    model = _build(config, content["data"])
    model.load_state_dict(content["model"])
    state = content["state"]
    return Trained(config, path, model.eval(), content["data"], state["step"], state["epoch"])


def _instead(run_dir: Path, which: str) -> str:
    """How to do without a damaged checkpoint."""
    other = {"best": "last", "last": "best"}.get(which)
    if other is None:
        return ""
    mend = (
        " that of the last epoch"
        if other == "last"
        else (f" that of the best epoch; elstm-train trainer.resume={run_dir} mends the run")
    )
    return f": --checkpoint {other} takes" + mend


def _build(config: Config, facts: dict[str, Any]) -> SequenceClassifier:
    return build_model(
        config.model.name,
        config.model.options(),
        input_size=facts["pixels_per_step"],
        num_steps=facts["pixels"] // facts["pixels_per_step"],
        num_classes=len(facts["class_names"]),
    )


def check_fits(content: dict[str, Any], config: Config) -> None:
    """Raises ValueError where a checkpoint is not of the config's model and data set.

    Before the model is built: its size is then that of the checkpoint's tensors, which are there.
    """
    for name in ("data", "model", "state"):
        if not isinstance(content.get(name), dict):
            raise ValueError(f"it holds no {name}")
    facts, expected = content["data"], _expected_facts(config.data)
    for name, value in expected.items():
        if facts.get(name) != value:
            raise ValueError(f"its data have {name} {show(facts.get(name))}, not {show(value)}")
    mean, std = facts.get("mean"), facts.get("std")
    if not (_is_number(mean) and _is_number(std) and std > 0):
        raise ValueError(f"its data have mean {show(mean)} and standard deviation {show(std)}")
    order, pixels = facts.get("permutation"), torch.arange(expected["pixels"])
    if config.data.permute:
        if not isinstance(order, torch.Tensor) or not torch.equal(order.sort().values, pixels):
            raise ValueError("its data have no order of the pixels")
    elif order is not None:
        raise ValueError("its data have an order of the pixels")
    for name in ("step", "epoch", "batch"):
        value = content["state"].get(name)
        if type(value) is not int or value < 0:
            raise ValueError(f"its state has {name} {show(value)}")
    with torch.device("meta"):  # takes no memory, whatever the config says
        model = _build(config, facts).state_dict()
    given = content["model"]
    for name in [*model, *given]:
        here, there = _shape(model.get(name)), _shape(given.get(name))
        if here != there:
            raise ValueError(f"its model has {show(name)} {there}, the config's {here}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shape(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return "not at all"
    return f"of {' x '.join(map(str, value.shape)) or 'one'} {str(value.dtype)[6:]}"


def _expected_facts(data: DataConfig) -> dict[str, Any]:
    """What `data_facts` says of a data set, as far as it is known without its files."""
    source = DATA_SETS[data.name]
    class_names, (rows, columns) = source.class_names, source.image_size
    return {
        "name": data.name,
        "class_names": list(class_names),
        "image_size": [rows, columns],
        "pixels": rows * columns,
        "pixels_per_step": data.pixels_per_step,
    }


def data_facts(data: ImageSequences) -> dict[str, Any]:
    """How images become sequences, for a checkpoint: predicting then needs no data set."""
    return {
        "name": data.name,
        "class_names": list(data.class_names),
        "image_size": list(data.image_size),
        "pixels": data.num_steps * data.input_size,
        "pixels_per_step": data.pixels_per_step,
        "mean": data.mean,
        "std": data.std,
        "permutation": None if data.permutation is None else data.permutation.cpu(),
        "train_images": len(data.train),
        "stratified": data.stratified,
    }


def is_stratified(facts: dict[str, Any] | None) -> bool:
    """Whether the training images of a checkpoint, or of a new run, keep the classes' shares.

    Checkpoints of commit d8d01eb and earlier hold nothing about it: they did not.
    """
    return facts is None or bool(facts.get("stratified"))


def check_same_data(facts: dict[str, Any], data: ImageSequences) -> None:
    """Raises UserError where `data` are not what a checkpoint's model was trained on."""
    here = data_facts(data)
    for name, value in here.items():
        saved = facts.get(name, False if name == "stratified" else None)
        if isinstance(value, torch.Tensor) and isinstance(saved, torch.Tensor):
            same = torch.equal(value, saved)
        else:
            same = value == saved
        if not same:
            raise UserError(
                f"the data are not those that the run was trained on ({name} differs): "
                "give the same files as data.root"
            )
