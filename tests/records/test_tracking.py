"""The files of a run: metrics.csv, norms.csv, over_time.csv and its one event file."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from training_runs import events, small_config

from elstm.errors import UserError
from elstm.models import SequenceClassifier
from elstm.nn import ELSTMBN
from elstm.nn.norm import StepBatchNorm
from elstm.records import status, tracking
from elstm.records.descriptions import hparams
from elstm.records.record_files import COLUMNS, FIRST_COLUMNS
from elstm.records.tracking import Tracker

POSITION = {"epoch": 0.5, "step": 7, "train_seconds": 1.5, "wall_seconds": 2.5}
TRAIN = {
    "lr": 0.01,
    "train_loss": 1 / 3,
    "train_accuracy": 0.25,
    "grad_norm": 2.0,
    "samples_per_second": 1000.0,
}


def read_rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def read_events(run_dir: Path) -> EventAccumulator:
    reader = EventAccumulator(str(run_dir), size_guidance=dict.fromkeys(
        ("scalars", "histograms", "images", "tensors"), 0))  # fmt: skip
    return reader.Reload()


def started(run_dir: Path) -> Tracker:
    tracker = Tracker(run_dir)
    tracker.start(hparams(small_config()))
    return tracker


def test_rows_and_scalars(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log(POSITION, TRAIN)
    tracker.log({**POSITION, "step": 9}, {"val_accuracy": 0.75, "val_loss": 0.125})
    first, second = read_rows(tmp_path)  # readable while the run goes on
    assert tuple(first) == COLUMNS
    assert (first["epoch"], first["step"], first["train_loss"]) == ("0.5", "7", "0.333333333")
    assert first["val_accuracy"] == second["train_loss"] == ""
    assert second["val_accuracy"] == "0.75"
    scalars = read_events(tmp_path)
    assert sorted(scalars.Tags()["scalars"]) == [
        "accuracy/train", "accuracy/val", "loss/train", "loss/val",
        "optimization/grad_norm", "optimization/lr", "optimization/samples_per_second",
    ]  # fmt: skip
    (loss,) = scalars.Scalars("loss/train")
    assert (loss.step, loss.value) == (7, pytest.approx(1 / 3))
    (accuracy,) = scalars.Scalars("accuracy/val")
    assert (accuracy.step, accuracy.value) == (9, 0.75)
    tracker.close()


def test_histograms_and_pictures(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    model = SequenceClassifier(ELSTMBN(3, 4, max_steps=5, gamma_c=0.5), 2)
    tracker.log_norms(model, POSITION)
    tracker.log_picture("gradient", lambda: b"\x89PNG...", 3)
    tracker.close()
    reader = read_events(tmp_path)
    norms = [f"norm_{name}_l0" for name in ("c", "hh", "ih")]
    kinds = ("weights/gamma", "statistics/running_mean", "statistics/running_var")
    expected = sorted(["weights/beta/norm_c_l0", *(f"{k}/{n}" for k in kinds for n in norms)])
    assert sorted(reader.Tags()["histograms"]) == expected
    (gamma,) = reader.Histograms("weights/gamma/norm_c_l0")
    assert gamma.histogram_value.num == 4
    assert gamma.histogram_value.max == 0.5
    (variance,) = reader.Histograms("statistics/running_var/norm_ih_l0")
    assert variance.histogram_value.num == 5 * 16
    (image,) = reader.Images("pictures/gradient_over_time")
    assert image.encoded_image_string == b"\x89PNG..."


def test_a_picture_that_cannot_be_drawn_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = started(tmp_path)
    tracker.log_picture("gradient", lambda: bytes(1 // 0), 3)
    tracker.log({**POSITION, "step": 4}, {"val_accuracy": 0.75})
    tracker.close()
    (line,) = caplog.messages
    assert line.startswith("the picture pictures/gradient_over_time is left out: ZeroDivisionError")
    reader = read_events(tmp_path)
    assert reader.Tags()["images"] == []
    assert [event.step for event in reader.Scalars("accuracy/val")] == [4]


def test_norms_and_time_steps_as_csv(tmp_path: Path) -> None:
    model = SequenceClassifier(ELSTMBN(3, 2, max_steps=5), 2)
    norm = model.rnn.norm_c_l0
    assert isinstance(norm, StepBatchNorm)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.5]))
    norm.running_var.fill_(0.25)
    tracker = started(tmp_path)
    tracker.log_norms(model, POSITION)
    sizes = tracker.sizes()
    tracker.log_norms(model, {**POSITION, "step": 8})
    tracker.write_over_time({"gradient": np.ones(2)})
    tracker.write_over_time({"gradient": np.array([1e-9, 0.5]), "cell_mean": np.array([1, 2])})
    tracker.close()
    assert (tmp_path / "over_time.csv").read_text() == "t,gradient,cell_mean\n1,1e-09,1\n2,0.5,2\n"

    tracker = Tracker(tmp_path)
    tracker.start({}, sizes, step=7)  # a resume
    tracker.log_norms(model, {**POSITION, "step": 9})
    tracker.close()
    with (tmp_path / "norms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["norm"][:-3]) for row in rows] == [
        (step, norm) for step in "79" for norm in ("norm_ih", "norm_hh", "norm_c")
    ]
    assert rows[2] == {
        "epoch": "0.5", "step": "7", "norm": "norm_c_l0", "gamma_mean": "1", "gamma_std": "0.5",
        "beta_mean": "0", "beta_std": "0", "spread": "0.5",
    }  # fmt: skip
    assert rows[0]["beta_mean"] == ""  # has none


def test_a_norm_that_centres_alone_has_neither_gamma_nor_spread(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    model = SequenceClassifier(ELSTMBN(3, 2, max_steps=5, cell_norm="center"), 2)
    tracker.log_norms(model, POSITION)
    tracker.close()
    with (tmp_path / "norms.csv").open() as file:
        row = list(csv.DictReader(file))[2]
    assert (row["gamma_mean"], row["beta_mean"], row["spread"]) == ("", "0", "")
    tags = read_events(tmp_path).Tags()["histograms"]
    assert "statistics/running_mean/norm_c_l0" in tags
    assert not {"weights/gamma/norm_c_l0", "statistics/running_var/norm_c_l0"} & set(tags)


def test_hparams_stand_in_the_runs_own_file(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log_end(9, {"best_val_accuracy": 0.5, "train_seconds": 3.0})
    tracker.close()
    tags = read_events(tmp_path).summary_metadata
    info = metadata.parse_session_start_info_plugin_data(
        tags[metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    values = info.hparams
    assert values["model"].string_value == "elstm_bn"
    assert values["model.hidden_size"].number_value == 8
    assert values["optimizer.lr"].number_value == 0.01
    assert values["data.permute"].string_value == "false"
    assert "trainer.log_every" not in values
    assert "trainer.max_steps" not in values  # null
    assert metadata.SESSION_END_INFO_TAG in tags
    assert len(list(tmp_path.glob("events*"))) == 1


def test_a_resume_takes_both_files_back(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log(POSITION, TRAIN)
    sizes = tracker.sizes()
    kept, kept_events = read_rows(tmp_path), events(tmp_path)
    tracker.log({**POSITION, "step": 8}, TRAIN)
    tracker.close()
    (first_file,) = tmp_path.glob("events*")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("0.75,8,half a li")  # as a kill leaves it
    with first_file.open("ab") as raw:
        raw.write(b"half a record")

    tracker = Tracker(tmp_path)
    tracker.start(hparams(small_config()), sizes, step=7)
    assert read_rows(tmp_path) == kept
    assert events(tmp_path) == kept_events
    tracker.log({**POSITION, "step": 9}, TRAIN)
    tracker.close()
    assert [row["step"] for row in read_rows(tmp_path)] == ["7", "9"]
    assert [e.step for e in read_events(tmp_path).Scalars("optimization/lr")] == [7, 9]
    first, _ = sorted(tmp_path.glob("events*"))  # nothing can follow half a record
    assert first == first_file


def test_starting_afresh_drops_what_was_there(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log(POSITION, TRAIN)
    tracker.close()
    started(tmp_path).close()
    assert read_rows(tmp_path) == []
    assert events(tmp_path) == []


def test_lost_records_leave_a_gap_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = started(tmp_path)
    tracker.log(POSITION, TRAIN)
    sizes = tracker.sizes()
    tracker.close()
    next(tmp_path.glob("events*")).unlink()
    tracker = Tracker(tmp_path)
    tracker.start({}, sizes)
    tracker.log({**POSITION, "step": 9}, TRAIN)
    tracker.close()
    assert "have a gap" in caplog.text
    assert [e.step for e in read_events(tmp_path).Scalars("optimization/lr")] == [9]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, active=False)
    tracker.start({})
    tracker.log(POSITION, TRAIN)
    assert tracker.sizes() == {}
    tracker.close()
    status.Status(tmp_path, active=False).update(state="running")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "metrics.csv"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="is locked by another process"):
            Tracker(tmp_path)
        other.communicate("")
    Tracker(tmp_path).close()


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*metrics.csv: No such file"):
        Tracker(tmp_path / "gone")
    outside = tmp_path / "precious.txt"
    outside.write_text("keep")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").symlink_to(outside)
    with pytest.raises(UserError, match="is a link"):
        Tracker(tmp_path / "run")
    assert outside.read_text() == "keep"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    tracker = started(tmp_path)
    assert tracker._files is not None
    tracker._files.metrics.file.close()
    tracker._files.metrics.file = full.open("wb")
    with pytest.raises(UserError, match="No space left on device"):
        tracker.log(POSITION, TRAIN)
    tracker.close()  # says so once more, and does not raise


def test_columns_are_documented() -> None:
    assert tracking.__doc__ is not None
    assert [c for c in COLUMNS if c not in tracking.__doc__] == []
    assert status.__doc__ is not None
    assert [f for f in status._EMPTY if f not in status.__doc__] == []


def test_metrics_of_an_earlier_version_keep_their_columns(tmp_path: Path) -> None:
    header = ",".join(FIRST_COLUMNS) + "\n"
    row = "1.0,5,1.0,2.0" + "," * 11 + "\n"
    (tmp_path / "metrics.csv").write_text(header + row, encoding="utf-8")
    sizes = {"metrics": len(header + row)}
    tracker = Tracker(tmp_path)
    tracker.start({}, sizes, 5)
    tracker.log({**POSITION, "step": 9}, {"val_accuracy": 0.75, "val_macro_f1": 0.125})
    tracker.close()
    first, kept, new = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert (first + "\n", kept + "\n") == (header, row)
    assert new.count(",") == header.count(",")
    assert ",0.75," in new


@pytest.mark.parametrize(
    ("folder", "name"),
    [("lr-1_seed-0/2026-11-27_22-57-35-594090-9e0b94", "lr-1_seed-0"), ("mine", "mine")],
)
def test_trackers_name_a_run_after_its_changes_or_its_folder(tmp_path, monkeypatch, folder, name):
    (tmp_path / folder).mkdir(parents=True)
    named = []
    monkeypatch.setattr(tracking, "open_feeds", lambda _, run, rows: named.append(run.name) or [])
    tracker = Tracker(tmp_path / folder)
    tracker.open_feeds(small_config("lstm"))
    tracker.close()
    assert named == [f"lstm/{name}"]
