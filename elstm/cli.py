"""What all commands share: one line per error, and the exit codes.

0    done                     129  ended because the terminal was closed (SIGHUP)
1    an error of the user's   130  interrupted (Ctrl-C)
2    no such option           143  ended (SIGTERM)
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from elstm.errors import UserError
from elstm.files.streams import lasting_streams

FAILED, USAGE = 1, 2


class Ended(KeyboardInterrupt):
    """A signal asked the process to stop.

    Args:
        name: the signal's.
        said: the user has been told.
    """

    def __init__(self, name: str, *, said: bool = False) -> None:
        super().__init__(name)
        self.said = said


# What ends a process politely, beside Ctrl-C. A closed terminal sends SIGHUP.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def handled(number: signal.Signals) -> bool:
    """Whether a signal is to be handled: one that nohup or a shell's `&` ignores stays ignored."""
    return signal.getsignal(number) is not signal.SIG_IGN


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """STOP_SIGNALS raise Ended while nobody handles them better; only in the main thread."""

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
            # None: a handler that was not set from Python and cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def command(prog: str, body: Callable[[], int]) -> int:
    """Runs a command's body and returns its exit code; whatever it raises becomes one line.

    An error that is not the user's is a bug: its traceback is shown where ELSTM_TRACEBACK=1 is set.
    """
    with lasting_streams() as streams, ended_by_signals():
        code = _command(prog, body)
        lost = streams.lost()
        if lost is not None:
            say_error(prog, f"cannot write standard output: {lost.strerror}")
        return code if lost is None else code or FAILED


def _command(prog: str, body: Callable[[], int]) -> int:
    try:
        code = body()
        sys.stdout.flush()  # here, so that an error of a replaced stream is met here
        return code
    except UserError as error:
        say_error(prog, error)
        return FAILED
    except KeyboardInterrupt as interrupt:
        name = interrupted_by(interrupt)
        if not getattr(interrupt, "said", False):
            say(f"{prog}: interrupted by {name}")
        return exit_code(name)
    except Exception as error:
        if os.environ.get("ELSTM_TRACEBACK") == "1":
            traceback.print_exc()
        say_error(prog, f"{summary(error)} (a bug; ELSTM_TRACEBACK=1 shows where)")
        return FAILED


def interrupted_by(interrupt: KeyboardInterrupt) -> str:
    """The signal's name."""
    return str(interrupt) if str(interrupt) in signal.Signals.__members__ else "SIGINT"


def exit_code(signal_name: str) -> int:
    """128 and the signal's number, as shells have it."""
    return 128 + signal.Signals[signal_name].value


def summary(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def home_path(text: str) -> Path:
    """A path of the command line; ~ is the home folder, also where no shell has replaced it."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody without a home
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def plural(count: int, noun: str) -> str:
    """A number of things: "1 run", "1,000 runs"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


@contextmanager
def data_root_as(option: str | None = None) -> Iterator[None]:
    """Makes advice about the data of an existing run name the option of this command, if given.

    Such a run has its data set, so that another one is no way out.
    """
    try:
        yield
    except UserError as error:
        text = str(error).replace(", or take data=digits, which needs no download", "")
        if option is not None:
            text = re.sub(r"set data\.(root|path)=", f"set {option}", text)
        raise UserError(text) from error


def say_error(prog: str, error: object) -> None:
    say(f"{prog}: error: {' '.join(str(error).split())}")


def say(line: str) -> None:
    """A line on the terminal, beside what the command prints.

    It may hold what a stranger wrote, a file's name or a key: nothing in it reaches the terminal as
    a control sequence.
    """
    with suppress(OSError):  # the terminal may be gone
        print("".join(c if c.isprintable() else "?" for c in line), file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest option that there is."""

    def add_run(self) -> None:
        """The run that a command works on, and which checkpoint of it."""
        self.add_argument(
            "run_dir", type=home_path, metavar="RUN_DIR", help="outputs/DATA/MODEL/CHANGES/RUN"
        )
        self.add_argument(
            "--checkpoint", default="best", metavar="best|last|PATH",
            type=lambda text: str(home_path(text)),
            help="best by validation accuracy (default), last, or a file",
        )  # fmt: skip

    def add_data_root(self) -> None:
        self.add_argument(
            "--data-root",
            metavar="PATH",
            help="where the data lie, if elsewhere: data.root, or the file or folder of data.path",
        )

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").partition(" ")[0]
        options = [o for action in self._actions for o in action.option_strings]
        near = difflib.get_close_matches(unknown.partition("=")[0], options, n=1, cutoff=0.75)
        hint = f"; did you mean {near[0]}?" if near and message.startswith("unrec") else ""
        if len(message) > 400:
            message = f"{message[:400]}..."
        say(f"{self.prog}: error: {' '.join(message.split())}{hint} ({self.prog} --help has all)")
        sys.exit(USAGE)
