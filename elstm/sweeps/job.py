"""Trains one run in its folder: writes its log, and reports how it ended."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from elstm.cli import FAILED, Ended, fitted, print_error, summary
from elstm.config.schema import Config
from elstm.errors import OtherProcessError, UserError
from elstm.files.atomic import open_append
from elstm.records.status import is_locked, read_status, status_path
from elstm.training.ranks import Ranks, read_ranks

PROG = "elstm-train"
LOG = "train.log"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Holds how a run ended."""

    code: int  # exit code of the process
    metric: float  # best validation accuracy, a fraction; NaN if the run failed
    error: str | None = None
    signal: str | None = None  # requested a stop when the run was about to end


# A function of the epoch and the validation accuracy; True ends the run. It can be pickled.
OnEvaluation = Callable[[int, float], bool]


def train_job(
    cfg: DictConfig, *, terminal: bool = True, callbacks: Mapping[str, OnEvaluation] | None = None
) -> float:
    """Trains one run of a sweep; Hydra calls it after it has created the run's folder.

    Args:
        callbacks: functions to call after each evaluation, by the name of the run's folder.

    Returns:
        Best validation accuracy; NaN if the run failed.

    Raises:
        Ended: a signal requested a stop, so no further run is to start.
    """
    from hydra.core.hydra_config import HydraConfig

    from elstm.config.compose import typed

    folder = folder_made()
    # A resumed run keeps its .hydra, because the sweep makes Hydra write none. A run that a cluster
    # requeues is launched with the overrides that started it.
    resume = HydraConfig.get().output_subdir is None or status_path(folder).is_file()
    on_evaluation = (callbacks or {}).get(folder.name)
    outcome = execute(
        typed(cfg), folder, resume=resume, terminal=terminal, on_evaluation=on_evaluation
    )
    if outcome.error is not None and not folder.exists():  # the sweep finds no status.json
        raise UserError(outcome.error)
    if terminal and outcome.signal is not None:  # workers of a sweep read their stop file
        raise Ended(outcome.signal)
    return outcome.metric


def folder_made() -> Path:
    """Returns the run folder that Hydra created, relative to the current directory if inside."""
    from hydra.core.hydra_config import HydraConfig

    folder, here = Path(HydraConfig.get().runtime.output_dir), Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def execute(
    config: Config,
    run_dir: Path,
    *,
    resume: bool = False,
    terminal: bool = True,
    on_evaluation: OnEvaluation | None = None,
    extend: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains in `run_dir`; an error becomes one message, and its traceback is logged.

    A new run that ends before its first step leaves no folder. All ranks train in rank 0's folder.

    Args:
        terminal: whether the run prints; it does not where other runs share the terminal.
        on_evaluation: is called after each evaluation and may end the run.
        extend: settings that a resumed run has from now on.

    Raises:
        Ended: a signal requested a stop.
    """
    with _removed_unless_started(run_dir, resume), run_log(run_dir, terminal):
        try:
            from elstm.training.run import run  # torch: seconds

            ranks = read_ranks()
            if ranks.world_size > 1:
                run_dir = _shared_folder(run_dir, config, ranks)
            result = run(config, run_dir, resume=resume, on_evaluation=on_evaluation, extend=extend)
        except OtherProcessError as error:
            _append(run_dir, f"error: {error}\n{error.details}")
            return Outcome(FAILED, math.nan, str(error))
        except KeyboardInterrupt as interrupt:
            _append(run_dir, f"interrupted {interrupt}")
            raise
        except Exception as error:
            return _failed(error, run_dir, resume=resume, terminal=terminal)
    if result.state == "interrupted":
        raise Ended(result.signal or "SIGINT", reported=True)
    best = result.best_val_accuracy
    return Outcome(0, math.nan if best is None else best, signal=result.signal)


def _failed(error: Exception, run_dir: Path, *, resume: bool, terminal: bool) -> Outcome:
    """Logs an error and prints it on one line."""
    from elstm.training.memory import explained

    known = explained(error)
    if isinstance(known, UserError):
        line = str(known)
        _append(run_dir, f"error: {known}")
    else:
        line = summary(error)
        _append(run_dir, traceback.format_exc())
        if not read_ranks().main:  # rank 0 keeps or removes the folder later
            line += f" (once the run has trained a step, the traceback is in {run_dir / LOG})"
        elif resume or _started(run_dir):
            line += f" (the traceback is in {run_dir / LOG})"
        else:
            line += " (a bug; ELSTM_TRACEBACK=1 shows where)"
            if os.environ.get("ELSTM_TRACEBACK") == "1":
                traceback.print_exc()
    if terminal:
        print_error(PROG, f"{_who()}{line}")
    return Outcome(FAILED, math.nan, line)


def _started(run_dir: Path) -> bool:
    """Returns whether a run has trained a step."""
    status = read_status(run_dir) or {}
    return bool(status.get("step")) or any((run_dir / "checkpoints").glob("*.pt"))


@contextmanager
def _removed_unless_started(run_dir: Path, resume: bool) -> Iterator[None]:
    """Removes the folder of a new run that ends before its first step.

    A resumed one stays, and one in which another process trains.
    """
    try:
        yield
    finally:
        removed = not resume and read_ranks().main and not _started(run_dir)
        if removed and not is_locked(run_dir):
            shutil.rmtree(run_dir, ignore_errors=True)


def _who() -> str:
    """Returns the name of this process for an error message, if there are several."""
    ranks = read_ranks()
    return f"process {ranks.rank}: " if ranks.world_size > 1 else ""


def _shared_folder(run_dir: Path, config: Config, ranks: Ranks) -> Path:
    """Returns the run folder of rank 0, in which all ranks train."""
    from elstm.training.device import choose_device
    from elstm.training.distributed import join_processes, shared_text
    from elstm.training.environment import isolated_environment

    with isolated_environment(ranks):
        join_processes(ranks, choose_device(config.trainer.device, config.trainer.precision))
    return Path(shared_text(str(run_dir), ranks))


class _LogFile(WatchedFileHandler):
    """Appends to train.log, but not through a link; creates a removed file again.

    It does not report write errors, because on a full disk the run's records report them.
    """

    def _open(self) -> TextIOWrapper:
        file = open_append(Path(self.baseFilename))
        return TextIOWrapper(file, encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        before = self.stream
        with suppress(UserError):
            super().emit(record)
            if before is not None and self.stream is not before:
                log.warning(
                    "%s was removed during the run: a new file is started", self.baseFilename
                )

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Wrapped(logging.Formatter):
    """Breaks messages between words so that they fit the terminal; paths stay whole."""

    def format(self, record: logging.LogRecord) -> str:
        return fitted(super().format(record), sys.stdout)


@contextmanager
def run_log(run_dir: Path, on_terminal: bool = True) -> Iterator[None]:
    """Sends log messages to the terminal, and with timestamps to train.log, while it is active.

    Raises:
        UserError: the file cannot be written.
    """
    root = logging.getLogger()
    level, hydra_level = root.level, logging.getLogger("hydra").level
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(_Wrapped())
    handlers: list[logging.Handler] = [terminal] if on_terminal else []
    if read_ranks().main:
        path = run_dir / LOG
        file = _LogFile(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    else:
        terminal.setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) or logging.INFO)  # hydra.verbose may have set DEBUG
    logging.getLogger("hydra").setLevel(hydra_level or logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)
        logging.getLogger("hydra").setLevel(hydra_level)
        for handler in handlers:
            root.removeHandler(handler)
            with suppress(OSError):  # of text that did not fit a full disk
                handler.close()


def _append(run_dir: Path, text: str) -> None:
    """Writes to the log alone, because the terminal gets one line."""
    if not read_ranks().main:
        return
    # The folder may be gone or the disk full, which the message on the terminal reports.
    with suppress(OSError, UserError), open_append(run_dir / LOG) as file:
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {text.rstrip()}\n"
        file.write(line.encode(errors="backslashreplace"))
