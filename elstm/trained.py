"""A trained model out of its run folder, for evaluation and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elstm import checkpoint
from elstm.config import Config, load_run_config
from elstm.data import ImageSequences
from elstm.errors import UserError
from elstm.models import SequenceClassifier, build_model


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
        if not path.exists():
            raise UserError(
                f"{run_dir} has no {which} checkpoint: it appears after the first epoch"
            )
    else:
        path = Path(which)
    content = checkpoint.load(path)
    try:
        facts = content["data"]
        model = build_model(
            config.model,
            input_size=facts["pixels_per_step"],
            num_steps=facts["pixels"] // facts["pixels_per_step"],
            num_classes=len(facts["class_names"]),
        )
        model.load_state_dict(content["model"])
        step, epoch = content["state"]["step"], content["state"]["epoch"]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} does not fit the config of {run_dir}: {reason}") from error
    return Trained(config, path, model.eval(), facts, step, epoch)


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
    }


def check_same_data(facts: dict[str, Any], data: ImageSequences) -> None:
    """Raises UserError where `data` are not what a checkpoint's model was trained on."""
    here = data_facts(data)
    for name, value in here.items():
        saved = facts[name]
        if isinstance(value, torch.Tensor) and isinstance(saved, torch.Tensor):
            same = torch.equal(value, saved)
        else:
            same = value == saved
        if not same:
            raise UserError(
                f"the data are not those that the run was trained on ({name} differs): "
                "give the same files as data.root"
            )
