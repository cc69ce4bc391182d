"""Sets up, trains, tests and tears down one run, from its config to its test accuracy.

A run that a signal or a kill ends at any moment resumes from its last checkpoint to the same
weights and records, on a CPU bit by bit. The checkpoint holds all state on which the next steps
depend (`Snapshot`), and the order of the data follows from seed and epoch.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from elstm.config.changes import changes, with_settings
from elstm.config.extras import require_extras
from elstm.config.schema import Config
from elstm.errors import UserError
from elstm.files.atomic import refuse_no_folder, remove_leftovers, writing
from elstm.records.record_files import COLUMNS
from elstm.records.status import Status, code_version, read_status, training_history
from elstm.records.tags import RAW_SCALARS
from elstm.records.tracking import Tracker
from elstm.training import checkpoint, evaluation
from elstm.training import device as runtime
from elstm.training.build import build_limits, build_parts
from elstm.training.content import describe, same
from elstm.training.distributed import first_failure
from elstm.training.ema import chosen_weights
from elstm.training.extension import (
    Extension,
    check_not_behind,
    complete_extension,
    extended_config,
    new_entry,
    stored_extensions,
)
from elstm.training.graph_step import batch_step
from elstm.training.initial import checked_record
from elstm.training.loop import OnEvaluation, TrainingLoop
from elstm.training.memory import check_memory
from elstm.training.ranks import read_ranks
from elstm.training.recorder import Recorder, run_facts
from elstm.training.signals import Interrupted, StopSignals
from elstm.training.snapshot import Checkpoints, Snapshot
from elstm.training.state import Clock, StepSums, TrainState
from elstm.training.trained import check_fits, settings, size_limit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """Holds how a run ended: `state` is done, pruned, or interrupted by `signal`.

    A signal that came when the run was about to end is named too. Accuracies are fractions.
    """

    state: str
    test_accuracy: float | None
    best_val_accuracy: float | None
    status: dict[str, Any]
    signal: str | None = None


def run(
    config: Config,
    run_dir: Path,
    *,
    resume: bool = False,
    on_evaluation: OnEvaluation | None = None,
    extend: Mapping[str, Any] | None = None,
) -> RunResult:
    """Trains, evaluates and tests one model, and records it all in `run_dir`.

    Args:
        config: validated; its trainer.resume is not used.
        run_dir: an existing folder for this run alone.
        resume: resume from the folder's last checkpoint, or start from the beginning if there is
            none yet. A run that is done stays as it is.
        on_evaluation: called after each evaluation with the epoch, counted from 1, and validation
            accuracy; True ends the run there, without a test, as `pruned`.
        extend: with `resume`, new settings by key (elstm.config.changes). Values that the run
            already has change nothing.

    Raises:
        UserError: the user can fix it: device, data, checkpoint, disk, a loss that is not finite.
        KeyboardInterrupt: at a second Ctrl-C, or at one before training has started.
    """
    if resume:
        before = read_status(run_dir)
        if (
            before is not None
            and before.get("state") == "done"
            and not (extend and changes(config, with_settings(config, extend)))
        ):
            log.info("%s is done: there is nothing to train", run_dir)
            _send_records(config, run_dir, before)
            return _result(before)
    require_extras(config.tracking)
    with (
        StopSignals() as signals,
        runtime.process_settings(config.trainer),
        runtime.accelerator_for(config.trainer) as accelerator,
        closing(Tracker(run_dir, _columns(config), active=accelerator.is_main_process)) as tracker,
    ):
        status = Status(run_dir, active=accelerator.is_main_process)
        loop: TrainingLoop | None = None
        try:
            # Those that trained the run until now, until it is known from which step it resumes.
            processes = status.before.get("processes") or accelerator.num_processes
            status.update(state="running", processes=processes, **run_facts(config, accelerator))
            check_memory(config, accelerator.device)
            loop = set_up(
                config, run_dir, resume, accelerator, tracker, status, signals, extend or {}
            )
            signals.graceful = True
            try:
                train_and_test(loop, run_dir, on_evaluation or (lambda epoch, accuracy: False))
            finally:
                status.set(step=loop.state.step)
        except BaseException as error:
            first = first_failure(error) if isinstance(error, Exception) else error
            status.fail(first, trained=_trained(loop, resume))
            tracker.undo()
            if first is error:
                raise
            raise first from error
        finally:
            tracker.end(str(status.fields["state"]))
        return _result(status.fields, signals.requested)


def _columns(config: Config) -> tuple[str, ...]:
    """Returns the columns of metrics.csv."""
    return COLUMNS if config.trainer.ema_decay is None else (*COLUMNS, *RAW_SCALARS)


def _send_records(config: Config, run_dir: Path, status: Mapping[str, Any]) -> None:
    """Sends to the trackers the rows and results of a finished run that they lack."""
    if not (config.tracking.wandb or config.tracking.mlflow) or not read_ranks().main:
        return
    require_extras(config.tracking)
    with closing(Tracker(run_dir, _columns(config))) as tracker:
        tracker.open_feeds(config)
        tracker.feed_results(status)
        tracker.end("done")


def _trained(loop: TrainingLoop | None, resume: bool) -> bool:
    """Returns whether the run has changed, which it has from its first step on.

    An extension counts from its first checkpoint on.
    """
    return not resume or (loop is not None and loop.checkpoints.extension is None)


def _result(status: dict[str, Any], signal: str | None = None) -> RunResult:
    accuracies = status.get("test_accuracy"), status.get("best_val_accuracy")
    return RunResult(status["state"], *accuracies, status, signal)


def set_up(
    config: Config,
    run_dir: Path,
    resume: bool,
    accelerator: Accelerator,
    tracker: Tracker,
    status: Status,
    signals: StopSignals,
    extend: Mapping[str, Any],
) -> TrainingLoop:
    """Builds the run, restores its checkpoint if it has one, and opens its records."""
    refuse_no_folder(checkpoint.last_path(run_dir).parent)
    saved = _read_checkpoint(run_dir, config) if resume else None
    own, extensions = _extended(config, saved, run_dir, status)
    config = with_settings(own, extend)
    changed = bool(changes(own, config))
    if changed and saved is None:
        raise UserError(
            f"{run_dir} has no checkpoint yet, so there is nothing to extend: start a new run "
            "with these settings"
        )
    parts = build_parts(config, accelerator, saved)
    folder = checkpoint.last_path(run_dir).parent
    if accelerator.is_main_process:
        with writing(folder):
            folder.mkdir(exist_ok=True)
        remove_leftovers(folder)
    state, sums = TrainState(parts.limits), StepSums(accelerator.device)
    init_from = parts.init_from if saved is None else _initial_weights(saved, run_dir)
    status.set(init_from=init_from)
    snapshot = Snapshot(config, parts, state, sums, extensions, init_from)
    file_sizes = None if saved is None else snapshot.restore(saved, own)
    before = {} if saved is None else status.before
    here = {
        "processes": accelerator.num_processes,
        "machine": runtime.machine(accelerator.device),
        "code": code_version(),
    }
    status.set(**training_history(before, state.step, here, finished=state.finished))
    if changed:
        limits = build_limits(own, parts.data, accelerator.num_processes)
        tested = replace(state, limits=limits).finished
        snapshot.extensions = [
            *extensions,
            new_entry(own, config, state, status.before, tested, tracker.rows()),
        ]
    elif accelerator.is_main_process:
        complete_extension(run_dir, status, extensions)
    recorder = Recorder(config, run_dir, parts, tracker, status)
    entry = snapshot.extensions[-1] if changed else None
    record_sizes = recorder.start(state, file_sizes, resume=resume, extension=entry)
    if saved is not None and accelerator.is_main_process and state.evaluated:
        try:
            checkpoint.best(run_dir, size_limit(config))
        except checkpoint.Unreadable as error:
            recorder.warn(f"{error}: the next epoch that is better replaces it")
    clock = Clock(state)
    extension = None
    if changed:
        start = {
            "extensions": snapshot.extensions,
            "settings": settings(config),
            "schedule": parts.schedule.state_dict(),
            "files": record_sizes,
        }
        extension = Extension(run_dir, status, snapshot.extensions, start)
    checkpoints = Checkpoints(run_dir, snapshot, clock, tracker, extension)
    train = batch_step(config, parts, sums)
    return TrainingLoop(config, parts, state, sums, train, clock, signals, recorder, checkpoints)


def _extended(
    config: Config, saved: dict[str, Any] | None, run_dir: Path, status: Status
) -> tuple[Config, list[dict[str, Any]]]:
    """Returns the config after the run's earlier extensions, and the extensions."""
    if saved is None:
        return config, []
    try:
        extensions = stored_extensions(saved)
    except ValueError as error:
        raise UserError(f"{run_dir}: the checkpoint cannot be used: {error}") from error
    check_not_behind(status.before, extensions, run_dir, saved["state"]["step"])
    return extended_config(config, extensions), extensions


def _initial_weights(saved: dict[str, Any], run_dir: Path) -> dict[str, Any] | None:
    try:
        return checked_record(saved)
    except ValueError as error:
        raise UserError(f"{run_dir}: the checkpoint cannot be used: {error}") from error


def _read_checkpoint(run_dir: Path, config: Config) -> dict[str, Any] | None:
    """Returns the latest checkpoint that can be read; None where there is none yet."""
    saved = checkpoint.latest(run_dir, size_limit(config))
    if saved is not None:
        try:
            check_fits(saved, config)
        except ValueError as error:
            raise UserError(
                f"{run_dir}: the checkpoint does not fit the run's config: {error}"
            ) from error
    return saved


def train_and_test(loop: TrainingLoop, run_dir: Path, on_evaluation: OnEvaluation) -> None:
    """Trains to the end and tests, or stops on a signal and saves."""
    try:
        with (
            closing(loop.recorder.progress),
            runtime.profiler(loop.config.trainer, run_dir) as profiler,
        ):
            finished = loop.fit(on_evaluation, profiler)
        if finished:
            test_best(loop, run_dir)
    except Interrupted as interrupted:
        if not loop.state.finished:  # then the last evaluation has saved it
            loop.checkpoints.save()
        loop.recorder.interrupted(loop.state, interrupted)


def test_best(loop: TrainingLoop, run_dir: Path) -> None:
    """Tests the best checkpoint by validation accuracy, once, at the end."""
    parts, state = loop.parts, loop.state
    if not parts.accelerator.is_main_process:
        return
    try:
        best = checkpoint.best(run_dir, size_limit(loop.config))
    except checkpoint.Unreadable as error:
        raise UserError(
            f"{error}. It held the weights of the best epoch, {state.best_epoch:.4g}: restore a "
            "copy of it and resume, or test the last epoch: elstm-eval "
            f"{shlex.quote(str(run_dir))} --checkpoint last"
        ) from error
    _check_best(best, loop, run_dir)
    weights, _, _ = chosen_weights(best)
    parts.evaluated.load_state_dict(weights)
    values, score = evaluation.measure_each(
        parts.evaluated, parts.data, "test", loop.config, loop.signals.raise_if_requested
    )
    loop.clock.update()
    loop.recorder.tested(state, values, score)


def _check_best(best: dict[str, Any], loop: TrainingLoop, run_dir: Path) -> None:
    """Raises UserError if best.pt does not belong to this run and its best epoch."""
    try:
        check_fits(best, loop.config)
        for name in ("best_epoch", "best_val_accuracy"):
            here, there = getattr(loop.state, name), best["state"].get(name)
            if not same(there, here):
                raise ValueError(f"its {name} is {describe(there)}, not {here:g}")
    except ValueError as error:
        raise UserError(
            f"{checkpoint.best_path(run_dir)} is not the best checkpoint of this run: {error}; put "
            "the right one there and resume"
        ) from error
