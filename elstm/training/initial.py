"""Loads the initial weights of a new run from another run's checkpoint (trainer.init_from)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from elstm.config.check import model_from
from elstm.config.schema import Config
from elstm.errors import UserError, show
from elstm.models import SequenceClassifier, equations
from elstm.nn.norm import STATISTICS
from elstm.records.source import checksum, source_checkpoint
from elstm.training import checkpoint
from elstm.training.content import MAX_STEPS, check_weights, integer, mapping
from elstm.training.ema import EMA, RAW, chosen_weights
from elstm.training.trained import NOT_TRAINED, OWN_DATA_LIMIT, size_of

HEAD = "head."
SPLITS = ("split_seed", "val_fraction", "test_fraction", "folds", "fold", "group")  # of user data
SETTING = (str, int, float, type(None))  # of the values of settings

log = logging.getLogger(__name__)


def take_weights(
    config: Config, model: SequenceClassifier, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Loads the weights that trainer.init_from names into a new model.

    Population statistics of other steps than the model's are cut, or their last row is repeated.

    Args:
        facts: those of the data of the new run (elstm.data.sequences.SequenceData.facts).

    Returns:
        The record of it in status.json and checkpoints: path, step, sha256, head, weights ("ema" or
        "raw").

    Raises:
        UserError: there is no such checkpoint, it is damaged, or it is of another model. The model
            is then as it was.
    """
    given = str(config.trainer.init_from)
    path = source_checkpoint(given)
    digest = checksum(path)
    content = checkpoint.load(path, size_of(model, OWN_DATA_LIMIT))
    if checksum(path) != digest:
        raise UserError(f"{show(str(path))} was replaced while it was read: start again")
    head = config.trainer.init_head
    try:
        state = mapping("state", content.get("state"))
        step = integer("its step", state.get("step"), 0, MAX_STEPS)
        chosen, kind, note = chosen_weights(content)
        weights = _checked(content, chosen, config, model, head)
    except ValueError as error:
        raise UserError(f"trainer.init_from={show(given)}: {error}") from error
    _log(weights, model, path, step, kind)
    _warn_of_other_splits(content, config, facts)
    if head:
        _warn_of_other_classes(content, facts)
    if note is not None:
        log.info("the raw weights are used: %s", note)
    with warnings.catch_warnings():  # `_log` has logged it
        warnings.simplefilter("ignore", UserWarning)
        model.load_state_dict(weights, strict=head)
    return {"path": str(path), "step": step, "sha256": digest, "head": head, "weights": kind}


def _checked(
    content: Mapping[str, Any],
    chosen: Any,
    config: Config,
    model: SequenceClassifier,
    head: bool,
) -> dict[str, Tensor]:
    """Returns the weights to load; raises ValueError where they belong to another model."""
    if content.get("settings") is None:
        raise ValueError(
            "it was written by an early version, which did not record the model's settings; use "
            "a checkpoint of a newer run"
        )
    _check_same_equations(mapping("settings", content["settings"]), config)
    given = mapping("model", chosen)
    expected = model.state_dict()
    if not head:
        given = {k: v for k, v in given.items() if not str(k).startswith(HEAD)}
        expected = {k: v for k, v in expected.items() if not k.startswith(HEAD)}
    else:
        _check_head(given, expected)
    for name, part in expected.items():
        prefix, _, last = name.rpartition(".")
        counts = given.get(f"{prefix}.{STATISTICS[-1]}")
        if last in STATISTICS and isinstance(counts, Tensor) and counts.dim() and len(counts):
            expected[name] = torch.empty(
                (len(counts), *part.shape[1:]), dtype=part.dtype, device="meta"
            )
    check_weights(given, expected)
    return given


def _check_same_equations(saved: Mapping[Any, Any], config: Config) -> None:
    """Raises ValueError where the weights belong to other equations, whose shapes may be the same.

    Two names in the table of models may stand for the same equations. Another eps changes the
    results, but not the meaning of the weights. So a run may start from it, and this is logged.
    """
    given = {key: value for key, value in saved.items() if str(key).startswith("model.")}
    if not all(isinstance(part, SETTING) for item in given.items() for part in item):
        raise ValueError("its model's settings are damaged")
    own = config.model
    try:
        model = model_from({key: value for key, value in given.items() if key not in NOT_TRAINED})
    except UserError as error:
        raise ValueError(f"its model's settings cannot be used: {error}") from error
    there, eps_there = equations(model.name, model.options())
    here, eps_here = equations(own.name, own.options())
    for key in dict.fromkeys((*there, *here)):
        if there.get(key) == here.get(key):
            continue
        if model.name == own.name:
            was, wants = f"model.{key}={show(there[key])}", show(here[key])
        else:
            was = f"model.name={model.name}, whose {key} is {show(there.get(key, 'none'))}"
            wants = f"{show(here.get(key, 'none'))} as that of {own.name}"
        raise ValueError(f"it was trained with {was}, not {wants}")
    changed = [norm for norm, eps in eps_here.items() if eps_there.get(norm, eps) != eps]
    if changed:
        log.warning(
            "the initial weights were trained with another eps: %s; model.eps sets it",
            ", ".join(f"{norm} {eps_there[norm]:g}, here {eps_here[norm]:g}" for norm in changed),
        )


def _check_head(given: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    bias = given.get(f"{HEAD}bias")
    classes = len(expected[f"{HEAD}bias"])
    if isinstance(bias, Tensor) and bias.dim() and len(bias) != classes:
        raise ValueError(
            f"its head has {len(bias)} classes and the data set {classes}: "
            "trainer.init_head=false starts with a new head"
        )


def _log(
    weights: Mapping[str, Tensor], model: SequenceClassifier, path: Any, step: int, kind: str
) -> None:
    """Logs which weights are loaded."""
    head = f"{HEAD}bias" in weights
    log.info(
        "initial weights: %s, step %d%s%s",
        path, step, ", averaged" if kind == EMA else "", "" if head else "; the head is new",
    )  # fmt: skip
    own = model.state_dict()
    for rows, steps in {
        (len(values), len(own[name]))
        for name, values in weights.items()
        if name.endswith(STATISTICS[-1]) and len(values) != len(own[name])
    }:
        how = "cut" if rows > steps else "extended by those of the last step"
        log.info("the statistics of %d steps are %s, to %d steps", rows, how, steps)


def _warn_of_other_splits(
    content: Mapping[str, Any], config: Config, facts: Mapping[str, Any]
) -> None:
    """Logs a warning where the weights were trained on sequences that validate or test here."""
    there, settings = content.get("data"), content["settings"]
    fingerprint = facts.get("fingerprint")
    if not fingerprint or not isinstance(there, dict) or there.get("fingerprint") != fingerprint:
        return
    here = {f"data.{name}": getattr(config.data, name, None) for name in SPLITS}
    other = [key for key, value in here.items() if settings.get(key) != value]
    if other:
        log.warning(
            "the initial weights were trained on other splits of the same data (%s): sequences "
            "that validate and test here trained them, so that accuracy is too good",
            ", ".join(f"{key}={show(settings.get(key))}, here {show(here[key])}" for key in other),
        )


def _warn_of_other_classes(content: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Logs a warning where each output of the head stands for another class here."""
    data, here = content.get("data"), facts.get("class_names")
    there = data.get("class_names") if isinstance(data, dict) else None
    if there is not None and there != here:
        log.warning(
            "the head of the initial weights was trained on the classes %s, and the data set has "
            "%s: trainer.init_head=false starts with a new head",
            show(str(there)), show(str(here)),
        )  # fmt: skip


def checked_record(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a checkpoint's record of its run's initial weights.

    Raises:
        ValueError: it is not as `take_weights` returns it.
    """
    record = saved.get("init_from")
    if record is None:
        return None
    kinds = {"path": str, "sha256": str, "head": bool, "weights": str}
    mapping("record of its initial weights", record)
    record = {"weights": RAW, **record}  # earlier versions had no others
    mapping("record of its initial weights", record, {*kinds, "step"})
    integer("the step of its initial weights", record["step"], 0, MAX_STEPS)
    if any(type(record[name]) is not kind for name, kind in kinds.items()):
        raise ValueError("its record of initial weights is damaged")
    return dict(record)
