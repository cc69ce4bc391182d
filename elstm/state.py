"""Where a run is: counters, clocks and sums; with model and optimizer, a whole checkpoint."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from elstm import runtime
from elstm.data import ImageSequences
from elstm.errors import UserError
from elstm.optim import Schedule
from elstm.trained import check_same_data, data_facts


@dataclass
class State:
    """Counters and results; with weights, optimizer and random states all that a resume needs."""

    epoch: int = 0  # epochs completed, their evaluation included
    batch: int = 0  # batches taken of the next one, by all processes together
    step: int = 0  # optimizer steps done
    evaluated_step: int = -1  # `step` at the latest evaluation
    best_val_accuracy: float = -1.0
    best_epoch: float = 0.0
    waited: int = 0  # evaluations since the best one
    train_loss: float = math.nan  # of the latest log point
    train_seconds: float = 0.0  # training alone
    wall_seconds: float = 0.0  # with evaluations and checkpoints


class Clock:
    """Adds the time that passes to wall_seconds and, while `training`, to train_seconds."""

    def __init__(self, state: State) -> None:
        self.state, self.training, self.mark = state, False, time.perf_counter()

    def look(self) -> None:
        now = time.perf_counter()
        self.state.wall_seconds += now - self.mark
        if self.training:
            self.state.train_seconds += now - self.mark
        self.mark = now

    def switch(self, *, training: bool) -> None:
        """What follows is training, or is not."""
        self.look()
        self.training = training


class Window:
    """Sums over the steps since the last log point, kept on the device.

    Reading them is the loop's only synchronisation. A sum that has become NaN or infinite stays so,
    and `bad` counts the steps since: so the first bad step is known without looking at each.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=dtype, device=device)  # loss, correct, gradient norm
        self.bad = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = self.samples = 0
        self.began = 0.0  # train_seconds at the last log point

    def add(self, loss: Tensor, correct: Tensor, grad_norm: Tensor, samples: int) -> None:
        """One step: mean loss, number of correct predictions, norm of the whole gradient."""
        self.sums += torch.stack((loss, correct, grad_norm))
        self.bad += ~self.sums.isfinite().all()
        self.steps += 1
        self.samples += samples

    def first_bad_step(self, step: int) -> int | None:
        """Where `step` is the latest; None if all were finite."""
        bad = int(self.bad)
        return step - bad + 1 if bad else None

    def means(self, sums: Tensor, processes: int, train_seconds: float) -> dict[str, float]:
        """As columns of metrics.csv, from `self.sums` summed over so many processes."""
        loss, correct, grad_norm = sums.tolist()
        steps, samples = self.steps * processes, self.samples * processes
        return {
            "train_loss": loss / steps,
            "train_accuracy": correct / samples,
            "grad_norm": grad_norm / steps,
            "samples_per_second": samples / max(train_seconds - self.began, 1e-9),
        }

    def clear(self, train_seconds: float) -> None:
        self.sums.zero_()
        self.bad.zero_()
        self.steps = self.samples = 0
        self.began = train_seconds

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["sums"])
        self.bad.copy_(state["bad"])
        self.steps, self.samples = int(state["steps"]), int(state["samples"])
        self.began = float(state["began"])


@dataclass
class Snapshot:
    """Everything that the steps to come depend on.

    Of several processes the first one's random states are saved, and given back to it alone.
    """

    state: State
    window: Window
    model: nn.Module
    optimizer: Any  # as Accelerate wraps it
    schedule: Schedule
    data: ImageSequences
    accelerator: Accelerator

    @property
    def scaler(self) -> Any:
        """Of the gradients in fp16, else None."""
        return self.accelerator.scaler

    def first_bad_step(self) -> int | None:
        """At which the loss or its gradient was not finite; None while all is, weights included."""
        step = self.window.first_bad_step(self.state.step)
        finite = [values.isfinite().all() for values in self.model.state_dict().values()]
        return self.state.step if step is None and not torch.stack(finite).all() else step

    def content(self, file_sizes: dict[str, int]) -> dict[str, Any]:
        """Of a checkpoint; `file_sizes` are those of the run's records."""
        return {
            "state": asdict(self.state),
            "window": self.window.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "random": runtime.random_states(self.accelerator.device),
            "data": data_facts(self.data),
            "files": file_sizes,
        }

    def restore(self, content: dict[str, Any]) -> dict[str, int]:
        """The inverse: goes back to a checkpoint and returns its file sizes.

        Raises:
            UserError: it is of another model, data set or version.
        """
        check_same_data(content["data"], self.data)
        try:
            vars(self.state).update(asdict(State(**content["state"])))
            self.window.load_state_dict(content["window"])
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            if self.scaler is not None and content["scaler"] is not None:
                self.scaler.load_state_dict(content["scaler"])
            if self.accelerator.is_main_process:
                runtime.set_random_states(content["random"], self.accelerator.device)
            return {name: int(size) for name, size in content["files"].items()}
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"the checkpoint does not fit the run's config or this version of elstm: {reason}"
            ) from error
