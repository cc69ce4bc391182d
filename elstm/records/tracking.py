"""Writes the records of a run: metrics.csv, norms.csv, over_time.csv and the event file.

metrics.csv has one row per log point of training, one per evaluation, and at the end one for the
test; a cell is empty if its row has no such measurement. Accuracies are fractions.

    epoch                    epochs of training done, e.g. 1.25
    step                     optimizer steps done
    train_seconds            time spent in training alone, summed over resumes
    wall_seconds             with evaluations, recomputed statistics and checkpoints
    lr                       learning rate of the last step
    train_loss               mean cross-entropy over the steps since the last log point
    train_accuracy           likewise, on the batches as they were trained on
    grad_norm                likewise, norm of the full gradient before clipping
    samples_per_second       likewise, over train_seconds
    val_loss, val_accuracy   with population statistics
    val_accuracy_batch_stats with the statistics of each evaluation batch
    test_loss, test_accuracy, test_accuracy_batch_stats
                             of the best checkpoint by val_accuracy; in the last row alone
    val_balanced_accuracy, test_balanced_accuracy
                             mean recall of the classes, with population statistics
    val_macro_f1, test_macro_f1
                             mean F1 of the classes, likewise

With trainer.ema_decay all val_ and test_ columns are those of the averaged weights, and two more
columns hold the raw ones:

    val_loss_raw, val_accuracy_raw
                             of the weights that are trained, with population statistics

The train_ columns and the files below are of the weights that are trained.

norms.csv has a row for each batch normalisation at each evaluation:

    epoch, step, norm        when, and which, such as norm_c_l0
    gamma_mean, gamma_std    over the units
    beta_mean, beta_std      likewise; empty where it has no β
    spread                   sqrt of the population variance, meaned over time steps and units

over_time.csv has a row for each time step, as the latest evaluation found it on 64 training images
(`elstm.nn.over_time`); each evaluation replaces the file:

    t                        1 to T
    gradient                 |dL/dh_t|
    cell_mean, cell_std      of c_t, over sequences and units; not of a GRU

The event file has the scalars of the rows of metrics.csv (`elstm.records.tags` names them). At each
evaluation, of a long run at about 100 of them, it has histograms of every normalisation and a
picture of |dL/dh_t|: 20 KB or more.

The picture is drawn after the checkpoint of its evaluation, so that nothing is lost where drawing
fails; a resume from this checkpoint draws it if it is missing.

All but over_time.csv are appended to. A resume restores the CSV files to their content at its
checkpoint, and marks in the event file from where it is written again (`event_file`): no point is
lost, doubled or out of order. A file that another program changed is copied to another name first,
with a warning. A file that is removed during the run is written again, with a warning.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import summary as summaries

from elstm.cli import summary
from elstm.config.run_folder import is_run_name
from elstm.config.schema import Config
from elstm.errors import UserError
from elstm.files import atomic as files
from elstm.nn import statistics_norms
from elstm.nn.norm import StepBatchNorm
from elstm.records.descriptions import hparams
from elstm.records.event_file import EventFile
from elstm.records.feeds import Feed, open_feeds
from elstm.records.hparams import columns
from elstm.records.sink import Description, Point
from elstm.records.table_file import TableFile
from elstm.records.tags import EARLIER, FIRST_SCALARS, RESULTS, SCALARS, TAGS, tags_after

CLOCK_COLUMNS = ("train_seconds", "wall_seconds", "samples_per_second")
POSITION = ("epoch", "step", "train_seconds", "wall_seconds")
COLUMNS = (*POSITION, *SCALARS)
FIRST_COLUMNS = (*POSITION, *FIRST_SCALARS)
NORM_COLUMNS = (
    "epoch", "step", "norm", "gamma_mean", "gamma_std", "beta_mean", "beta_std", "spread",
)  # fmt: skip
HISTOGRAM_BINS = 64

log = logging.getLogger(__name__)


@dataclass
class Held:
    """Holds the state of the records to which `Tracker.undo` returns, and what is not sent yet."""

    step: int
    sizes: Mapping[str, Any]
    over_time: bytes | None
    points: list[Point] = field(default_factory=list)


class Tracker:
    """Writes the records of one run.

    Its creation locks the run folder for this process; `start` opens the files.

    Args:
        run_dir: the run's folder.
        columns: the columns of metrics.csv; an existing file keeps its columns.
        active: whether to write; False on all ranks but 0.
    """

    def __init__(
        self, run_dir: Path, columns: Sequence[str] = COLUMNS, *, active: bool = True
    ) -> None:
        self.run_dir, self.active = run_dir, active
        self.norms_path = run_dir / "norms.csv"
        self.over_time_path = run_dir / "over_time.csv"
        self._csv: TableFile | None = None
        self._norms: TableFile | None = None
        self._events: EventFile | None = None
        self._over_time: bytes | None = None
        self._tags: Mapping[str, str] = TAGS
        self._feeds: list[Feed] = []
        self._held: Held | None = None
        if active:
            files.refuse_links(run_dir / "metrics.csv", self.norms_path)
            path = run_dir / "metrics.csv"
            self._csv = TableFile(path, _columns(path, columns), owner=run_dir)

    def start(
        self,
        hparams: Mapping[str, Any],
        sizes: Mapping[str, Any] | None = None,
        step: int = 0,
        texts: Mapping[str, str] | None = None,
        keep: Collection[str] = (),
        changed: Collection[str] = (),
    ) -> None:
        """Opens the files.

        Args:
            sizes: the result of `sizes` at the checkpoint from which the run resumes; None: there
                is none.
            step: the step of that checkpoint.
            texts: the Markdown texts of a new run's event file, by tag.
            keep: names of pictures of that step that stay, though they were drawn after the
                checkpoint.
            changed: keys of the settings that HPARAMS shows first.
        """
        if self._csv is None:
            return
        stay = {tags[name] for tags in (TAGS, EARLIER) for name in keep if name in tags}
        complete, events = self._restore(self._csv, sizes or {}, step, stay)
        self._tags = tags_after(events.tags)
        if not complete or events.missing:
            log.warning(
                "metrics.csv, norms.csv or the event file in %s is not complete up to the "
                "checkpoint: their curves have a gap",
                self.run_dir,
            )
        self._csv.write_header()
        if sizes is None or events.missing:
            _, begin, _ = summaries.hparams(dict(hparams), {})
            events.add(columns(changed), 0)
            events.add(begin, 0)
            for tag, text in (texts or {}).items():
                events.add(summaries.text(tag, text), 0)
        self.flush()

    def _restore(
        self, metrics: TableFile, sizes: Mapping[str, Any], step: int, stay: Collection[str]
    ) -> tuple[bool, EventFile]:
        """Restores the files to their content at a step, of which `sizes` are.

        Returns: whether the tables hold all rows up to it, and the event file, opened again.
        """
        tables = {"metrics": metrics}
        if sizes.get("norms") or os.path.lexists(self.norms_path):
            self._norms = self._norms or TableFile(self.norms_path, NORM_COLUMNS)
            tables["norms"] = self._norms
        complete = True
        for name, table in tables.items():
            complete &= table.restore(sizes.get(name, 0), sizes.get(f"{name}_sha256"), step)
        self._events = EventFile(self.run_dir, step, sizes.get("events"), stay)
        return complete, self._events

    def hold(self, step: int) -> None:
        """Makes provisional what is logged from now on, until `release` or `undo`.

        Trackers beside TensorBoard take no point back, so that they receive it at `release`.

        Args:
            step: the run's present step.
        """
        if self.active:
            path = self.over_time_path
            with files.writing(path):
                known = path.is_file() and not path.is_symlink()
                over_time = path.read_bytes() if known else None
            self._held = Held(step, self.sizes(), over_time)

    def release(self) -> None:
        """Keeps what was logged since `hold`."""
        held, self._held = self._held, None
        for point in [] if held is None else held.points:
            self._put(point)

    def undo(self) -> None:
        """Removes what was logged since `hold`, if that was not released.

        It never fails, so it cannot hide the error that ended the run.
        """
        held, self._held = self._held, None
        if held is None or self._csv is None or self._events is None:
            return
        try:
            with files.writing(self.run_dir):
                for record in self._open_records():
                    record.file.flush()
                self._events.file.close()
            self._restore(self._csv, held.sizes, held.step, ())
            if self._over_time is not None and held.over_time is not None:
                self._over_time = held.over_time
                files.write_atomic(self.over_time_path, held.over_time, sync=False)
            self.flush()
        except UserError as error:
            log.warning("%s: the records have rows of steps that were lost", error)

    def open_feeds(self, config: Config) -> None:
        """Opens the trackers that the config requests; they receive what is logged from now on.

        Raises:
            UserError: a setting of a tracker is wrong.
        """
        if self.active:
            folder = self.run_dir.absolute()
            named = folder.parent if is_run_name(folder.name) else folder  # hydra.run.dir
            name = f"{config.model.name}/{named.name}"
            run = Description(name, config.data.name, self.run_dir.absolute(), hparams(config))
            self._feeds = open_feeds(config.tracking, run, self.rows())

    def rows(self) -> list[dict[str, str]]:
        """Returns the rows of metrics.csv."""
        return [] if self._csv is None else self._csv.rows()

    def _feed(self, step: int, values: Mapping[str, float | bytes]) -> None:
        point = Point(step, values)
        if self._held is None:
            self._put(point)
        else:
            self._held.points.append(point)

    def _put(self, point: Point) -> None:
        for feed in self._feeds:
            feed.put(point)

    def log(self, position: Mapping[str, float], values: Mapping[str, float]) -> None:
        """Writes one row and its scalars.

        Args:
            position: epoch, step, train_seconds and wall_seconds.
            values: the measurements, by column.
        """
        if self._events is None or self._csv is None:
            return
        cells = {**position, **values}
        self._csv.write_row([_cell(cells[c]) if c in cells else "" for c in self._csv.columns])
        scalars = [Summary.Value(tag=self._tags[c], simple_value=v) for c, v in values.items()]
        self._events.add(Summary(value=scalars), int(position["step"]))
        self.flush()
        measured = {TAGS[c]: v for c, v in values.items()}
        self._feed(int(position["step"]), {**measured, "epoch": position["epoch"]})

    def log_norms(
        self, model: nn.Module, position: Mapping[str, float], *, histograms: bool = True
    ) -> None:
        """Writes a row for each normalisation, and histograms of γ, β and running statistics."""
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
                    tag = f"{self._tags[kind]}/{short}"
                    values = tensor.detach().float().cpu().numpy()
                    self._events.add(summaries.histogram(tag, values, HISTOGRAM_BINS), step)

    def _write_norm(self, name: str, norm: StepBatchNorm, position: Mapping[str, float]) -> None:
        if self._norms is None:
            self._norms = TableFile(self.norms_path, NORM_COLUMNS)
        cells: list[str] = []
        for weights in (norm.weight, norm.bias):
            if weights is None:
                cells += ["", ""]
            else:
                values = weights.detach().float()
                cells += [f"{values.mean():.6g}", f"{values.std(correction=0):.6g}"]
        var = norm.running_var
        cells.append("" if var is None else f"{var.float().mean().sqrt():.6g}")
        at = [_cell(position["epoch"]), _cell(position["step"])]
        self._norms.write_row([*at, name, *cells])

    def write_over_time(self, columns: Mapping[str, np.ndarray]) -> None:
        """Replaces over_time.csv.

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
        self._over_time = text.getvalue().encode()
        files.write_atomic(self.over_time_path, self._over_time, sync=False)

    def has_picture(self, name: str) -> bool:
        """Returns whether a run that resumes has this picture of the checkpoint's step."""
        return self._events is not None and self._tags[name] in self._events.repeated

    def log_picture(self, name: str, draw: Callable[[], bytes], step: int) -> None:
        """Draws a picture; if that fails, a warning is logged, and the epoch counts.

        Args:
            name: a key of `elstm.records.tags.PICTURES`.
            draw: returns its PNG.
        """
        if self._events is None:
            return
        try:
            png = draw()
        except Exception as error:  # of matplotlib, its fonts and its cache: anything
            log.warning("the picture %s is left out: %s", self._tags[name], summary(error))
            return
        image = Summary.Image(colorspace=4, encoded_image_string=png)
        self._events.add(Summary(value=[Summary.Value(tag=self._tags[name], image=image)]), step)
        self.flush()
        self._feed(step, {TAGS[name]: png})

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Shows a Markdown text in the Text tab, beside earlier ones of its tag."""
        if self._events is not None:
            self._events.add(summaries.text(tag, text), step)
            self.flush()

    def log_end(self, step: int, results: Mapping[str, float]) -> None:
        """Marks the run as finished in the HPARAMS tab.

        Args:
            results: the values of `elstm.records.tags.RESULTS`.
        """
        if self._events is not None:
            scalars = [Summary.Value(tag=self._tags[k], simple_value=v) for k, v in results.items()]
            self._events.add(Summary(value=scalars), step)
            _, _, end = summaries.hparams({}, {})
            self._events.add(end, step)
            self.flush()
            self._feed(step, {TAGS[k]: v for k, v in results.items()})

    def feed_results(self, status: Mapping[str, Any]) -> None:
        """Sends the results of a finished run to the trackers, from its status.json."""
        values = {TAGS[key]: status[key] for key in RESULTS if type(status.get(key)) is float}
        if values and type(step := status.get("step")) is int:
            self._put(Point(step, values))

    def end(self, state: str) -> None:
        """Reports to the trackers how the run ended."""
        for feed in self._feeds:
            feed.close(state)

    def flush(self) -> None:
        """Writes everything that was logged to the files, and restores removed files."""
        with files.writing(self.run_dir):
            for record in self._open_records():
                record.file.flush()
        for record in self._open_records():
            path, happened = record.path, record.repair()
            if happened is not None:
                log.warning("%s %s", path, happened)
        if self._over_time is not None and not self.over_time_path.exists():
            log.warning("%s was removed during the run: it is written again", self.over_time_path)
            files.write_atomic(self.over_time_path, self._over_time, sync=False)

    def sizes(self) -> dict[str, Any]:
        """Returns sizes and fingerprints of the files, for a checkpoint.

        Their bytes are on the disk when it returns.
        """
        if self._csv is None or self._events is None:
            return {}
        self.flush()
        with files.writing(self.run_dir):
            for record in self._open_records():
                os.fsync(record.file.fileno())
        norms = {"norms": 0} if self._norms is None else self._norms.mark("norms")
        return {**self._csv.mark("metrics"), **norms, "events": self._events.total()}

    def close(self) -> None:
        """Closes all files. It never fails, so it cannot hide the error that ended the run."""
        for record in self._open_records():
            try:
                record.file.close()
            except OSError as error:
                log.warning("cannot write to %s: %s", self.run_dir, error)
        self._csv = self._norms = self._events = None

    def _open_records(self) -> list[TableFile | EventFile]:
        records = (self._csv, self._norms, self._events)
        return [record for record in records if record is not None]


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"  # exact for float32


def _columns(path: Path, columns: Sequence[str]) -> Sequence[str]:
    """Returns the columns of metrics.csv; a file of an earlier version keeps its columns."""
    try:
        with path.open("rb") as file:
            header = file.readline(10_000).decode("ascii", "replace").strip()
    except OSError:
        return columns
    return FIRST_COLUMNS if header == ",".join(FIRST_COLUMNS) else columns
