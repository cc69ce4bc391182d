"""Ctrl-C, SIGTERM, SIGHUP and what SLURM sends before a job's end: finish the step and save."""

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
    """The run was asked to stop; raised between two steps, where everything can be saved."""


class Interrupts:
    """While it is entered, each of SIGNALS sets `requested` and the run goes on.

    Before `graceful` is set there is nothing to save, and they raise KeyboardInterrupt at once; so
    does a second Ctrl-C. A signal that is ignored stays so, as nohup ignores SIGHUP. On leaving,
    the handlers are those of before: a sweep runs many jobs in one process. Outside the main thread
    Python has no handlers, and none are set.
    """

    def __init__(self) -> None:
        self.graceful = False
        self.requested: str | None = None  # the signal's name
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in filter(handled, SIGNALS):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python and cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def check_together(self, accelerator: Accelerator) -> None:
        """The same in all processes of a run, if a signal came to one of them."""
        if accelerator.num_processes > 1:
            own = 0 if self.requested is None else signal.Signals[self.requested].value
            came = int(accelerator.gather(torch.tensor([own], device=accelerator.device)).max())
            if came and self.requested is None:
                self.requested = signal.Signals(came).name
        self.check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None and number == signal.SIGINT
        self.requested = signal.Signals(number).name
        if again or not self.graceful:
            raise KeyboardInterrupt(self.requested)
