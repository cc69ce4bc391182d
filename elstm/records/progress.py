"""Shows the progress of training: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from contextlib import ExitStack

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

SECONDS_BETWEEN_LINES = 10.0
BAR = "{desc} {bar} step {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]"

log = logging.getLogger(__name__)


class Progress:
    """Shows epoch, step, loss, validation accuracy, samples per second and remaining time.

    A terminal has a bar at the bottom, and log lines scroll above it. Otherwise there is a log line
    at most every 10 s, so that the log of a long run stays short.

    Args:
        steps: number of steps of the full run.
        done: number of steps before this process started.
        enabled: False: no bar and no such lines.
    """

    def __init__(self, steps: int, done: int, max_epochs: int, *, enabled: bool) -> None:
        self.steps, self.max_epochs = steps, max_epochs
        self.first, self.start = done, time.monotonic()
        self.last_line = self.start
        self.val_accuracy: float | None = None
        self.lines = enabled and not sys.stderr.isatty()
        self.bar: tqdm[None] | None = None
        self._stack = ExitStack()
        if enabled and not self.lines:
            self._stack.enter_context(logging_redirect_tqdm())
            self.bar = self._stack.enter_context(
                tqdm(
                    total=steps,
                    initial=done,
                    dynamic_ncols=True,
                    leave=False,
                    mininterval=0.2,
                    bar_format=BAR,
                )
            )

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def show(self, epoch: float, step: int, loss: float, samples_per_second: float) -> None:
        """Shows the values of a log point."""
        if self.bar is None and not self.lines:
            return
        label = f"epoch {max(math.ceil(epoch), 1)}/{self.max_epochs}"
        val = "" if self.val_accuracy is None else f", val {self.val_accuracy:.2%}"
        text = f"loss {loss:.4f}{val}, {samples_per_second:,.0f} samples/s"
        if self.bar is not None:
            self.bar.set_description_str(label, refresh=False)
            self.bar.set_postfix_str(text, refresh=False)
            return
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.start) / max(step - self.first, 1) * (self.steps - step)
            log.info("%s, step %d/%d, %s, %s left", label, step, self.steps, text, duration(left))

    def close(self) -> None:
        self._stack.close()


def duration(seconds: float) -> str:
    """Formats seconds: 75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
