"""What a run tells the world: metrics.csv, norms.csv, over_time.csv and the TensorBoard event file.

metrics.csv has one row per log point of training, one per evaluation, and at the end one for the
test; a cell is empty where a row does not measure. Accuracies are fractions.

    epoch                    epochs of training done, e.g. 1.25
    step                     optimizer steps done
    train_seconds            time spent in training alone, summed over resumes
    wall_seconds             with evaluations, recomputed statistics and checkpoints
    lr                       learning rate of the last step
    train_loss               mean cross-entropy over the steps since the last log point
    train_accuracy           likewise, on the batches as they were trained on
    grad_norm                likewise, norm of the whole gradient before clipping
    samples_per_second       likewise, over train_seconds
    val_loss, val_accuracy   with population statistics
    val_accuracy_batch_stats with the statistics of each evaluation batch
    test_loss, test_accuracy, test_accuracy_batch_stats
                             of the best checkpoint by val_accuracy; in the last row alone

norms.csv has a row for each batch normalisation at each evaluation:

    epoch, step, norm        when, and which, such as norm_c_l0
    gamma_mean, gamma_std    over the units
    beta_mean, beta_std      likewise; empty where it has no β
    spread                   sqrt of the population variance, meaned over time steps and units

over_time.csv has a row for each time step, as the latest evaluation found it on 64 training images
(`elstm.nn.over_time`), and is replaced as a whole:

    t                        1 to T
    gradient                 |dL/dh_t|
    cell_mean, cell_std      of c_t, over sequences and units; not of a GRU

The event file has the scalars of the rows of metrics.csv; and at each evaluation, of a long run at
about 100 of them, histograms of every normalisation and a picture of |dL/dh_t|: 20 KB or more.

All but over_time.csv are appended to, and a resume cuts them back to the sizes that they had at its
checkpoint: no point is lost, doubled or out of order.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.utils.tensorboard import summary as summaries

from elstm.cli import summary
from elstm.config.schema import Config, settings_without_effect
from elstm.files import atomic as files
from elstm.nn import statistics_norms
from elstm.nn.norm import StepBatchNorm

CLOCK_COLUMNS = ("train_seconds", "wall_seconds", "samples_per_second")
TAGS = {  # column: scalar in TensorBoard
    "lr": "lr",
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "grad_norm": "grad_norm",
    "samples_per_second": "samples_per_second",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "val_accuracy_batch_stats": "val/accuracy_batch_stats",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
    "test_accuracy_batch_stats": "test/accuracy_batch_stats",
}
COLUMNS = ("epoch", "step", "train_seconds", "wall_seconds", *TAGS)
NORM_COLUMNS = (
    "epoch", "step", "norm", "gamma_mean", "gamma_std", "beta_mean", "beta_std", "spread",
)  # fmt: skip
HISTOGRAM_BINS = 64

log = logging.getLogger(__name__)


class Tracker:
    """Writes the records of one run.

    Making it claims the run's folder for this process; `start` begins the files or cuts them back.

    Args:
        run_dir: the run's folder.
        active: False on all processes of a run but the first: nothing is written.
    """

    def __init__(self, run_dir: Path, *, active: bool = True) -> None:
        self.run_dir, self.active = run_dir, active
        self.csv_path = run_dir / "metrics.csv"
        self.norms_path = run_dir / "norms.csv"
        self.over_time_path = run_dir / "over_time.csv"
        self._csv: IO[bytes] | None = None
        self._norms: IO[bytes] | None = None
        self._events: EventFile | None = None
        if active:
            files.refuse_links(self.csv_path, self.norms_path)
            self._csv = files.open_locked(self.csv_path, run_dir)

    def start(self, hparams: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> None:
        """Begins the files, or goes on where they had the `sizes` that a checkpoint holds."""
        if self._csv is None:
            return
        missing = files.cut(self._csv, self.csv_path, sizes["metrics"] if sizes else 0)
        self._events = EventFile(self.run_dir, sizes["events"] if sizes else None)
        norms = sizes.get("norms", 0) if sizes else 0
        if norms or self.norms_path.exists():
            with files.writing(self.norms_path):
                self._norms = self.norms_path.open("ab")
            missing += files.cut(self._norms, self.norms_path, norms)
        if missing or self._events.missing:
            log.warning(
                "metrics.csv, norms.csv or the event file in %s is shorter than it was at the "
                "checkpoint: their curves have a gap",
                self.run_dir,
            )
        if sizes is None:
            self._write_row(self._csv, COLUMNS)
            # Session info alone, and no experiment summary: TensorBoard then gathers the table's
            # columns from all runs. Of several experiment summaries it would show only the first.
            _, begin, _ = summaries.hparams(dict(hparams), {})
            self._events.add(begin, 0)
        self.flush()

    def log(self, position: Mapping[str, float], values: Mapping[str, float]) -> None:
        """One row and its scalars.

        Args:
            position: epoch, step, train_seconds and wall_seconds.
            values: what was measured, by column.
        """
        if self._events is None or self._csv is None:
            return
        cells = {**position, **values}
        self._write_row(self._csv, [_cell(cells[c]) if c in cells else "" for c in COLUMNS])
        scalars = [Summary.Value(tag=TAGS[c], simple_value=v) for c, v in values.items()]
        self._events.add(Summary(value=scalars), int(position["step"]))
        self.flush()

    def log_norms(
        self, model: nn.Module, position: Mapping[str, float], *, histograms: bool = True
    ) -> None:
        """The row of every normalisation; histograms of γ, β and the running statistics."""
        if self._events is None:
            return
        step = int(position["step"])
        for name, norm in statistics_norms(model):
            short = name.rpartition(".")[2]
            self._write_norm(short, norm, position)
            if not histograms:
                continue
            tensors = {
                "gamma": norm.weight,
                "beta": norm.bias,
                "running_mean": norm.running_mean,
                "running_var": norm.running_var,
            }
            for kind, tensor in tensors.items():
                if tensor is not None:
                    tag = f"{kind}/{short}"
                    values = tensor.detach().float().cpu().numpy()
                    self._events.add(summaries.histogram(tag, values, HISTOGRAM_BINS), step)

    def _write_norm(self, name: str, norm: StepBatchNorm, position: Mapping[str, float]) -> None:
        if self._norms is None:
            with files.writing(self.norms_path):
                self._norms = self.norms_path.open("ab")
        if not self._norms.tell():
            self._write_row(self._norms, NORM_COLUMNS)
        cells: list[str] = []
        for weights in (norm.weight, norm.bias):
            if weights is None:
                cells += ["", ""]
            else:
                values = weights.detach().float()
                cells += [f"{values.mean():.6g}", f"{values.std(correction=0):.6g}"]
        spread = norm.running_var.float().mean().sqrt()
        at = [_cell(position["epoch"]), _cell(position["step"])]
        self._write_row(self._norms, [*at, name, *cells, f"{spread:.6g}"])

    def write_over_time(self, columns: Mapping[str, np.ndarray]) -> None:
        """over_time.csv, anew.

        Args:
            columns: (T,) each.
        """
        if not self.active:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["t", *columns])
        for t, values in enumerate(zip(*columns.values(), strict=True), start=1):
            writer.writerow([t, *(f"{value:.6g}" for value in values)])
        files.write_atomic(self.over_time_path, text.getvalue().encode(), sync=False)

    def log_picture(self, tag: str, draw: Callable[[], bytes], step: int) -> None:
        """Draws a picture; one that cannot be drawn costs a warning and never the epoch.

        Args:
            draw: gives its PNG.
        """
        if self._events is None:
            return
        try:
            png = draw()
        except Exception as error:  # of matplotlib, its fonts and its cache: anything
            log.warning("the picture %s is left out: %s", tag, summary(error))
            return
        image = Summary.Image(colorspace=4, encoded_image_string=png)
        self._events.add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def log_end(self, step: int) -> None:
        """Marks the run as finished in the HPARAMS tab."""
        if self._events is not None:
            _, _, end = summaries.hparams({}, {})
            self._events.add(end, step)
            self.flush()

    def flush(self) -> None:
        """Lets readers see everything that was logged."""
        with files.writing(self.run_dir):
            for file in self._open_files():
                file.flush()

    def sizes(self) -> dict[str, int]:
        """Sizes of the files, for a checkpoint; their bytes are on the disk when it returns."""
        if self._csv is None or self._events is None:
            return {}
        self.flush()
        with files.writing(self.run_dir):
            for file in self._open_files():
                os.fsync(file.fileno())
        return {
            "metrics": self._csv.tell(),
            "norms": 0 if self._norms is None else self._norms.tell(),
            "events": self._events.file.tell(),
        }

    def close(self) -> None:
        """Never fails, so that it cannot hide the error that ended the run."""
        for file in self._open_files():
            try:
                file.close()
            except OSError as error:
                log.warning("cannot write to %s: %s", self.run_dir, error)
        self._csv = self._norms = self._events = None

    def _open_files(self) -> list[IO[bytes]]:
        events = None if self._events is None else self._events.file
        return [file for file in (self._csv, self._norms, events) if file is not None]

    def _write_row(self, file: IO[bytes], cells: Any) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        with files.writing(Path(file.name)):
            file.write(line.getvalue().encode())


class EventFile:
    """The run's one event file, in TensorBoard's record format.

    torch's SummaryWriter starts a file for each process, named after the machine, and writes from a
    thread; here a resume goes on in the same file, whose size is known at every checkpoint.

    On a resume the file is cut back and gets a new name: a TensorBoard that is watching would
    otherwise look for more bytes at its old place in it. The SessionLog.START at the file's head
    makes it drop what it had read before.

    Args:
        folder: the run's.
        size: at the checkpoint; None: a new file, in place of any others.
    """

    def __init__(self, folder: Path, size: int | None) -> None:
        # Named by the time, since TensorBoard reads the files of a folder in order of name.
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.elstm"
        self.missing = 0  # bytes that the file lacked
        existing = sorted(folder.glob("events.out.tfevents.*.elstm"))
        files.refuse_links(*existing)
        with files.writing(self.path):
            if size is not None and existing:
                existing.pop().replace(self.path)
            for stale in existing:
                stale.unlink()
            self.file = self.path.open("ab")
        if size is not None:
            self.missing = files.cut(self.file, self.path, size)
        self._records = RecordWriter(self.file)
        if self.file.tell() == 0:
            self._write(Event(file_version="brain.Event:2"))
            self._write(Event(session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Summary, step: int) -> None:
        self._write(Event(summary=summary, step=step))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with files.writing(self.path):
            self._records.write(event.SerializeToString())


def hparams(config: Config) -> dict[str, int | float | str]:
    """The config as TensorBoard's HPARAMS: {"model": "lstm", "model.hidden_size": 128, ...}.

    Settings that are null or do not change the result are left out.
    """
    left_out = settings_without_effect()
    flat: dict[str, Any] = {"seed": config.seed}
    for group, options in asdict(config).items():
        if isinstance(options, dict):
            for name, value in options.items():
                flat[group if name == "name" else f"{group}.{name}"] = value
    kept = {
        k: v
        for k, v in flat.items()
        if v is not None and k not in left_out and k.partition(".")[0] not in left_out
    }
    # The table would show a truth value as the number 0.0000.
    return {k: str(v).lower() if isinstance(v, bool) else v for k, v in kept.items()}


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"  # exact for float32
