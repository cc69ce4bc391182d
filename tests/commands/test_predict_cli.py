"""elstm-predict: image files of all kinds to CSV, and the bad ones each a line."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import own_process
from training_runs import small_config

from elstm.commands import predict
from elstm.config.schema import Config
from elstm.data.sequences import ImageSequences, load_data
from elstm.records import pictures as figures
from elstm.training import run as training
from elstm.training import trained

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")


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


def test_other_ways_of_storing_colours(tmp_path: Path) -> None:
    grey = Image.fromarray(GREY)
    rgba = grey.convert("RGBA")
    for name, image, options in (
        ("float.tiff", Image.fromarray(GREY.astype(np.float32) / 255), {}),
        ("float255.tiff", Image.fromarray(GREY.astype(np.float32)), {}),
        ("sixteen.tiff", Image.fromarray(GREY.astype(np.uint16) * 257), {}),
        ("palette.png", grey.convert("RGB").quantize(64), {}),
        ("transparent_palette.png", rgba.quantize(64), {}),
        ("grey_alpha.png", grey.convert("LA"), {}),
        ("cmyk.jpg", grey.resize((64, 64), 0).convert("CMYK"), {"quality": 100}),
        ("lab.tiff", grey.convert("RGB").convert("YCbCr"), {}),
        ("a.webp", rgba, {"lossless": True}),
        ("a.bmp", grey, {}),
        ("a.jp2", grey, {}),
        ("a.ppm", grey, {}),
        ("wrong_ending.jpg", grey, {"format": "PNG"}),
        ("animated.png", grey, {"save_all": True, "append_images": [Image.new("L", (8, 8), 9)]}),
    ):
        found = predict.read_image(saved(image, tmp_path / name, **options), 8, 8)
        assert np.abs(found.astype(int) - GREY).max() <= 6, name


def test_files_that_are_no_images_are_a_reason_each(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "hole.png").open("wb") as file:
        file.truncate(10**12)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + bytes(9)
    (tmp_path / "screen.gif").write_bytes(gif)
    (tmp_path / "pdf.png").write_bytes(b"%PDF-1.7")
    for name, reason in (
        ("folder.png", "not a plain file"),
        ("empty.png", "it is empty"),
        ("pipe.png", "not a plain file"),
        ("link.png", "there is no such file"),
        ("loop.png", "Too many levels of symbolic links"),
        ("zero.png", "not a plain file"),
        ("hole.png", "larger than 200,000,000 bytes"),
        ("screen.gif", "too many pixels"),
        ("pdf.png", "not an image that can be read (PNG, JPEG"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            predict.read_image(tmp_path / name, 8, 8)


MUTATED = r"""
import io, random, resource, sys, warnings
from pathlib import Path
import numpy as np
from PIL import Image
from elstm.commands import predict
from small_sets import peak

count, path = int(sys.argv[1]), Path(sys.argv[2])
warnings.simplefilter("error")
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
files = []
for name in predict._formats():
    buffer = io.BytesIO()
    try:
        image.save(buffer, name, **({"append_images": [image], "save_all": True} if name in
                   ("GIF", "WEBP", "PNG", "TIFF") else {}))
    except (OSError, ValueError, KeyError):
        continue
    files.append((name, buffer.getvalue()))
assert len(files) > 10
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
draw, read = random.Random(int(sys.argv[3])), 0
for _ in range(count):
    name, whole = draw.choice(files)
    content = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 5])):
        how, head = draw.randrange(4), draw.choice([120, 120, len(content)])
        place = draw.randrange(min(len(content), head))
        if how == 0:
            content[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        elif how == 1:
            content[place : place + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        elif how == 2:
            del content[place : place + draw.randrange(1, 30)]
        else:
            del content[max(place, 8):]
        if not content:
            break
    path.write_bytes(content)
    try:
        predict.read_image(path, 8, 8)
        read += 1
    except ValueError as error:
        assert "\n" not in str(error), error
print(read, peak())
"""


@LINUX
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_images_end_in_a_reason_in_bounded_memory(tmp_path: Path, count: int) -> None:
    """In a process that may have 3 GB."""
    done = subprocess.run(
        [sys.executable, "-c", MUTATED, str(count), str(tmp_path / "a"), "0"],
        env=own_process(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read, mebibytes = map(int, done.stdout.split())
    assert 0 < read < count
    assert mebibytes < 300


LARGEST = """
import sys
from pathlib import Path
from PIL import Image
from elstm.commands import predict
from small_sets import peak

Image.MAX_IMAGE_PIXELS = None
predict.read_image(Path(sys.argv[1]), 28, 28)
before = peak()
predict.read_image(Path(sys.argv[2]), 28, 28)
print(peak() - before)
"""


@LINUX
@pytest.mark.parametrize("mode", ["RGBA", pytest.param("I;16", marks=pytest.mark.slow)])
def test_the_largest_image_takes_little_more_than_its_pixels(tmp_path: Path, mode: str) -> None:
    small = saved(Image.new(mode, (8, 8)), tmp_path / "small.png")
    size = (7_070, 7_070)
    large = saved(Image.new(mode, size), tmp_path / "large.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", LARGEST, str(small), str(large)],
        env=own_process(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 320  # MiB: 191 decoded, 48 in grey


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
