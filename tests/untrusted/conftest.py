"""A run folder that each test of untrusted input changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf, open_dict
from PIL import Image
from training_runs import without_pictures
from untrusted_runs import WORDS

from elstm.config.compose import Composer
from elstm.training import run as training


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as elstm-train leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    cfg, config = Composer().compose(WORDS)
    (folder / ".hydra").mkdir(parents=True)
    with open_dict(cfg):
        OmegaConf.save(cfg.hydra, folder / ".hydra" / "hydra.yaml")
        del cfg["hydra"]
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        training.run(config, folder)
    (folder / "train.log").touch()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that run. No test may leave a file named harm, which malicious code would make."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    monkeypatch.chdir(tmp_path)
    yield folder
    assert not list(tmp_path.rglob("harm"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    return path
