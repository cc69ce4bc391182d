"""Where a run is: counters, clocks and sums; with model and optimizer, a whole checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from elstm.data.sequences import ImageSequences
from elstm.errors import UserError
from elstm.training import device as runtime
from elstm.training import nonfinite
from elstm.training.optim import Schedule
from elstm.training.trained import check_same_data, data_facts

REMOVED_COUNTERS = ("skipped_steps",)  # in checkpoints up to commit d8d01eb


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
    and `bad` counts the steps since the first that was not finite, whose norms are kept: so it is
    known without looking at each. Steps wait to be added until a sum is asked for: many at once
    take a fraction of the time that each takes after a training step, when no cache knows of it.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=dtype, device=device)  # loss, correct, gradient norm
        self.bad = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = self.samples = 0
        self.began = 0.0  # train_seconds at the last log point
        # Loss and norms of each parameter's gradient: of the first bad step, or the latest, and of
        # the step before. (2, 1 + P)
        self.norms: Tensor | None = None
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, correct: Tensor, norms: Tensor, samples: int) -> None:
        """One step: mean loss, number of correct predictions, norms of the gradient, (P,)."""
        self._waiting.append((loss, correct, norms))
        self.steps += 1
        self.samples += samples

    def settle(self) -> None:
        """Adds the steps that wait, one by one: when it is called makes no difference."""
        for loss, correct, norms in self._waiting:
            values = torch.stack((loss, correct, torch.linalg.vector_norm(norms)))
            latest = torch.cat((loss[None], norms))
            if self.norms is None:
                self.norms = torch.stack((latest, torch.zeros_like(latest)))
            else:
                newest = torch.stack((latest, self.norms[0]))
                self.norms = torch.where(self.bad == 0, newest, self.norms)
            self.bad += ~latest.isfinite().all() | (self.bad > 0)
            self.sums += values
        self._waiting.clear()

    def first_bad_step(self, step: int) -> int | None:
        """Where `step` is the latest; None if all were finite."""
        self.settle()
        return None if self.sums.isfinite().all() else step - int(self.bad) + 1

    def culprit(self, names: Sequence[str]) -> str:
        """What was not finite in it; `names` are those of the parameters."""
        assert self.norms is not None
        (loss, *norms), (_, *before) = self.norms.tolist()
        return nonfinite.culprit(names, loss, norms, before)

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
        self.settle()
        return {name: value for name, value in vars(self).items() if name != "_waiting"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._waiting.clear()
        self.sums.copy_(state["sums"])
        self.bad.copy_(state["bad"])
        norms = state.get("norms")
        self.norms = None if norms is None else norms.to(self.bad.device)
        self.steps, self.samples = int(state["steps"]), int(state["samples"])
        self.began = float(state["began"])


@dataclass
class Snapshot:
    """Everything that the steps to come depend on.

    A run may go on with another number of processes: the batch of all together stays, and each
    takes its share of it. The random states go back to the same number of processes; with another,
    all but the first begin anew.
    """

    state: State
    window: Window
    model: nn.Module
    optimizer: Any  # as Accelerate wraps it
    schedule: Schedule
    data: ImageSequences
    accelerator: Accelerator
    sums: Tensor | None = None  # the window's, of all processes; see `gather`
    others: list[Any] = field(default_factory=list)  # random states of the other processes

    @property
    def scaler(self) -> Any:
        """Of the gradients in fp16, else None."""
        return self.accelerator.scaler

    def bad(self) -> tuple[int, str] | None:
        """Step and name of what was not finite; None while all is, weights included."""
        step = self.window.first_bad_step(self.state.step)
        if step is not None:
            return step, self.window.culprit(self.names())
        state = self.model.state_dict()
        finite = torch.stack([values.isfinite().all() for values in state.values()])
        if finite.all():
            return None
        return self.state.step, next(
            n for n, f in zip(state, finite.tolist(), strict=True) if not f
        )

    def names(self) -> list[str]:
        """Of the parameters that the loss depends on."""
        return [name for name, p in self.model.named_parameters() if p.grad is not None]

    def gather(self) -> None:
        """Before `content`, and in all processes: what the others know."""
        if self.accelerator.num_processes > 1:
            random = runtime.random_states(self.accelerator.device)
            self.others = gather_object([random])[1:]
            self.sums = self.accelerator.reduce(self.window.sums.clone())

    def content(self, file_sizes: dict[str, int]) -> dict[str, Any]:
        """Of a checkpoint; `file_sizes` are those of the run's records."""
        return {
            "state": asdict(self.state),
            "window": {
                **self.window.state_dict(),
                "sums": self.window.sums if self.sums is None else self.sums,
            },
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "random": runtime.random_states(self.accelerator.device),
            "random_others": self.others,
            "processes": self.accelerator.num_processes,
            "global_batch_size": self.data.batch_size * self.accelerator.num_processes,
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
            given = {k: v for k, v in content["state"].items() if k not in REMOVED_COUNTERS}
            vars(self.state).update(asdict(State(**given)))
            self.window.load_state_dict(content["window"])
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            if self.scaler is not None and content["scaler"] is not None:
                self.scaler.load_state_dict(content["scaler"])
            processes, rank = self.accelerator.num_processes, self.accelerator.process_index
            before = content.get("processes", processes)
            self.state.batch = self.state.batch // before * processes
            self.window.samples = self.window.samples * before // processes
            self.window.sums *= torch.tensor((processes / before, 1, processes / before)).to(
                self.window.sums
            )
            if rank > 0:
                self.window.sums.zero_()
            if rank == 0:
                runtime.set_random_states(content["random"], self.accelerator.device)
            elif before == processes and content.get("random_others"):
                random = content["random_others"][rank - 1]
                runtime.set_random_states(random, self.accelerator.device)
            return {name: int(size) for name, size in content["files"].items()}
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"the checkpoint does not fit the run's config or this version of elstm: {reason}"
            ) from error
