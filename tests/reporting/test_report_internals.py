import numpy as np
import pytest
from synthetic_runs import write_inside, write_run

from elstm.commands.report import main
from elstm.records.stored import RunFolder
from elstm.reporting.internals import read_internals

NORMS = {"norm_ih_l0": [(1.0, 0.0, 0.4), (0.9, 0.1, 0.5)], "norm_c_l0": [(1.0, 0.0, 1.0)]}
OVER_TIME = {"gradient": [1e-3, 1e-2, 0.1], "cell_mean": [0.0, 0.1, 0.2]}


def inside_of(folder):
    return read_internals(RunFolder("run", folder))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return write_inside(tmp_path / "run", NORMS, OVER_TIME)


def test_what_a_run_recorded(run):
    inside = inside_of(run)
    assert list(inside.norms) == ["norm_ih_l0", "norm_c_l0"]
    course = inside.norms["norm_ih_l0"]
    assert course.epoch.tolist() == [1, 2]
    assert (course.gamma_mean.tolist(), course.gamma_std.tolist()) == ([1, 0.9], [0, 0.1])
    assert course.spread.tolist() == [0.4, 0.5]
    assert {name: values.tolist() for name, values in inside.over_time.items()} == OVER_TIME


def test_a_line_that_is_being_written_is_left_out(run):
    path = run / "over_time.csv"
    path.write_text(path.read_text()[:-2])
    assert inside_of(run).over_time["gradient"].tolist() == OVER_TIME["gradient"][:2]


@pytest.mark.parametrize(
    "content", ["", "\0", "t\n1\n", "a,b\n", "t,gradient\n1,x\n", "t,gradient"]
)
def test_damaged_files_hold_nothing(run, content):
    (run / "over_time.csv").write_text(content)
    (run / "norms.csv").write_bytes(b"\xff\xfe")
    inside = inside_of(run)
    assert (inside.norms, inside.over_time) == ({}, {})


def test_links_are_not_read(run, tmp_path):
    (run / "norms.csv").rename(tmp_path / "elsewhere")
    (run / "norms.csv").symlink_to(tmp_path / "elsewhere")
    assert inside_of(run).norms == {}


def test_the_report_shows_them(tmp_path):
    for model in ("bn_lstm", "elstm_bn"):
        folder = write_run(tmp_path / "runs" / model, model, epochs=2)
        write_inside(folder, NORMS, OVER_TIME)
    write_run(tmp_path / "runs/lstm", "lstm", epochs=2)
    main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    text = (tmp_path / "report/report.md").read_text()
    assert "### Inside the recurrence" in text
    for kind in ("normalisation", "time-steps"):
        svg = (tmp_path / f"report/figures/fashion_mnist-{kind}.svg").read_text()
        assert svg.count("<!-- elstm_bn -->") == 1
        assert "<!-- lstm -->" not in svg  # has no such records
        assert "$" not in svg  # no formula that is not set


def test_the_tracker_writes_what_is_read(tmp_path):
    from elstm.models import SequenceClassifier
    from elstm.nn import BNLSTM
    from elstm.records.tracking import Tracker

    tracker = Tracker(tmp_path)
    tracker.start({})
    model = SequenceClassifier(BNLSTM(3, 2, max_steps=5, gamma_c=0.5), 2)
    tracker.log_norms(model, {"epoch": 1.0, "step": 7})
    tracker.write_over_time({name: np.array(values) for name, values in OVER_TIME.items()})
    tracker.close()
    inside = inside_of(tmp_path)
    assert list(inside.norms) == ["norm_ih_l0", "norm_hh_l0", "norm_c_l0"]
    assert inside.norms["norm_c_l0"].gamma_mean.tolist() == [0.5]
    assert inside.over_time["gradient"].tolist() == OVER_TIME["gradient"]
