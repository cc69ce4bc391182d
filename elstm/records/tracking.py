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

A resume restores the CSV files to their content at its checkpoint, and marks in the event file from
where it is written again (`event_file`): no point is lost, doubled or out of order.
"""

from __future__ import annotations

import csv
import io
import logging
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
from elstm.nn import statistics_norms
from elstm.nn.norm import StepBatchNorm
from elstm.records.descriptions import hparams
from elstm.records.event_file import EventFile
from elstm.records.feeds import Feed, open_feeds
from elstm.records.hparams import columns
from elstm.records.record_files import COLUMNS, RecordFiles, RecordState
from elstm.records.sink import Description, Point
from elstm.records.tags import EARLIER, RESULTS, TAGS, tags_after

CLOCK_COLUMNS = ("train_seconds", "wall_seconds", "samples_per_second")
HISTOGRAM_BINS = 64

log = logging.getLogger(__name__)


@dataclass
class Held:
    """Holds the state of the files to which `Tracker.undo` returns, and what is not sent yet."""

    state: RecordState
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
        self.run_dir = run_dir
        self._files = RecordFiles(run_dir, columns) if active else None
        self._tags: Mapping[str, str] = TAGS
        self._feeds: list[Feed] = []
        self._held: Held | None = None

    @property
    def _events(self) -> EventFile | None:
        return None if self._files is None else self._files.events

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
        if self._files is None:
            return
        stay = {tags[name] for tags in (TAGS, EARLIER) for name in keep if name in tags}
        events = self._files.restore(sizes or {}, step, stay)
        self._tags = tags_after(events.tags)
        self._files.metrics.write_header()
        if sizes is None or events.missing:
            _, begin, _ = summaries.hparams(dict(hparams), {})
            events.add(columns(changed), 0)
            events.add(begin, 0)
            for tag, text in (texts or {}).items():
                events.add(summaries.text(tag, text), 0)
        self._files.flush()

    def hold(self, step: int) -> None:
        """Makes provisional what is logged from now on, until `release` or `undo`.

        Trackers beside TensorBoard take no point back, so that they receive it at `release`.

        Args:
            step: the run's present step.
        """
        if self._files is not None:
            self._held = Held(self._files.state(step))

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
        if held is None or self._files is None:
            return
        try:
            self._files.return_to(held.state)
        except UserError as error:
            log.warning("%s: the records have rows of steps that were lost", error)

    def open_feeds(self, config: Config) -> None:
        """Opens the trackers that the config requests; they receive what is logged from now on.

        Raises:
            UserError: a setting of a tracker is wrong.
        """
        if self._files is not None:
            folder = self.run_dir.absolute()
            named = folder.parent if is_run_name(folder.name) else folder  # hydra.run.dir
            name = f"{config.model.name}/{named.name}"
            run = Description(name, config.data.name, self.run_dir.absolute(), hparams(config))
            self._feeds = open_feeds(config.tracking, run, self.rows())

    def rows(self) -> list[dict[str, str]]:
        """Returns the rows of metrics.csv."""
        return [] if self._files is None else self._files.metrics.rows()

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
        if self._files is None or self._files.events is None:
            return
        cells, table = {**position, **values}, self._files.metrics
        table.write_row([_cell(cells[c]) if c in cells else "" for c in table.columns])
        scalars = [Summary.Value(tag=self._tags[c], simple_value=v) for c, v in values.items()]
        self._files.events.add(Summary(value=scalars), int(position["step"]))
        self._files.flush()
        measured = {TAGS[c]: v for c, v in values.items()}
        self._feed(int(position["step"]), {**measured, "epoch": position["epoch"]})

    def log_norms(
        self, model: nn.Module, position: Mapping[str, float], *, histograms: bool = True
    ) -> None:
        """Writes a row for each normalisation, and histograms of γ, β and running statistics."""
        if self._files is None or self._files.events is None:
            return
        step, events = int(position["step"]), self._files.events
        for name, norm in statistics_norms(model):
            short = name.rpartition(".")[2]
            self._files.norms.write_row(_norm_cells(short, norm, position))
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
                    events.add(summaries.histogram(tag, values, HISTOGRAM_BINS), step)

    def write_over_time(self, columns: Mapping[str, np.ndarray]) -> None:
        """Replaces over_time.csv.

        Args:
            columns: (T,) each.
        """
        if self._files is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["t", *columns])
        for t, values in enumerate(zip(*columns.values(), strict=True), start=1):
            writer.writerow([t, *(f"{value:.6g}" for value in values)])
        self._files.write_over_time(text.getvalue().encode())

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
        if self._files is not None:
            self._files.flush()

    def sizes(self) -> dict[str, Any]:
        """Returns sizes and fingerprints of the files, for a checkpoint.

        Their bytes are on the disk when it returns.
        """
        return {} if self._files is None else self._files.sizes()

    def close(self) -> None:
        """Closes all files. It never fails, so it cannot hide the error that ended the run."""
        record_files, self._files = self._files, None
        if record_files is not None:
            record_files.close()


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"  # exact for float32


def _norm_cells(name: str, norm: StepBatchNorm, position: Mapping[str, float]) -> list[str]:
    """Returns a row of norms.csv."""
    cells = [_cell(position["epoch"]), _cell(position["step"]), name]
    for weights in (norm.weight, norm.bias):
        if weights is None:
            cells += ["", ""]
        else:
            values = weights.detach().float()
            cells += [f"{values.mean():.6g}", f"{values.std(correction=0):.6g}"]
    var = norm.running_var
    return [*cells, "" if var is None else f"{var.float().mean().sqrt():.6g}"]
