"""Saves and restores all state on which the next training steps depend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from elstm.config.schema import Config
from elstm.errors import UserError
from elstm.records.tracking import Tracker
from elstm.training import checkpoint
from elstm.training import device as runtime
from elstm.training.build import Parts
from elstm.training.content import (
    MAX_PROCESSES,
    Bounds,
    check_counters,
    check_optimizer,
    check_random,
    check_scaler,
    check_schedule,
    check_sizes,
    check_sums,
    integer,
)
from elstm.training.data_facts import check_same_data
from elstm.training.ema import EMA
from elstm.training.extension import Extension
from elstm.training.optim import Schedule, stored_state
from elstm.training.state import REMOVED_COUNTERS, Clock, StepSums, TrainState
from elstm.training.trained import check_same_settings, settings, size_limit


@dataclass
class Snapshot:
    """Collects and restores the content of a checkpoint.

    A run may resume with another number of processes. The full batch stays the same, and each
    process takes its share of it. With the same number every process restores its random state.
    With another one only rank 0 does, and the others start from their seeds.
    """

    config: Config
    parts: Parts
    state: TrainState
    sums: StepSums
    extensions: list[dict[str, Any]] = field(default_factory=list)  # see elstm.training.extension
    init_from: dict[str, Any] | None = None  # see elstm.training.initial
    total_sums: Tensor | None = None  # of all processes; see `gather`
    other_random_states: list[Any] = field(default_factory=list)  # of the other processes

    def bad(self) -> tuple[int, str] | None:
        """Returns step and name of a value that was not finite; None if all were."""
        step = self.sums.first_bad_step(self.state.step)
        if step is not None:
            named = self.parts.model.named_parameters()
            trained = [name for name, p in named if p.grad is not None]
            return step, self.sums.culprit(trained)
        weights = full_state(self.parts.model)
        finite = torch.stack([values.isfinite().all() for values in weights.values()])
        if finite.all():
            return None
        names = zip(weights, finite.tolist(), strict=True)
        return self.state.step, next(name for name, good in names if not good)

    def gather(self) -> None:
        """Collects the states of the other processes; all have to call it before `content`."""
        accelerator = self.parts.accelerator
        if accelerator.num_processes > 1:
            random = runtime.random_states(accelerator.device)
            self.other_random_states = gather_object([random])[1:]
            self.total_sums = self.sums.reduced(accelerator)

    def content(self, file_sizes: dict[str, Any]) -> dict[str, Any]:
        """Returns the content of a checkpoint; `file_sizes` come from `Tracker.sizes`."""
        parts, accelerator = self.parts, self.parts.accelerator
        sums = self.sums.state_dict()
        if self.total_sums is not None:
            sums["sums"] = self.total_sums
        extended = {"extensions": self.extensions} if self.extensions else {}
        source = {"init_from": self.init_from} if self.init_from else {}
        ema: dict[str, Any] = {}
        if parts.ema is not None:
            ema = {EMA: {"decay": parts.ema.decay, "model": full_state(parts.ema.model)}}
        return {
            **extended,
            **source,
            "state": self.state.state_dict(),
            "window": sums,
            "model": full_state(parts.model),
            **ema,
            "optimizer": stored_state(parts.optimizer),
            "schedule": parts.schedule.state_dict(),
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
            "random": runtime.random_states(accelerator.device),
            "random_others": self.other_random_states,
            "processes": accelerator.num_processes,
            "global_batch_size": parts.data.batch_size * accelerator.num_processes,
            "data": parts.data.facts(),
            "settings": settings(self.config),
            "files": file_sizes,
        }

    def restore(self, content: dict[str, Any], own: Config) -> dict[str, Any]:
        """Restores a checkpoint and returns its sizes of the record files.

        Args:
            own: the config with which the checkpoint was trained, which an extension changes.

        Raises:
            UserError: the checkpoint is of another model, data set or version, or holds a value
                that this run cannot have written. Nothing has changed then.
        """
        parts, accelerator = self.parts, self.parts.accelerator
        try:
            optimizer = self._check(content, own)
        except ValueError as error:
            raise UserError(f"the checkpoint does not fit the run's config: {error}") from error
        self.state.load_state_dict(content["state"])
        self.sums.load_state_dict(content["window"], len(list(parts.model.parameters())))
        parts.model.load_state_dict(content["model"])
        if parts.ema is not None:
            parts.ema.model.load_state_dict(content[EMA]["model"])
        parts.optimizer.load_state_dict(optimizer)
        if own.scheduler.name == self.config.scheduler.name:
            parts.schedule.load_state_dict(content["schedule"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(content["scaler"])
        processes, rank = accelerator.num_processes, accelerator.process_index
        before = content.get("processes", processes)
        self.state.batch = self.state.batch // before * processes
        self.sums.samples = self.sums.samples * before // processes
        self.sums.sums *= torch.tensor((processes / before, 1, processes / before)).to(
            self.sums.sums
        )
        if rank > 0:
            self.sums.sums.zero_()
        if rank == 0:
            runtime.set_random_states(content["random"], accelerator.device)
        elif before == processes and content.get("random_others"):
            runtime.set_random_states(content["random_others"][rank - 1], accelerator.device)
        return dict(content["files"])

    def _check(self, content: dict[str, Any], own: Config) -> dict[str, Any]:
        """Checks all values that `restore` uses; returns the state for the optimizer.

        Raises:
            ValueError: this run would not have written such a value.
            UserError: the checkpoint is of another data set.
        """
        parts, accelerator = self.parts, self.parts.accelerator
        check_same_settings(content, own)
        check_same_data(content["data"], parts.data)
        here, limits = accelerator.num_processes, parts.limits
        before = integer("its processes", content.get("processes", here), 1, MAX_PROCESSES)
        batch_size = parts.data.batch_size * here
        total = integer("its batches", content.get("global_batch_size", batch_size), 2, 2**31)
        if total != batch_size or total % self.config.data.batch_size:
            raise ValueError(f"its batches have {total} sequences")
        bounds = Bounds(
            limits.steps_per_epoch, batch_size, before, len(content.get("extensions", []))
        )
        state = {k: v for k, v in content["state"].items() if k not in REMOVED_COUNTERS}
        check_counters(state, list(self.state.state_dict()), bounds)
        check_sums(content.get("window"), state, bounds)
        check_schedule(content.get("schedule"), Schedule(own.scheduler, own.optimizer.lr, 1, 1))
        check_scaler(content.get("scaler"), accelerator.scaler)
        check_random(content.get("random"), accelerator.device)
        others = content.get("random_others", [])
        if not isinstance(others, list) or len(others) not in (0, before - 1):
            raise ValueError(f"it holds no random states of its {before} processes")
        for states in others:
            check_random(states, accelerator.device)
        check_sizes(content.get("files"))
        plain = getattr(parts.optimizer, "optimizer", parts.optimizer)
        scaled = accelerator.scaler is not None
        return check_optimizer(content.get("optimizer"), plain, state["step"], scaled=scaled)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict with all rows of the statistics, which `check_weights` expects.

    The layers of a run have a row for each step of its data, so few rows could be left out.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        state[name] = value.detach()
    return state


@dataclass
class Checkpoints:
    """Writes the checkpoints of a run; all processes call it, and rank 0 writes."""

    run_dir: Path
    snapshot: Snapshot
    clock: Clock
    tracker: Tracker
    extension: Extension | None = None  # until it has begun, with its first checkpoint

    def save(self, *, best: bool = False) -> None:
        """Writes last.pt, and best.pt before it if this is the best epoch.

        All earlier records are flushed to the disk first, because the checkpoint holds the sizes
        and fingerprints of the record files.

        Raises:
            UserError: a value is not finite, or a file cannot be written.
        """
        with self.clock.paused():
            self.check_finite()
            self.snapshot.gather()
            if not self.snapshot.parts.accelerator.is_main_process:
                return
            paths = [checkpoint.best_path(self.run_dir)] if best else []
            self.clock.update()
            content = self.snapshot.content(self.tracker.sizes())
            if self.extension is not None:
                self.extension.begin(size_limit(self.snapshot.config))
                extension, self.extension = self.extension, None
                extension.complete()
                self.tracker.release()
            checkpoint.save(content, *paths, checkpoint.last_path(self.run_dir))

    def check_finite(self) -> None:
        """Raises UserError before the weights or records of a bad step reach the disk."""
        bad = self.snapshot.bad()
        if bad is None:
            return
        (step, what), last = bad, checkpoint.last_path(self.run_dir)
        kept = f"{last} holds the last good state" if last.exists() else "nothing was saved yet"
        raise UserError(
            f"{what} was not finite at step {step} (epoch {self.snapshot.state.epoch + 1}): lower "
            f"optimizer.lr or trainer.clip_grad_norm; {kept}"
        )
