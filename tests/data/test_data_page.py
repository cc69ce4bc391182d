"""elstm/data/README.md: its commands run as they stand, and a source is added by following it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from own_data import sequences, write_arrays
from PIL import Image

import elstm.data
from elstm import train
from elstm.data.catalog import READERS
from elstm.records.status import read_status

pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = Path(elstm.data.__file__).parents[2]
PAGE = (Path(elstm.data.__file__).parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\| [^|`]*(?:`[^`]*`[^|`]*)*\| `(elstm-train .*)` \|$", PAGE, re.MULTILINE)


def write_tables(folder: Path) -> None:
    """walks.csv, and the folder walks with a table for each split."""
    (folder / "walks").mkdir()
    arrays = sequences(60)
    lines = ["walk,person,second,x,y"]
    for walk, (values, length) in enumerate(zip(arrays["X"], arrays["lengths"], strict=True)):
        person = ("Ann", "Bo", "Cy")[arrays["y"][walk]]
        lines += [
            f"{walk},{person},{t},{x:.4f},{y:.4f}" for t, (x, y) in enumerate(values[:length])
        ]
    text = "\n".join(lines) + "\n"
    Path("walks.csv").write_text(text, encoding="utf-8")
    for split in ("train", "val", "test"):
        (folder / "walks" / f"{split}.csv").write_text(text, encoding="utf-8")


def write_ts(folder: Path) -> None:
    folder.mkdir()
    for end in ("TRAIN", "TEST"):
        arrays = sequences(48, unequal=False)
        lines = ["@problemName Waves", "@timeStamps false", "@classLabel true a b c", "@data"]
        for values, label in zip(arrays["X"], arrays["y"], strict=True):
            dimensions = [",".join(f"{value:.4f}" for value in column) for column in values.T]
            lines.append(":".join([*dimensions, "abc"[label]]))
        (folder / f"Waves_{end}.ts").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page's commands name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("gestures.npz"))
    arrays = sequences(60)
    np.savez("channels.npz", X=arrays["X"].transpose(0, 2, 1), y=arrays["y"])
    write_tables(tmp_path)
    write_ts(Path("Waves"))
    draw = np.random.default_rng(0)
    for label, size in (("cat", (9, 8)), ("dog", (8, 8))):
        (Path("photos") / label).mkdir(parents=True)
        for number in range(25):
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("photos") / label / f"{number}.png")
    return tmp_path


def test_the_page_has_a_command_for_each_source() -> None:
    sources = {re.findall(r"data=(\w+)", command)[0] for command in COMMANDS}
    assert sources == set(READERS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(files: Path, command: str) -> None:
    words = shlex.split(command)[1:]
    assert train.main([*words, "trainer.device=cpu", "trainer.max_steps=1"]) == 0
    (status,) = Path("outputs").rglob("status.json")
    found = read_status(status.parent)
    assert found is not None
    assert found["state"] == "done"


def test_cross_validation(files: Path) -> None:
    (command,) = re.findall(r"`(elstm-train -m .*)`", PAGE)
    assert train.main([*shlex.split(command)[1:], "trainer.device=cpu", "trainer.max_steps=1"]) == 0
    assert len(list(Path("outputs").rglob("status.json"))) == 3


def _blocks(kind: str) -> list[str]:
    found = re.findall(rf"^( *)```{kind}\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def test_settings_in_a_file(files: Path) -> None:
    Path("configs/data").mkdir(parents=True)
    Path("configs/data/mine.yaml").write_text(_blocks("yaml")[0], encoding="utf-8")
    words = ["--config-dir", "configs", "data=mine", "trainer.device=cpu", "trainer.max_steps=1"]
    assert train.main(words) == 0


@pytest.mark.slow
def test_a_source_is_added(files: Path) -> None:
    """Runs in another process, because the table of sources is read when elstm is imported."""
    (reader,) = _blocks("python")
    Path("my_lines.py").write_text(reader, encoding="utf-8")
    Path("configs/data").mkdir(parents=True)
    Path("configs/data/lines.yaml").write_text(_blocks("yaml")[1], encoding="utf-8")
    answers = "".join(f"yes: {i} 2 3\nno: 1 {i}\n" for i in range(40))
    Path("answers.txt").write_text(answers, encoding="utf-8")
    (line,) = re.findall(r"Add an entry to `READERS` .*?: `(.*?)`", PAGE)
    (command,) = re.findall(r"`(elstm-train --config-dir configs data=lines .*?)`", PAGE)
    program = (
        f"from elstm.data import catalog, readers\ncatalog.READERS.update({{{line}}})\n"
        "readers.__path__.append('.')\n"
        f"from elstm.train import main\nraise SystemExit(main({shlex.split(command)[1:]!r} + "
        "['trainer.device=cpu', 'trainer.max_steps=1', 'trainer.progress=false']))"
    )
    root = str(Path(elstm.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "answers: 58 training, 10 validation, 12 test sequences of 2 to 3 steps x 1 feature" in (
        result.stdout
    )
