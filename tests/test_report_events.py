import struct

import numpy as np
import pytest
from synthetic_runs import STEPS_PER_EPOCH, write_events, write_run

from elstm.report import main
from elstm.reporting.events import read_events

GAMMA = "gamma/norm_c_l0"
POINTS = [np.array([1.0, 1.0]), np.array([0.5, 1.5])]
GRADIENT = np.array([1e-3, 1e-2, 0.1])


@pytest.fixture
def path(tmp_path):
    return write_events(tmp_path, {GAMMA: POINTS}, {"over_time/gradient": GRADIENT})


def test_histograms_give_mean_and_standard_deviation(path):
    events = read_events(path.parent)
    series = events.histograms[GAMMA]
    assert series.step == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    assert series.mean == [1, 1]
    assert series.sd == [0, 0.5]
    assert events.over_time["over_time/gradient"] == pytest.approx(GRADIENT, rel=1e-6)


def test_a_record_that_is_being_written_is_left_out(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    events = read_events(path.parent)
    assert events.over_time == {}
    assert len(events.histograms[GAMMA].step) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,  # a length of 2^64 - 1
        struct.pack("<QI", 3, 0) + b"\xff\xff\xff" + b"\0" * 4,  # no event
    ],
)
def test_damaged_event_files_hold_nothing(path, content):
    path.write_bytes(content)
    events = read_events(path.parent)
    assert (events.histograms, events.over_time) == ({}, {})


def test_links_are_not_read(path, tmp_path):
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert read_events(path.parent).histograms == {}


def test_the_report_shows_them(tmp_path):
    for model in ("bn_lstm", "elstm_bn"):
        folder = write_run(tmp_path / "runs" / model, model, epochs=2)
        norms = [
            f"{kind}/{n}" for kind in ("gamma", "running_var") for n in ("norm_c_l0", "norm_hh_l0")
        ]
        cell = {"over_time/gradient": GRADIENT, "over_time/cell_std/norm_c_l0": GRADIENT}
        write_events(folder, dict.fromkeys(norms, POINTS), cell)
    write_run(tmp_path / "runs/lstm", "lstm", epochs=2)
    main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    text = (tmp_path / "report/report.md").read_text()
    assert "### Inside the recurrence" in text
    for kind in ("normalisation", "time-steps"):
        svg = (tmp_path / f"report/figures/fashion_mnist-{kind}.svg").read_text()
        assert svg.count("<!-- elstm_bn -->") == 1
        assert "<!-- lstm -->" not in svg  # has no such records
        assert "$" not in svg  # no formula that is not set
