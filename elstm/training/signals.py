"""Handles Ctrl-C, SIGTERM, SIGHUP and SLURM's signals, so that a run saves before it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from elstm.cli import handled

# SIGUSR1 and SIGUSR2: SLURM's --signal at the end of a job's time, or before a preemption.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


class Interrupted(Exception):
    """Reports that a signal requested a stop; it is raised between two steps, to save the run."""


class StopSignals:
    """Sets `requested` on each of SIGNALS inside a `with` block, so that the run saves and stops.

    Before `graceful` is set there is nothing to save, so a signal raises KeyboardInterrupt at once,
    as does a second Ctrl-C. An ignored signal stays ignored, as nohup ignores SIGHUP. The former
    handlers are restored at the end, because a sweep runs many jobs in one process. Python handles
    signals only in the main thread, so no handlers are set in other threads.
    """

    def __init__(self) -> None:
        self.graceful = False
        self.requested: str | None = None  # the signal's name
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in filter(handled, SIGNALS):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python and cannot be restored
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def raise_if_requested(self) -> None:
        """Raises Interrupted if this process received a signal."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def raise_if_requested_by_any(self, accelerator: Accelerator) -> None:
        """Raises Interrupted in all processes of a run if one of them received a signal."""
        if accelerator.num_processes > 1:
            own = 0 if self.requested is None else signal.Signals[self.requested].value
            highest = accelerator.gather(torch.tensor([own], device=accelerator.device)).max()
            number = int(highest)
            if number and self.requested is None:
                self.requested = signal.Signals(number).name
        self.raise_if_requested()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None and number == signal.SIGINT
        self.requested = signal.Signals(number).name
        if again or not self.graceful:
            raise KeyboardInterrupt(self.requested)
