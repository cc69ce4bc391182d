"""TensorBoard's readers, kept open while a run is stopped and resumed, see each point once."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.data import provider, server_ingester
from tensorboard.util import grpc_util, tensor_util

from elstm.records.tracking import Tracker

TAGS = {"train_loss": "loss/train", "val_loss": "loss/val"}


class DataServer:
    """TensorBoard's fast loader, in a process of its own."""

    def __init__(self, folder: Path, port_file: Path) -> None:
        self.process = subprocess.Popen(
            [
                server_ingester.get_server_binary().path, f"--logdir={folder}", "--reload=1",
                "--port=0", f"--port-file={port_file}", "--die-after-stdin",
            ],
            stdin=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while not (port_file.exists() and port_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.ingester = server_ingester.ExistingServerDataIngester(
            f"localhost:{port_file.read_text().strip()}",
            channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        )

    def steps(self, run: str, tag: str) -> list[int]:
        found = self.ingester.data_provider.read_scalars(
            context.RequestContext(),
            experiment_id="",
            plugin_name="scalars",
            downsample=1000,
            run_tag_filter=provider.RunTagFilter(runs=[run], tags=[tag]),
        )
        return [point.step for point in found.get(run, {}).get(tag, [])]

    def wait_for(self, run: str, expected: dict[str, list[int]]) -> dict[str, list[int]]:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            seen = {tag: self.steps(run, tag) for tag in expected}
            if seen == expected:
                break
            time.sleep(0.2)
        return seen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataServer, Path]]:
    pytest.importorskip("tensorboard_data_server")
    folder = tmp_path_factory.mktemp("logs")
    data_server = DataServer(folder, tmp_path_factory.mktemp("port") / "port")
    with data_server.process as process:
        yield data_server, folder
        process.communicate(b"")


def record(tracker: Tracker, step: int, *columns: str) -> None:
    position = {"epoch": step / 4, "step": step, "train_seconds": 1.0, "wall_seconds": 1.0}
    for column in columns:
        tracker.log(position, {column: float(step)})


def seen_by_accumulator(reader: Any) -> dict[str, list[int]]:
    reader.Reload()
    if isinstance(reader, EventAccumulator):
        return {tag: [e.step for e in reader.Scalars(tag)] for tag in TAGS.values()}
    tensors = {tag: reader.Tensors(tag) for tag in TAGS.values()}
    for tag, points in tensors.items():
        assert [float(tensor_util.make_ndarray(p.tensor_proto)) for p in points] == [
            p.step for p in points
        ], tag
    return {tag: [point.step for point in points] for tag, points in tensors.items()}


ENDS = ["at the checkpoint", "behind it", "in a record", "in a length"]
READERS = (EventAccumulator, PluginEventAccumulator)


def stop(folder: Path, end: str) -> dict[str, int]:
    """Records a run that stops at `end`; returns the sizes of its last checkpoint, at step 4."""
    folder.mkdir()
    tracker = Tracker(folder)
    tracker.start({"seed": 1})
    record(tracker, 1, "train_loss", "val_loss")
    record(tracker, 2, "train_loss")
    record(tracker, 4, "train_loss")
    sizes = tracker.sizes()  # the evaluation of step 4 comes later
    if end != "at the checkpoint":
        record(tracker, 4, "val_loss")
        record(tracker, 6, "train_loss", "val_loss")
    tracker.close()
    (path,) = folder.glob("events*")
    last_record = path.read_bytes()[-60:]
    if end in ("in a record", "in a length"):
        with path.open("ab") as file:
            file.write(last_record[: 4 if end == "in a length" else 30])
    return sizes


def resume(folder: Path, sizes: dict[str, int]) -> None:
    tracker = Tracker(folder)
    tracker.start({"seed": 1}, sizes, step=4)
    record(tracker, 4, "val_loss")
    record(tracker, 6, "train_loss", "val_loss")
    sizes = tracker.sizes()
    record(tracker, 7, "train_loss")
    tracker.close()
    tracker = Tracker(folder)  # and once more
    tracker.start({"seed": 1}, sizes, step=6)
    record(tracker, 7, "train_loss")
    record(tracker, 8, "train_loss", "val_loss")
    tracker.close()


def test_readers_that_only_reload_see_each_point_once(server: tuple[DataServer, Path]) -> None:
    data_server, logs = server
    folders = {end: logs / end.replace(" ", "-") for end in ENDS}
    sizes = {end: stop(folder, end) for end, folder in folders.items()}
    readers = {end: [reader(str(folders[end])) for reader in READERS] for end in ENDS}
    for reader in itertools.chain(*readers.values()):
        reader.Reload()
    for end, folder in folders.items():
        behind = [] if end == "at the checkpoint" else [4, 6]
        first = {"loss/train": [1, 2, 4, *behind[1:]], "loss/val": [1, *behind]}
        assert data_server.wait_for(folder.name, first) == first
    before = {folder: next(folder.glob("events*")).read_bytes() for folder in folders.values()}
    for end, folder in folders.items():
        resume(folder, sizes[end])

    expected = {"loss/train": [1, 2, 4, 6, 7, 8], "loss/val": [1, 4, 6, 8]}
    for end, folder in folders.items():
        for reader in (*readers[end], *(reader(str(folder)) for reader in READERS)):
            assert seen_by_accumulator(reader) == expected, end
        assert data_server.wait_for(folder.name, expected) == expected
        paths = sorted(folder.glob("events*"))
        assert len(paths) == (2 if end.startswith("in") else 1)
        # No byte that a reader may have has changed.
        assert paths[0].read_bytes().startswith(before[folder])
