"""Sends a run's rows and pictures to Weights & Biases and MLflow.

A `Feed` calls a tracker's `Sink` from a thread, so that training never waits for a network.
metrics.csv stays the complete record. tracking.json in the run folder stores which rows a tracker
has received, and a resume sends the others. No step is sent twice, and a tracker may be switched on
at a resume. What an extension logs before its first checkpoint is sent with it, because the
extension may fail until then (`Tracker.hold`).

    tracking.json    by tracker: id (of its run), rows (sent so far), and
                     sent (the last step that was sent, by tag)
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from elstm.cli import summary
from elstm.config.schema import TrackingConfig
from elstm.errors import UserError
from elstm.files.atomic import read_json, write_atomic
from elstm.records.sink import Description, Point, Sink
from elstm.records.tags import RAW_SCALARS, SCALARS, TAGS

FILE = "tracking.json"
START_SECONDS = 20.0  # training waits this long for a tracker to report a wrong setting
RETRY_SECONDS = 60.0
END_SECONDS = 30.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

log = logging.getLogger(__name__)


@dataclass
class Cursor:
    """Stores which rows a tracker has received; it is read from a file of unknown origin."""

    id: str | None = None
    rows: int = 0
    sent: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, stored: object) -> Cursor:
        if isinstance(stored, dict):
            known, rows, sent = (stored.get(key) for key in ("id", "rows", "sent"))
            if (
                isinstance(known, str)
                and _ID.fullmatch(known)
                and isinstance(rows, int)
                and isinstance(sent, dict)
                and all(isinstance(step, int) for step in sent.values())
            ):
                return cls(known, rows, sent)
        return cls()

    def new(self, point: Point) -> Point | None:
        """Returns the part of a point that was not sent before, and counts it as sent."""
        values = {k: v for k, v in point.values.items() if point.step > self.sent.get(k, -1)}
        if not values:
            return None
        self.sent.update(dict.fromkeys(values, point.step))
        return Point(point.step, values, point.when)


class Feed:
    """Sends points to one tracker from a separate thread.

    If a tracker fails, or tracking.json cannot be written, one warning is logged. The points wait,
    and are sent again from time to time and at the end. The next resume sends the remaining ones.
    """

    def __init__(self, key: str, sink: Sink, run: Description) -> None:
        self.key, self.sink, self.run = key, sink, run
        self.path = run.folder / FILE
        self.cursor = Cursor.read((read_json(self.path) or {}).get(key))
        self.queue: queue.SimpleQueue[Point | str] = queue.SimpleQueue()
        self.opened = threading.Event()
        self.awaited = True  # `start` waits, or has waited, until the run was open
        self.error: UserError | None = None
        self.is_open = self.warned = False
        self.thread = threading.Thread(target=self._work, name=f"elstm-{key}", daemon=True)

    def start(self, points: Sequence[Point]) -> None:
        """Opens the run, and sends the earlier points that the tracker lacks.

        Raises:
            UserError: a setting of the tracker is wrong.
        """
        for point in points:
            self.put(point)
        self.thread.start()
        self.awaited = self.opened.wait(START_SECONDS)
        if self.error is not None:
            raise self.error

    def put(self, point: Point) -> None:
        self.queue.put(point)

    def close(self, state: str) -> None:
        """Ends the tracker's run, and waits for it at most END_SECONDS."""
        if self.thread.is_alive():
            self.queue.put(state)
            self.thread.join(END_SECONDS)
            if self.thread.is_alive():
                self._warn(f"no answer within {END_SECONDS:.0f} s")

    def _work(self) -> None:
        """Sends the points in the queue, until a text there tells how the run ended."""
        pending: list[Point] = []
        state, due = None, 0.0
        try:
            self._attempt(pending)  # opens the run
            while state is None:
                points, state = self._take()
                pending += points
                if state is not None or time.monotonic() >= due:
                    if self._attempt(pending, state):
                        pending = []
                    else:
                        due = time.monotonic() + RETRY_SECONDS
        except UserError as error:
            self.error = error
            if not self.awaited:
                self._warn(error)
        finally:
            self.opened.set()

    def _take(self) -> tuple[list[Point], str | None]:
        """Waits for the queue; returns all points in it, and the end."""
        items = [self.queue.get()]
        while not self.queue.empty():
            items.append(self.queue.get())
        state = next((item for item in items if isinstance(item, str)), None)
        return [item for item in items if isinstance(item, Point)], state

    def _attempt(self, points: Sequence[Point], state: str | None = None) -> bool:
        """Opens the tracker's run if necessary, sends, and returns whether that worked."""
        try:
            if not self.is_open:
                self._open()
                self.is_open = True
            self._send(points)
            if state is not None:
                self.sink.close(state)
        except Exception as error:  # of a network, a server, a package or the disk: anything
            if isinstance(error, UserError) and not self.is_open:
                raise  # a wrong setting
            self._warn(summary(error))
            self.opened.set()
            return False
        self.opened.set()
        return True

    def _open(self) -> None:
        known = self.cursor.id
        found = self.sink.open(self.run, known)
        if found != known:
            self.cursor = Cursor(found)
            self._remember()

    def _send(self, points: Sequence[Point]) -> None:
        """Sends new points. They are recorded as sent first, so that a kill doubles no point."""
        before = Cursor(self.cursor.id, self.cursor.rows, dict(self.cursor.sent))
        new = [point for each in points if (point := self.cursor.new(each)) is not None]
        if not new:
            return
        self.cursor.rows += len(new)
        try:
            self._remember()
            self.sink.log(new, before.rows)
        except Exception:
            self.cursor = before
            with suppress(UserError):
                self._remember()
            raise

    def _remember(self) -> None:
        with _writing:
            stored = {**(read_json(self.path) or {}), self.key: vars(self.cursor)}
            write_atomic(self.path, json.dumps(stored).encode(), sync=False)

    def _warn(self, reason: object) -> None:
        if not self.warned:
            self.warned = True
            log.warning(
                "%s does not accept this run's records: %s; training continues, metrics.csv has "
                "all rows, and a resume sends the missing ones",
                self.sink.title, reason,
            )  # fmt: skip


_writing = threading.Lock()  # several feeds write tracking.json


def _past(rows: Sequence[Mapping[str, str]]) -> list[Point]:
    """Returns the points of the rows of metrics.csv."""
    points = []
    for row in rows:
        with suppress(ValueError):
            columns = [column for column in (*SCALARS, *RAW_SCALARS) if row.get(column)]
            values = {TAGS[column]: float(row[column]) for column in columns}
            points.append(Point(int(row["step"]), {**values, "epoch": float(row["epoch"])}))
    return points


# Imports stand in functions here, because the packages are optional and slow to import.
def _wandb() -> Sink:
    from elstm.records.wandb_sink import WandbSink

    return WandbSink()


def _mlflow() -> Sink:
    from elstm.records.mlflow_sink import MLflowSink

    return MLflowSink()


# By setting of the group tracking.
SINKS: dict[str, Callable[[], Sink]] = {"wandb": _wandb, "mlflow": _mlflow}


def open_feeds(
    tracking: TrackingConfig, run: Description, rows: Sequence[Mapping[str, str]]
) -> list[Feed]:
    """Opens the trackers that a config requests, and sends them the earlier rows of a resumed run.

    Args:
        rows: the rows of metrics.csv, by column.

    Raises:
        UserError: a setting of a tracker is wrong.
    """
    feeds: list[Feed] = []
    try:
        for key, make in SINKS.items():
            if getattr(tracking, key):
                feed = Feed(key, make(), run)
                feed.start(_past(rows))
                feeds.append(feed)
    except UserError:
        for feed in feeds:
            feed.close("failed")
        raise
    return feeds
