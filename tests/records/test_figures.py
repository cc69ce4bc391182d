"""The pictures: that they are made of whatever comes. How they look is for the eye."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from elstm.records.pictures import confusion_figure, gradient_figure


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


@pytest.mark.parametrize(
    "norms",
    [np.geomspace(1e-30, 1, 784), np.array([0.5]), np.zeros(5), np.array([0, np.nan, 1, np.inf])],
    ids=["vanishing", "one step", "zero", "not finite"],
)
def test_gradient(norms: np.ndarray) -> None:
    width, height = size(gradient_figure(norms, 1.0, "lstm on digits"))
    assert width > height > 200


def test_confusion() -> None:
    confusion = np.diag([1000, 0, 3])
    small = size(confusion_figure(confusion, ["a", "b", "a long name"], "title"))
    large = size(confusion_figure(np.eye(30, dtype=int), [str(i) for i in range(30)], "title"))
    assert large[0] > small[0]
