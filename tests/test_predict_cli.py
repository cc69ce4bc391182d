"""elstm-predict: image files of all kinds to CSV, and the bad ones each a line."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import small_config

from elstm import figures, predict, trained, training
from elstm.config import Config
from elstm.data import ImageSequences, load_data


@pytest.fixture(scope="module")
def config() -> Config:
    return small_config(max_epochs=2, lr=0.05, data={"permute": True})


@pytest.fixture(scope="module")
def data(config: Config) -> ImageSequences:
    return load_data(config.data)


@pytest.fixture(scope="module")
def trained_run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "gradient_figure", lambda *_: b"a picture")
        training.run(config, folder)
    return folder


@pytest.fixture(autouse=True)
def its_config(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was made without Hydra; reading .hydra/config.yaml is tested elsewhere."""
    monkeypatch.setattr(trained, "load_run_config", lambda run_dir: config)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predictions_are_those_of_the_evaluation(
    trained_run: Path, data: ImageSequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test images as files, in several batches, without the data set."""
    monkeypatch.setattr(predict, "BATCH", 7)
    images = data.test.images[:20].view(-1, 8, 8).numpy()
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "out.csv"
    assert predict.main([str(trained_run), str(folder), "--output", str(out)]) == 0
    rows = read(out.read_text())
    assert [Path(r["file"]).name for r in rows] == [f"{i:02}.png" for i in range(20)]
    model = trained.load_trained(trained_run).model
    with torch.no_grad():
        expected = model(data.sequences(data.test.images[:20])).softmax(1)
    found = np.array([[float(r[f"p({d})"]) for d in range(10)] for r in rows])
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
    assert [int(r["predicted"]) for r in rows] == expected.argmax(1).tolist()
    assert [r["probability"] for r in rows] == [r[f"p({r['predicted']})"] for r in rows]


def test_bad_files_are_a_line_each(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, text, half = tmp_path / "good.png", tmp_path / "text.png", tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(good)
    text.write_text("no image")
    half.write_bytes(good.read_bytes()[:-2000])
    large, huge = tmp_path / "large.png", tmp_path / "huge.png"
    large.write_bytes(png_that_claims(8_000, 8_000))
    huge.write_bytes(png_that_claims(60_000, 60_000))
    words = [good, text, half, large, huge, tmp_path / "gone.png", good]
    assert predict.main([str(trained_run), *map(str, words)]) == 1
    captured = capsys.readouterr()
    assert [r["file"] for r in read(captured.out)] == [str(good), str(good)]
    lines = captured.err.splitlines()
    for line, (path, message) in zip(
        lines,
        [
            (text, "not an image that can be read"),
            (half, "truncated"),
            (large, "it has too many pixels, at most 50,000,000"),
            (huge, "it has too many pixels, at most 50,000,000"),
            (tmp_path / "gone.png", "there is no such file"),
            ("error", "5 of 7 files could not be read"),
        ],
        strict=True,
    ):
        assert line.startswith(f"elstm-predict: {path}: ")
        assert message in line


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that say they are a huge picture, all black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


GREY = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_every_kind_of_image(tmp_path: Path) -> None:
    grey = Image.fromarray(GREY)
    for name, image in {
        "grey.png": grey,
        "rgb.png": grey.convert("RGB"),
        "palette.gif": grey.convert("P"),
        "cmyk.tiff": grey.convert("CMYK"),
        "large.png": grey.resize((80, 80), Image.Resampling.NEAREST),
        "sixteen.png": Image.fromarray(GREY.astype(np.uint16) * 257),
        "opaque.webp": grey.convert("RGBA"),
        "integer.tiff": Image.fromarray(GREY.astype(np.int32) * 257),
    }.items():
        options = {"lossless": True} if name.endswith("webp") else {}
        found = predict.read_image(saved(image, tmp_path / name, **options), 8, 8)
        assert np.abs(found.astype(int) - GREY).max() <= 2, name
        inverted = predict.read_image(tmp_path / name, 8, 8, invert=True)
        np.testing.assert_array_equal(inverted, 255 - found)
    jpeg = predict.read_image(saved(grey.resize((800, 800)), tmp_path / "a.jpg"), 8, 8)
    assert np.abs(jpeg.astype(int) - GREY).max() < 40
    bits = Image.fromarray(GREY > 100)
    found = predict.read_image(saved(bits, tmp_path / "bits.png"), 8, 8)
    np.testing.assert_array_equal(found, np.where(GREY > 100, 255, 0))


def test_transparent_parts_are_ground(tmp_path: Path) -> None:
    """White strokes on nothing, or black ones with --invert: both become white on black."""
    alpha = Image.fromarray(np.where(GREY > 100, 255, 0).astype(np.uint8))
    for colour, invert in ((255, False), (0, True)):
        image = Image.new("L", (8, 8), colour)
        image.putalpha(alpha)
        found = predict.read_image(saved(image, tmp_path / "a.png"), 8, 8, invert=invert)
        np.testing.assert_array_equal(found, np.asarray(alpha))


def test_an_animation_gives_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.new("L", (8, 8), 255)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = predict.read_image(path, 8, 8)
    assert np.abs(found.astype(int) - GREY).max() <= 2


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match="not an image that can be read"):
        predict.read_image(path, 8, 8)


def test_user_errors(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(saved(Image.fromarray(GREY), tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "gone", image], "there is no run folder"),
        ([trained_run, tmp_path / "empty"], "there are no images in"),
        ([trained_run, image, "--output", tmp_path / "gone" / "x.csv"], "cannot write"),
    ):
        assert predict.main([str(word) for word in words]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("elstm-predict: error: ")
        assert message in captured.err
