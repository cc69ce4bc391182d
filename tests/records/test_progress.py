"""The progress of a run on the terminal: the bar, and lines where there is no terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys

import pytest

from elstm.records import progress


def test_lines_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    shown = progress.Progress(1000, 100, 10, enabled=True)
    now += 1
    shown.show(1.5, 110, 0.5, 2000.0)
    assert caplog.messages == []  # a line at most every 10 s
    now += 29
    shown.val_accuracy = 0.9123
    shown.show(2.0, 400, 0.25, 2000.0)
    shown.close()
    assert caplog.messages == [
        "epoch 2/10, step 400/1000, loss 0.2500, val 91.23%, 2,000 samples/s, 1:00 left"
    ]


def bar_line(monkeypatch: pytest.MonkeyPatch, columns: int, steps: int, *, shown: bool) -> str:
    """Returns the last state of a bar in a terminal of so many columns."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    if steps == 10:  # of a run whose log goes to a file, which shares the terminal with others
        assert progress.Progress(steps, 0, 100, enabled=True).bar is None
    monkeypatch.setattr(progress, "_log_is_shown", lambda: True)
    bar = progress.Progress(steps, 0, 100, epoch=51, enabled=True)
    assert bar.bar is not None
    bar.bar.dynamic_ncols = lambda file: (columns, 24)
    bar.bar.update(steps // 2)
    if shown:
        bar.val_accuracy = 0.5
        bar.show(50.5, steps // 2, 0.25, 12345.6)
    bar.bar.start_t -= 36_000  # ten hours
    bar.bar.refresh()
    line = terminal.getvalue().split("\r")[-1].rstrip()
    bar.close()
    return line


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("columns", [40, 65, 77, 78, 80, 104, 105, 120, 200])
def test_a_bar_fits_its_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int, shown: bool
) -> None:
    for steps in (10, 100_000):
        line = bar_line(monkeypatch, columns, steps, shown=shown)
        assert len(line) <= columns
        if columns >= 65:  # nothing is cut
            parts = ["epoch 51/100", f"step {steps // 2}/{steps}", " left"]
            parts += ["loss 0.2500"] if shown else []
            parts += ["12,346 samples/s"] if shown and columns >= 78 else []
            parts += ["val 50.00%"] if shown and columns >= 105 else []
            assert [part for part in parts if part not in line] == []


def test_a_bar_gets_values_before_the_first_log_point(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_log_is_shown", lambda: True)
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with contextlib.closing(progress.Progress(1000, 0, 10, enabled=True)) as bar:
        due = []
        for seconds in (0.5, 1.0, 5.0, 10.0):
            now += seconds
            due.append(bar.due())
            if due[-1]:
                bar.show(0.5, 50, 0.5, 100.0)
    assert due == [False, True, False, True]
    assert not progress.Progress(1000, 0, 10, enabled=False).due()


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "0:05"), (75, "1:15"), (3675, "1:01:15")])
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
