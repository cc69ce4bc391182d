"""Loads a trained model from its run folder, for evaluation and prediction."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elstm.config.changes import may_extend
from elstm.config.fields import leaf_values
from elstm.config.run_config import load_run_config
from elstm.config.schema import Config, data_with_seed, settings_outside_training
from elstm.errors import UserError, show
from elstm.files.atomic import refuse_links
from elstm.models import SequenceClassifier, build_model
from elstm.training import checkpoint
from elstm.training.content import check_weights, describe, integer, mapping, same
from elstm.training.data_facts import check_facts, expected_facts, model_sizes
from elstm.training.ema import EMA, RAW, check_ema, chosen_weights

OWN_DATA_LIMIT = 2**31  # bytes of a checkpoint beside those that the model's layers need


@dataclass(frozen=True)
class TrainedModel:
    """Holds a trained model in eval mode on the CPU, with its config and facts about its data.

    Attributes:
        facts: see elstm.data.sequences.SequenceData.facts.
        step: number of optimizer steps that trained it.
        epoch: number of epochs that trained it.
        weights: "ema" if they are an average over the steps (elstm.training.ema), else "raw".
        note: why the raw weights were used instead of the averaged ones.
    """

    config: Config
    path: Path
    model: SequenceClassifier
    facts: dict[str, Any]
    step: int
    epoch: int
    weights: str = RAW
    note: str | None = None

    @property
    def weights_text(self) -> str | None:
        """Describes the weights; None for those of a run without averaged ones."""
        decay = self.config.trainer.ema_decay
        if decay is None:
            return None
        if self.weights == EMA:
            return f"averaged (trainer.ema_decay={decay:g})"
        return "raw" if self.note is None else f"raw: {self.note}"


def load_trained(run_dir: Path, which: str = "best", weights: str | None = None) -> TrainedModel:
    """Loads the model of a checkpoint.

    Args:
        run_dir: the run's folder; its config is read from there.
        which: best, last, or the path of a checkpoint of this run.
        weights: "ema" or "raw"; None uses the averaged weights if the run has them.

    Raises:
        UserError: there is no run folder or no checkpoint, or it is damaged or of another model.
    """
    if not run_dir.exists():
        raise UserError(f"there is no run folder {run_dir}")
    config = load_run_config(run_dir)
    if which in ("best", "last"):
        path = run_dir / "checkpoints" / f"{which}.pt"
        refuse_links(path.parent, path)
        if not path.exists():
            raise UserError(
                f"{run_dir} has no {which} checkpoint yet: the first evaluation writes it"
            )
    else:
        path = Path(which)
    try:
        content = checkpoint.load(path, size_limit(config))
    except checkpoint.Unreadable as error:
        raise UserError(f"{error}{_instead(run_dir, which)}") from error
    try:
        check_fits(content, config)
    except ValueError as error:
        raise UserError(f"{path} does not fit the config of {run_dir}: {error}") from error
    try:
        chosen, kind, note = chosen_weights(content, weights)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    model = _build(config, content["data"])
    model.load_state_dict(chosen)
    facts, state = content["data"], content["state"]
    return TrainedModel(
        config, path, model.eval(), facts, state["step"], state["epoch"], kind, note
    )


def _instead(run_dir: Path, which: str) -> str:
    """Returns advice for a damaged checkpoint."""
    other = {"best": "last", "last": "best"}.get(which)
    if other is None:
        return ""
    repair = shlex.quote(f"trainer.resume={run_dir}")
    advice = (
        " that of the last epoch"
        if other == "last"
        else f" that of the best epoch; elstm-train {repair} repairs the run"
    )
    return f": --checkpoint {other} takes" + advice


def _build(config: Config, facts: dict[str, Any]) -> SequenceClassifier:
    return build_model(
        config.model.name,
        config.model.options(),
        **model_sizes(facts),
    )


def check_fits(content: dict[str, Any], config: Config) -> None:
    """Raises ValueError unless a checkpoint fits the config's model and data set.

    The check runs before the model is built, so a model never takes more memory than the tensors.
    """
    for name in ("data", "model", "state"):
        mapping(name, content.get(name))
    facts = content["data"]
    check_facts(facts, data_with_seed(config))
    for name in ("step", "epoch", "batch"):
        integer(f"its {name}", content["state"].get(name), 0, 2**53)
    check_computing(content, config)
    with torch.device("meta"):  # takes no memory, whatever the config says
        model = _build(config, facts).state_dict()
    check_weights(content["model"], model)
    check_ema(content, config, model)


NOT_TRAINED = settings_outside_training()
INITIAL = ("trainer.init_from", "trainer.init_head")  # a checkpoint has the source's checksum
# Settings that affect the weights, but not their function. gamma_c does, as eps depends on it.
MADE_BY = ("dropout", "recurrent_init", "state_noise", "momentum", "gamma_ih", "gamma_hh",
           "forget_bias", "input_bias", "update_bias")  # fmt: skip


def settings(config: Config) -> dict[str, Any]:
    """Returns the flat settings of model, data and training from which a checkpoint results."""
    flat: dict[str, Any] = {"seed": config.seed}
    for group in ("model", "data", "optimizer", "scheduler"):
        for name, value in leaf_values(getattr(config, group)).items():
            flat[f"{group}.{name}"] = value
    for name, value in leaf_values(config.trainer).items():
        if not may_extend(f"trainer.{name}") and f"trainer.{name}" not in INITIAL:
            flat[f"trainer.{name}"] = value
    return {key: value for key, value in flat.items() if key not in NOT_TRAINED}


def check_computing(content: dict[str, Any], config: Config) -> None:
    """Raises ValueError where the weights would compute another function than in training.

    Shapes do not show it, because they are the same with another `eps` or `cell_norm`. Checkpoints
    of the first versions hold no settings.
    """
    computing = {
        key: value
        for key, value in settings(config).items()
        if key.startswith("model.") and key.partition(".")[2] not in MADE_BY
    }
    _compare_settings(content, computing)


def check_same_settings(content: dict[str, Any], config: Config) -> None:
    """Raises ValueError if a checkpoint was trained with other settings than `config` has."""
    _compare_settings(content, settings(config))


def _compare_settings(content: dict[str, Any], expected: dict[str, Any]) -> None:
    saved = content.get("settings")
    if saved is None:
        return
    for key, value in mapping("settings", saved).items():
        if key in expected and not same(value, expected[key]):
            raise ValueError(
                f"it was trained with {key}={describe(value)}, not {show(expected[key])}"
            )


def size_limit(config: Config) -> int:
    """Returns the largest size in bytes of a checkpoint of this config; no more is read."""
    facts = expected_facts(config.data)
    # Of user data only the files determine the number of features, steps and classes.
    sizes = {"input_size": 1, "num_steps": 1, "num_classes": 2}
    with torch.device("meta"):
        model = build_model(
            config.model.name,
            config.model.options(),
            **(sizes if facts is None else model_sizes(facts)),
        )
    return size_of(model, 2**26 if facts is not None else OWN_DATA_LIMIT)


def size_of(model: SequenceClassifier, more: int) -> int:
    """Returns the largest size in bytes of a checkpoint of this model.

    Args:
        more: bytes for what its weights do not determine, such as random states and names.
    """
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return 8 * weights + more  # averaged weights; optimizers hold up to three more of each
