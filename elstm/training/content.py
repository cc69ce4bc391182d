"""Checks the content of a checkpoint before torch uses any of it.

A checkpoint may be crafted, and its seal proves only that the file is complete. Fused optimizers
write to the memory that a state tensor claims to have, generators load states byte by byte, and
counters decide which batch comes next. So every value is compared with those that this run would
have written itself. Each check raises ValueError with one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elstm.config.schema import PlateauConfig
from elstm.errors import show
from elstm.training import device as runtime
from elstm.training.optim import Schedule

MAX_SECONDS = 1e12
MAX_PROCESSES = 100_000
MAX_STEPS = 2**48  # independent of max_epochs, which may have been lowered since
MAX_BYTES = 2**53  # of a record file
# Settings that the optimizers of torch choose by the device. The run's values are used.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")  # their roots are taken
SCHEDULE_KEYS, RANDOM_KEYS = {"factor", "best", "waited"}, {"cpu", "cuda", "mps"}
GROWTH_TRACKER = "_growth_tracker"


@dataclass(frozen=True)
class Bounds:
    """Holds the largest values that the counters of a run can have.

    Attributes:
        steps_per_epoch: training steps of an epoch.
        batch_size: the number of sequences of a step, of all processes together.
        processes: number of processes that wrote the checkpoint.
        extensions: the run's extensions; each may have started within an epoch, after an
            evaluation.
    """

    steps_per_epoch: int
    batch_size: int
    processes: int
    extensions: int = 0


def describe(value: Any) -> str:
    """Describes a value for a message, a tensor by shape and type."""
    if not isinstance(value, Tensor):
        return show(value)
    return f"of {' x '.join(map(str, value.shape)) or 'one'} {str(value.dtype)[6:]}"


def integer(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {describe(value)}, not an integer from {least} to {most}")
    return value


def number(name: str, value: Any, least: float, most: float, *others: float) -> float:
    """Checks that a value is a float in the range, or one of `others` (NaN is possible)."""
    given = type(value) is float and (
        least <= value <= most or any(value == o or (value != value and o != o) for o in others)
    )
    if not given:
        raise ValueError(f"{name} is {describe(value)}, not a number from {least:g} to {most:g}")
    return float(value)


def mapping(name: str, value: Any, keys: set[str] | None = None) -> dict[Any, Any]:
    """Checks that a value is a dictionary, with exactly `keys` if they are given."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds no {name}")
    if keys is not None and value.keys() != keys:
        odd = sorted(map(show, value.keys() ^ keys))
        raise ValueError(f"its {name} lacks or adds {', '.join(odd[:3])}")
    return value


def tensor(name: str, value: Any, like: Tensor, least: float = -math.inf) -> Tensor:
    """Checks that a tensor has shape and type of `like`, and finite values from `least` up."""
    if not isinstance(value, Tensor) or (value.shape, value.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{name} is {describe(value)}, not {describe(like)}")
    if not value.isfinite().all():
        raise ValueError(f"{name} is not finite")
    if (value < least).any():
        raise ValueError(f"{name} has values below {least:g}")
    return value


def check_weights(given: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Checks the state_dict of a model. `expected` may be on the meta device."""
    for name in [*expected, *given]:
        here, there = expected.get(name), given.get(name)
        if here is None or not isinstance(there, Tensor) or describe(here) != describe(there):
            has, wants = (
                describe(v) if isinstance(v, Tensor) else "not at all" for v in (there, here)
            )
            raise ValueError(f"its model has {show(name)} {has}, the config's {wants}")
        counts = name.endswith(("running_var", "num_batches_tracked"))
        tensor(f"its model's {name}", there, here, 0 if counts else -math.inf)


def check_counters(state: Mapping[str, Any], names: Sequence[str], bounds: Bounds) -> None:
    """Checks the counters and results of a run."""
    mapping("state", state, set(names))
    spe, processes = bounds.steps_per_epoch, bounds.processes
    step = integer("its step", state["step"], 0, MAX_STEPS)
    epoch = integer("its epoch", state["epoch"], 0, MAX_STEPS)
    batch = integer("its batch", state["batch"], 0, spe * processes)
    if step != epoch * spe + batch // processes or batch % processes:
        raise ValueError(f"its step {step} is not that of epoch {epoch} and batch {batch}")
    integer("its evaluated_step", state["evaluated_step"], -1, step)
    integer("its waited", state["waited"], 0, epoch + 1 + bounds.extensions)
    number("its best_val_accuracy", state["best_val_accuracy"], 0, 1, -1.0)
    number("its best_epoch", state["best_epoch"], 0, epoch + 1)
    number("its train_loss", state["train_loss"], -math.inf, math.inf, math.nan)
    for name in ("train_seconds", "wall_seconds"):
        number(f"its {name}", state[name], 0, MAX_SECONDS)


def check_sums(window: Any, state: Mapping[str, Any], bounds: Bounds) -> None:
    """Checks the sums since the last log point. `restore` drops norms that do not fit."""
    sums = mapping("window", window).get("sums")
    like = torch.empty(3, dtype=torch.float32 if _is(sums, torch.float32) else torch.float64)
    tensor("its sums", sums, like, 0)
    bad = tensor("its bad steps", window.get("bad"), torch.empty((), dtype=torch.int64), 0)
    integer("its bad steps", int(bad), 0, 0)
    steps = integer("its summed steps", window.get("steps"), 0, state["step"])
    samples = steps * (bounds.batch_size // bounds.processes)
    integer("its summed samples", window.get("samples"), samples, samples)
    number("its beginning of the sums", window.get("began"), 0, state["train_seconds"])


def _is(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype


def check_optimizer(
    saved: Any, optimizer: torch.optim.Optimizer, step: int, *, scaled: bool
) -> dict[str, Any]:
    """Returns an optimizer's checked state as unshared copies, with the settings of `optimizer`.

    Args:
        saved: the state dict in the checkpoint.
        optimizer: the optimizer built from the run's config.
        step: the number of training steps done.
        scaled: whether a gradient scaler may have skipped some of them.
    """
    mapping("optimizer", saved, {"state", "param_groups"})
    own = optimizer.state_dict()
    _check_settings(saved["param_groups"], own["param_groups"])
    expected = _state_after_a_step(optimizer)
    states = mapping("optimizer's state", saved["state"])
    least = 0 if scaled else min(step, 1)
    if states.keys() != expected.keys() and (states or least):
        raise ValueError(f"its optimizer has states of {len(states)} of {len(expected)} parameters")
    copies: dict[int, dict[str, Any]] = {}
    for index, entry in states.items():
        like = expected[index]
        mapping(f"optimizer's state of parameter {index}", entry, set(like))
        copies[index] = {}
        for key, value in entry.items():
            name = f"its optimizer's {key} of parameter {index}"
            if not isinstance(like[key], Tensor):
                if value is not None or like[key] is not None:
                    raise ValueError(f"{name} is {describe(value)}, not {describe(like[key])}")
                copies[index][key] = None
                continue
            tensor(name, value, like[key], 0 if key in SQUARES else -math.inf)
            if key == "step" and float(value) not in range(max(least, 1), step + 1):
                raise ValueError(f"{name} is {float(value):g}, not from 1 to {step}")
            copies[index][key] = value.clone(memory_format=torch.contiguous_format)
    return {"state": copies, "param_groups": own["param_groups"]}


def _check_settings(saved: Any, own: list[dict[str, Any]]) -> None:
    if not isinstance(saved, list) or len(saved) != len(own):
        raise ValueError("its optimizer has other groups of parameters")
    for group, expected in zip(saved, own, strict=True):
        mapping("optimizer's settings", group)
        for key, value in expected.items():
            given = group.get(key, value)  # torch adds settings from version to version
            if key == "lr":
                number("its optimizer's lr", given, 0, 1e38)
            elif key in IMPLEMENTATION:
                if given is not None and type(given) is not bool:
                    raise ValueError(f"its optimizer's {key} is {describe(given)}")
            elif not same(given, value):
                raise ValueError(f"its optimizer's {key} is {describe(given)}, not {show(value)}")


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Returns the state that torch's optimizer has after a step on copies."""
    groups = []
    for group in optimizer.param_groups:
        copies = [torch.zeros_like(p, device="cpu", requires_grad=True) for p in group["params"]]
        for copy in copies:
            copy.grad = torch.zeros_like(copy)
        groups.append({**group, "params": copies})
    kind: Any = type(optimizer)
    twin = kind(groups)
    twin.step()
    state: dict[int, dict[str, Any]] = twin.state_dict()["state"]
    return state


def same(given: Any, expected: Any) -> bool:
    """Returns whether two values are equal and of equal types. Tensors never are."""
    if isinstance(expected, list | tuple):
        return (
            isinstance(given, list | tuple)
            and len(given) == len(expected)
            and all(map(same, given, expected))
        )
    return type(given) is type(expected) and not isinstance(given, Tensor) and given == expected


def check_schedule(saved: Any, schedule: Schedule) -> None:
    mapping("schedule", saved, SCHEDULE_KEYS)
    plateau = isinstance(schedule.config, PlateauConfig)
    number("its schedule's factor", saved["factor"], math.ulp(0) if plateau else 1, 1)
    number("its schedule's best", saved["best"], 0, 1 if plateau else -1, -math.inf)
    most = schedule.config.patience if isinstance(schedule.config, PlateauConfig) else 0
    integer("its schedule's waited", saved["waited"], 0, most)


def check_scaler(saved: Any, scaler: Any) -> None:
    """Checks the gradient scaler of fp16; a run without one does not read it."""
    if scaler is None:
        return
    own = scaler.state_dict()
    mapping("gradient scaler", saved, set(own))
    number("its gradient scaler's scale", saved["scale"], 2.0**-126, 2.0**127)
    integer("its gradient scaler's tracker", saved[GROWTH_TRACKER], 0, own["growth_interval"])
    for key in own.keys() - {"scale", GROWTH_TRACKER}:
        if not same(saved[key], own[key]):
            raise ValueError(f"its gradient scaler's {key} is {describe(saved[key])}")


def check_random(states: Any, device: torch.device) -> None:
    """Checks the states of the generators of devices that this process uses."""
    mapping("random states", states)
    if not states.keys() <= RANDOM_KEYS or "cpu" not in states:
        raise ValueError("its random states are not those of cpu, cuda or mps")
    for name, own in runtime.random_states(device).items():
        if name not in states:
            continue  # of another device, whose generator gets a new state
        tensor(f"its random state of {name}", states[name], own)
        try:
            torch.Generator(device if name == device.type else "cpu").set_state(states[name])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"its random state of {name} is none") from error


def check_sizes(files: Any) -> None:
    """Checks the sizes and fingerprints of the record files."""
    for name, value in mapping("sizes of the records", files).items():
        if str(name).endswith("_sha256"):
            if not isinstance(value, str) or len(value) != 64:
                raise ValueError(f"its {show(name)} is {describe(value)}")
        else:
            integer(f"its size of {show(name)}", value, 0, MAX_BYTES)
