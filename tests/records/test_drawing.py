"""Figures are the same whatever matplotlib's settings are, and none of them is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from elstm.records import drawing
from elstm.records.pictures import confusion_figure, gradient_figure

DRAWN = """
import os, sys, warnings
warnings.simplefilter("error")
before = dict(os.environ), os.getcwd()
import numpy as np
from elstm.records.pictures import gradient_figure
png = gradient_figure(np.geomspace(1e-6, 1, 9), 1.0, "lstm on digits")
import elstm.reporting.style
assert sys.modules["matplotlib"].rcParams["backend"].lower() == "agg"
after = dict(os.environ), os.getcwd()
# matplotlib itself names the cache folder that it makes.
assert {**before[0], "MPLCONFIGDIR": ""} == {**after[0], "MPLCONFIGDIR": ""}
assert before[1] == after[1]
sys.stdout.buffer.write(png)
"""
TEX = "text.usetex: True\naxes.prop_cycle: cycler('color', [])\nfigure.dpi: 7\n"


def expected() -> bytes:
    return gradient_figure(np.geomspace(1e-6, 1, 9), 1.0, "lstm on digits")


@pytest.mark.parametrize("kind", ["text", "binary", "pipe"])
def test_settings_of_the_folder_the_user_and_the_environment(tmp_path: Path, kind: str) -> None:
    """Runs in another process, because matplotlib reads them while it is imported."""
    here, elsewhere = tmp_path / "matplotlibrc", tmp_path / "elsewhere"
    elsewhere.write_text(TEX + "font.family: no such font\n")
    environment = {"MATPLOTLIBRC": str(elsewhere), "MPLBACKEND": "nonsense"}
    if kind == "text":
        here.write_text(TEX + "axes.formatter.use_locale: True\nbackend: TkAgg\nnonsense\n")
        folder = tmp_path / "config"
        folder.mkdir()
        (folder / "matplotlibrc").write_text(TEX)
        environment = {"MPLCONFIGDIR": str(folder), "MPLBACKEND": "TkAgg"}
    elif kind == "binary":
        here.write_bytes(b"\xff\xfe\x00")
        environment["MPLCONFIGDIR"] = "/dev/null/nowhere"
    else:
        os.mkfifo(here)
    done = subprocess.run(
        [sys.executable, "-c", DRAWN], cwd=tmp_path, env={**os.environ, **environment},
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stderr == b""
    assert done.stdout == expected()


@pytest.mark.parametrize(
    "settings",
    [
        {"text.usetex": True},
        {"axes.prop_cycle": matplotlib.cycler(color=[])},
        {"path.effects": [3], "savefig.bbox": "tight", "figure.dpi": 9, "font.size": 30},
    ],
    ids=["TeX", "no colours", "looks"],
)
def test_settings_of_the_process(settings: dict[str, object]) -> None:
    plain = expected()
    with matplotlib.rc_context(settings):
        assert expected() == plain
        for name, value in settings.items():  # the process's own are restored
            assert matplotlib.rcParams[name] == value


def test_settings_are_those_of_the_figure_alone() -> None:
    size = matplotlib.rcParams["font.size"]
    with drawing.isolated_settings({"font.size": size + 1}):
        assert matplotlib.rcParams["font.size"] == size + 1
    assert matplotlib.rcParams["font.size"] == size


def test_a_dollar_is_no_formula() -> None:
    title = r"$\frac{$ on $x"
    gradient_figure(np.ones(3), 1.0, title)
    confusion_figure(np.eye(2, dtype=int), ["$^$", "$\\"], title)
