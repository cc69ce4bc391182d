"""Shows the progress of training, as a bar on a terminal and as log lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

SECONDS_BETWEEN_LINES = 10.0
FIRST_SECONDS = 1.0  # after which a bar has its first values, however far the first log point is
# By columns of the terminal. The narrow one fits 80 columns, whatever the numbers are.
WIDE = "{desc} {bar} step {n_fmt}/{total_fmt}{loss}{val}{speed}, {elapsed} done, {remaining} left"
NARROW = "{desc} {bar} step {n_fmt}/{total_fmt}{loss}{speed}, {remaining} left"
SHORT = "{desc}, step {n_fmt}/{total_fmt}{loss}, {remaining} left"
LARGE = 1e4  # a loss of more digits is written with an exponent
FORMATS = ((105, WIDE), (78, NARROW), (0, SHORT))

log = logging.getLogger(__name__)


class _Bar(tqdm):
    """Fills the width of the terminal; its remaining time includes evaluations."""

    shown: dict[str, str]

    @property
    def format_dict(self) -> dict[str, Any]:
        fields = super().format_dict
        columns = fields["ncols"] or 80
        texts = {"loss": "", "val": "", "speed": "", **getattr(self, "shown", {})}
        form = next(form for least, form in FORMATS if columns >= least)
        return {**fields, **texts, "bar_format": form}


class Progress:
    """Shows epoch, step, loss and the remaining time, and in a wide bar further values.

    A terminal has a bar at the bottom, and log lines scroll above it. Otherwise, and where several
    runs share the terminal, there is a log line at most every 10 s, so that the log of a long run
    stays short.

    Args:
        steps: number of steps of the full run.
        done: number of steps before this process started.
        epoch: the first epoch, counted from 1.
        enabled: whether there is a bar, or such lines.
    """

    def __init__(
        self, steps: int, done: int, max_epochs: int, *, epoch: int = 1, enabled: bool
    ) -> None:
        self.steps, self.max_epochs = steps, max_epochs
        self.first, self.start = done, time.monotonic()
        self.last_line, self.any_shown = self.start, False
        self.val_accuracy: float | None = None
        self.lines = enabled and not (sys.stderr.isatty() and _log_is_shown())
        self.bar: _Bar | None = None
        self._stack = ExitStack()
        if enabled and not self.lines:
            self._stack.enter_context(logging_redirect_tqdm())
            logging.captureWarnings(True)  # else a warning would share the bar's line
            self._stack.callback(logging.captureWarnings, False)
            self.bar = self._stack.enter_context(
                _Bar(
                    total=steps,
                    initial=done,
                    dynamic_ncols=True,
                    leave=False,
                    mininterval=0.2,
                    smoothing=0,
                    desc=f"epoch {min(epoch, max_epochs)}/{max_epochs}",
                )
            )

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def due(self) -> bool:
        """Returns whether values should be shown before the next log point."""
        if self.bar is None and not self.lines:
            return False
        soon = self.bar is not None and not self.any_shown
        return time.monotonic() - self.last_line >= (
            FIRST_SECONDS if soon else SECONDS_BETWEEN_LINES
        )

    def show(self, epoch: float, step: int, loss: float, samples_per_second: float) -> None:
        """Shows the values of the latest steps."""
        if self.bar is None and not self.lines:
            return
        self.any_shown = True
        label = f"epoch {max(math.ceil(epoch), 1)}/{self.max_epochs}"
        val = "" if self.val_accuracy is None else f", val {self.val_accuracy:.2%}"
        texts = {
            "loss": f", loss {loss:.4f}" if loss < LARGE else f", loss {loss:.2g}",
            "val": val,
            "speed": f", {samples_per_second:,.0f} samples/s",
        }
        now = time.monotonic()
        if self.bar is not None:
            self.last_line = now
            self.bar.set_description_str(label, refresh=False)
            self.bar.shown = texts
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.start) / max(step - self.first, 1) * (self.steps - step)
            text = "".join(texts.values())
            log.info("%s, step %d/%d%s, %s left", label, step, self.steps, text, duration(left))

    def close(self) -> None:
        self._stack.close()


def _log_is_shown() -> bool:
    """Returns whether log messages reach the terminal; those of a sweep's workers do not."""
    streams = (sys.stdout, sys.stderr)
    handlers = logging.getLogger().handlers
    return any(isinstance(h, logging.StreamHandler) and h.stream in streams for h in handlers)


def duration(seconds: float) -> str:
    """Formats seconds: 75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
