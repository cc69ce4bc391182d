"""Runs commands; each error becomes one message, and the exit code shows how the command ended.

0    success                    129  the terminal was closed (SIGHUP)
1    an error of the user's     130  interrupted (Ctrl-C)
2    a wrong option             143  stopped by a signal (SIGTERM)
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from elstm.errors import UserError, did_you_mean, in_full, out_of_memory
from elstm.files.streams import lasting_streams

FAILED, USAGE = 1, 2
MAX_LINKS = 20  # of a chain of exceptions
MIN_COLUMNS, MAX_COLUMNS = 20, 80  # of a line on a terminal


class Ended(KeyboardInterrupt):
    """Reports that a signal requested a stop.

    Args:
        name: the name of the signal.
        reported: whether a message has been printed.
    """

    def __init__(self, name: str, *, reported: bool = False) -> None:
        super().__init__(name)
        self.reported = reported


# Signals that request a stop, beside that of Ctrl-C. A closed terminal sends SIGHUP.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def handled(number: signal.Signals) -> bool:
    """Returns whether to handle a signal; one that nohup or a shell's `&` ignores stays ignored."""
    return signal.getsignal(number) is not signal.SIG_IGN


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Makes STOP_SIGNALS raise Ended in the main thread, until another handler is set."""

    def end(number: int, frame: object) -> NoReturn:
        raise Ended(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, end) for n in STOP_SIGNALS if handled(n)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def command(prog: str, body: Callable[[], int]) -> int:
    """Runs a command's body and returns its exit code; an exception becomes one error message.

    An error that is not the user's is a bug: its traceback is shown where ELSTM_TRACEBACK=1 is set.
    """
    with lasting_streams() as streams, ended_by_signals():
        code = _command(prog, body)
        lost = streams.lost()
        if lost is not None:
            print_error(prog, f"cannot write standard output: {lost.strerror}")
        return code if lost is None else code or FAILED


def _command(prog: str, body: Callable[[], int]) -> int:
    try:
        code = body()
        sys.stdout.flush()  # here, so that an error of a replaced stream is caught here
        return code
    except BaseException as error:
        interrupt = _interrupt_behind(error)
        if interrupt is not None:
            name = interrupted_by(interrupt)
            if not getattr(interrupt, "reported", False):
                print_line(f"{prog}: interrupted by {name}")
            return exit_code(name)
        if not isinstance(error, Exception):
            raise
        if isinstance(error, UserError):
            print_error(prog, error)
            return FAILED
        if os.environ.get("ELSTM_TRACEBACK") == "1":
            traceback.print_exc()
        print_error(prog, _described(error))
        return FAILED


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Returns the signal of an interrupt, also where a library failed to clean up after it."""
    link: BaseException | None = error
    for _ in range(MAX_LINKS):
        if link is None or isinstance(link, KeyboardInterrupt):
            return link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def _described(error: Exception) -> str:
    """Describes an error that no code expected.

    A path that cannot be used, for example because its name is too long, is not a bug.
    """
    if out_of_memory(error):
        return f"out of memory ({summary(error)})"
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
        return f"cannot use {in_full(error.filename)}: {error.strerror}"
    return f"{summary(error)} (a bug; ELSTM_TRACEBACK=1 shows where)"


def interrupted_by(interrupt: KeyboardInterrupt) -> str:
    """Returns the name of the signal."""
    return str(interrupt) if str(interrupt) in signal.Signals.__members__ else "SIGINT"


def exit_code(signal_name: str) -> int:
    """Returns 128 plus the number of the signal, as shells do."""
    return 128 + signal.Signals[signal_name].value


def summary(error: BaseException) -> str:
    """Returns the type of an exception and the first line of its message."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def home_path(text: str) -> Path:
    """Reads a path from the command line; ~ is the home folder, even in quotes."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody without a home
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun: "1 run", "1,000 runs"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


@contextmanager
def data_root_as(option: str | None = None) -> Iterator[None]:
    """Makes error messages about a run's data name the option of this command, if it has one.

    Such a run has its data set, so the advice to choose another one is dropped.
    """
    try:
        yield
    except UserError as error:
        text = str(error).replace(", or take data=digits, which needs no download", "")
        if option is not None:
            text = re.sub(r"set data\.(root|path)=", f"set {option}", text)
        raise UserError(text) from error


def print_error(prog: str, error: object) -> None:
    print_line(f"{prog}: error: {' '.join(str(error).split())}")


def fitted(text: str, stream: TextIO) -> str:
    """Breaks lines between words so that they fit a terminal; paths stay whole.

    Nothing is changed where the stream is a file or a pipe.
    """
    if not stream.isatty():
        return text
    # A terminal without a size has 0 columns in Python 3.10.
    width = min(max(shutil.get_terminal_size().columns, MIN_COLUMNS), MAX_COLUMNS)
    return "\n".join(
        textwrap.fill(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    )


def print_line(line: str) -> None:
    """Prints a line on standard error.

    It may hold text from a file that anyone wrote, so control characters are replaced.
    """
    with suppress(OSError):  # the terminal may be gone
        shown = "".join(c if c.isprintable() else "?" for c in line)
        print(fitted(shown, sys.stderr), file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Parses arguments; an error is one message with the nearest option.

    An option has to be written in full, because an abbreviation may stop working with an update.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def add_run(self) -> None:
        """Adds the run that a command works on, and the checkpoint."""
        self.add_argument(
            "run_dir",
            type=home_path,
            metavar="RUN_DIR",
            help="folder of the run, outputs/DATA/MODEL/CHANGES/TIME-ID",
        )
        self.add_argument(
            "--checkpoint", default="best", metavar="best|last|PATH",
            type=lambda text: str(home_path(text)),
            help="checkpoint to load: best by validation accuracy (the default), last, or a file",
        )  # fmt: skip
        self.add_argument(
            "--weights", choices=("ema", "raw"),
            help="weights of a run with trainer.ema_decay: the averaged ones (ema, default), or "
            "the raw ones",
        )  # fmt: skip

    def add_data_root(self) -> None:
        self.add_argument(
            "--data-root",
            metavar="PATH",
            help="present place of the data: data.root, or the file or folder of data.path",
        )

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").partition(" ")[0]
        options = [o for action in self._actions for o in action.option_strings]
        near = difflib.get_close_matches(unknown.partition("=")[0], options, n=1, cutoff=0.75)
        hint = f"; did you mean {near[0]}?" if near and message.startswith("unrec") else ""
        choice = re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)$", message)
        if choice:
            hint = did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        message = " ".join(message.split())  # before it is cut, so that what is cut is no blanks
        if len(message) > 400:
            message = f"{message[:400]}..."
        print_line(f"{self.prog}: error: {message}{hint} ({self.prog} --help lists all)")
        sys.exit(USAGE)
