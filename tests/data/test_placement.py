"""Digits of people's own, brought into the form of MNIST's: light and dark, place and size."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import own_digits
import pytest
import torch
from PIL import Image

from elstm.commands import predict
from elstm.commands.prediction_rows import CsvRows
from elstm.data.image_sets import load_image_set
from elstm.data.placement import has_light_ground, read_image
from elstm.models import build_model


@pytest.fixture(scope="module")
def trained() -> SimpleNamespace:
    """Gives an eLSTM-BN of 64 units that was trained on MNIST's rows for 5 epochs (98.4 %).

    elstm-train experiment=mnist_rows model=elstm_bn model.hidden_size=64 trainer.max_epochs=5;
    the weights are kept in half precision.
    """
    kept = torch.load(Path(__file__).parent / "mnist_rows.pt", weights_only=True)
    options = {"hidden_size": 64}
    model = build_model("elstm_bn", options, input_size=28, num_steps=28, num_classes=10)
    model.load_state_dict(kept["model"])
    return SimpleNamespace(model=model.eval(), facts=kept["facts"])


def right(
    trained: SimpleNamespace, paths: list[Path], digits: list[int], **options: bool | None
) -> int:
    """Predicts as the command does, and counts the right answers."""
    out = io.StringIO()
    predict._Predictor(trained, **{"invert": None, "fit": True, **options}).run(paths, CsvRows(out))
    rows = csv.DictReader(io.StringIO(out.getvalue()))
    return sum(row["predicted"] == str(d) for row, d in zip(rows, digits, strict=True))


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in own_digits.KINDS
        if kind not in own_digits.FAST]  # fmt: skip


@pytest.mark.parametrize("kind", [*own_digits.FAST, *SLOW])
def test_own_digits(trained: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    """The fonts are not handwriting; of MNIST's own digits, see the next test, all are right."""
    digits = own_digits.font_digits()
    paths = own_digits.write(kind, digits, tmp_path)
    assert right(trained, paths, [digit for digit, _ in digits]) >= 55


@pytest.mark.slow
@pytest.mark.skipif("ELSTM_DATA" not in os.environ, reason="needs MNIST in ELSTM_DATA")
@pytest.mark.parametrize("kind", own_digits.KINDS)
def test_handwritten_digits(trained: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    test = load_image_set("mnist", os.environ["ELSTM_DATA"]).test
    digits = []
    for digit in range(10):
        for index in (test.labels == digit).nonzero().flatten()[:6].tolist():
            image = Image.fromarray(test.images[index].view(28, 28).numpy())
            shape = image.crop(image.point(lambda level: 255 * (level > 40)).getbbox())
            scale = 200 / max(shape.size)
            size = (round(scale * shape.width), round(scale * shape.height))
            digits.append((digit, shape.resize(size, Image.Resampling.BICUBIC)))
    paths = own_digits.write(kind, digits, tmp_path)
    assert right(trained, paths, [digit for digit, _ in digits]) >= 58


def test_content_is_placed_as_in_mnist(tmp_path: Path) -> None:
    """Cropped, with its aspect kept, in a box of 20 x 20, its centre of mass in the middle."""
    shape = np.zeros((300, 500), np.uint8)
    shape[50:250, 400:420] = 255  # an L that leans on the right side
    shape[230:250, 360:420] = 255
    path = tmp_path / "a.png"
    Image.fromarray(shape).save(path)
    placed = read_image(path, 28, 28, invert=None, fit=True)
    lines, across = (placed > 40).any(1).nonzero()[0], (placed > 40).any(0).nonzero()[0]
    assert np.ptp(lines) + 1 == 20
    assert np.ptp(across) + 1 == 6
    mass = placed / placed.sum()
    assert abs((mass.sum(1) * np.arange(28)).sum() - 14) <= 0.5
    assert abs((mass.sum(0) * np.arange(28)).sum() - 14) <= 0.5
    assert placed.max() == 255
    full = read_image(path, 28, 28, invert=None, fit=True, box=1.0)
    assert (full > 40).any(1).all()
    on_light = read_image(path, 28, 28, invert=None, fit=True, dark_ground=False)
    np.testing.assert_array_equal(on_light, 255 - placed)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (5, 4000)])
@pytest.mark.parametrize("fit", [False, True], ids=["full", "fit"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], fit: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for invert in (None, True, False):
        assert read_image(tmp_path / "a.png", 28, 28, invert=invert, fit=fit).shape == (28, 28)


def test_ground_of_a_set_and_its_negative() -> None:
    images = load_image_set("digits", "").test.images.view(-1, 8, 8).numpy()
    assert {has_light_ground(image) for image in images} == {False}
    assert {has_light_ground(255 - image) for image in images} == {True}
    assert has_light_ground(np.full((8, 8), 7, np.uint8)) is None
