"""The pictures: that they are made of whatever comes. How they look is for the eye."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from elstm.records.drawing import isolated_settings, png
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


@pytest.mark.parametrize(
    ("classes", "widest"),
    [(2, 700), (10, 1100), pytest.param(60, 2200, marks=pytest.mark.slow)],
)
def test_confusion(classes: int, widest: int) -> None:
    """Pictures fit a screen from 2 to 60 classes."""
    confusion = np.full((classes, classes), 2) + 96 * np.eye(classes, dtype=int)
    names = [f"class {i}" for i in range(classes - 1)] + ["a name that is far too long" * 9]
    with isolated_settings():
        figure = confusion_figure.__wrapped__(confusion, names, "title " * 20)
        png(figure)
        texts = figure.findobj(lambda each: isinstance(each, Text) and each.get_text().strip())
        boxes = [text.get_window_extent() for text in texts]
    width, height = figure.bbox.size
    assert 400 < width < widest
    assert 300 < height < widest
    for text, box in zip(texts, boxes, strict=True):  # nothing is cut off
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    cells = figure.axes[0].get_window_extent()
    assert min(cells.width, cells.height) >= 0.9 * figure.dpi * 0.24 * classes


def test_confusion_of_a_thousand_classes() -> None:
    """The memory that drawing takes does not grow with the classes."""
    names = [f"class {i}" for i in range(1000)]
    with isolated_settings():
        figure = confusion_figure.__wrapped__(np.diag(np.arange(1000)), names, "title")
    assert max(figure.bbox.size) < 3300
    assert not list(figure.axes[0].texts)
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels[::50]] == ["class 0 (0)", "class 500 (500)"]
    assert [label.get_position()[1] for label in labels[::50]] == [0, 500]


def test_confusion_is_in_per_cent_of_each_class() -> None:
    """A class of 1,000 images and one of 10 can be compared, and one without images is empty."""
    confusion = np.array([[999, 1, 0], [4, 6, 0], [0, 0, 0]])
    with isolated_settings():
        axes = confusion_figure.__wrapped__(confusion, ["a", "b", "c"], "title").axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "99.9", (1, 0): "0.1", (0, 1): "40.0", (1, 1): "60.0"}
    counts = [label.get_text() for label in axes.get_yticklabels()]
    assert counts == ["a (1000)", "b (10)", "c (0)"]
