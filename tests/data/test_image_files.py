"""Image files of all kinds, orientations and depths; damaged ones, and those that are none."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_tools import GREY, SHAPE, saved
from PIL import Image, PngImagePlugin
from small_sets import own_process

from elstm.data.placement import read_image

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")


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
        found = read_image(saved(image, tmp_path / name, **options), 8, 8)
        assert np.abs(found.astype(int) - GREY).max() <= 2, name
        inverted = read_image(tmp_path / name, 8, 8, invert=True)
        np.testing.assert_array_equal(inverted, 255 - found)
    jpeg = read_image(saved(grey.resize((800, 800)), tmp_path / "a.jpg"), 8, 8)
    assert np.abs(jpeg.astype(int) - GREY).max() < 40
    bits = Image.fromarray(GREY > 100)
    found = read_image(saved(bits, tmp_path / "bits.png"), 8, 8)
    np.testing.assert_array_equal(found, np.where(GREY > 100, 255, 0))


def test_transparent_parts_are_ground(tmp_path: Path) -> None:
    """White strokes on nothing, or black ones with --invert: both become white on black."""
    alpha = Image.fromarray(np.where(GREY > 100, 255, 0).astype(np.uint8))
    for colour, invert in ((255, False), (0, True)):
        image = Image.new("L", (8, 8), colour)
        image.putalpha(alpha)
        found = read_image(saved(image, tmp_path / "a.png"), 8, 8, invert=invert)
        np.testing.assert_array_equal(found, np.asarray(alpha))


def test_an_animation_gives_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.new("L", (8, 8), 255)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = read_image(path, 8, 8)
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
        found = read_image(saved(image, tmp_path / name, **options), 8, 8)
        assert np.abs(found.astype(int) - GREY).max() <= 6, name


LARGE = np.ones((8, 8), np.uint8)
TURNED = {  # what a camera stores where SHAPE is upright
    1: SHAPE,
    2: SHAPE[:, ::-1],
    3: SHAPE[::-1, ::-1],
    4: SHAPE[::-1],
    5: SHAPE.T,
    6: np.rot90(SHAPE),
    7: SHAPE[::-1, ::-1].T,
    8: np.rot90(SHAPE, -1),
    9: SHAPE,  # no such orientation
}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp", "late.png", "xmp.png"])
@pytest.mark.parametrize("fit", [False, True], ids=["full", "fit"])
def test_pictures_are_turned_upright(tmp_path: Path, name: str, fit: bool) -> None:
    expected = read_image(
        saved(Image.fromarray(np.kron(SHAPE, LARGE)), tmp_path / "plain.png"), 12, 8, fit=fit
    )
    for orientation, stored in TURNED.items():
        image = Image.fromarray(np.kron(stored, LARGE))
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, object] = {"exif": exif}
        if name.endswith("webp"):
            options["lossless"] = True
        if name == "xmp.png":
            xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", xmp)
            options = {"pnginfo": info}
        path = saved(image, tmp_path / name, **options)
        if name == "late.png":
            path.write_bytes(with_exif_at_the_end(path.read_bytes()))
        found = read_image(path, 12, 8, fit=fit)
        tolerance = 60 if name.endswith("jpg") else 2
        assert np.abs(found.astype(int) - expected).max() <= tolerance, orientation


def with_exif_at_the_end(png: bytes) -> bytes:
    """Moves the chunk eXIf behind the pixels, where the format allows it too."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", png[start : start + 4])[0]
    chunk, rest = png[start:end], png[:start] + png[end:]
    return rest[:-12] + chunk + rest[-12:]


def test_damaged_metadata_is_reported(tmp_path: Path) -> None:
    notes: list[str] = []
    image = Image.fromarray(GREY)
    path = saved(image, tmp_path / "a.png", exif=b"Exif\0\0MM no directory at all")
    found = read_image(path, 8, 8, note=notes.append)
    np.testing.assert_array_equal(found, GREY)
    assert notes == ["has damaged metadata: its orientation is taken as it is stored"]


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize(("bits", "dtype"), [
    (8, np.uint16), (10, np.uint16), (12, np.uint16), (14, np.uint16), (16, np.uint16),
    (8, np.int32), (12, np.int32), (20, np.int32), (31, np.int32),
])  # fmt: skip
def test_grey_levels_of_all_depths(tmp_path: Path, ending: str, bits: int, dtype: type) -> None:
    """No picture becomes black because its levels are few: the largest decides on what is white."""
    if ending == "png" and dtype is np.int32:
        pytest.skip("PNG has 16 bits")
    levels = (GREY.astype(np.int64) << (bits - 8)) | (1 << (bits - 8)) - 1
    path = saved(Image.fromarray(levels.astype(dtype)), tmp_path / f"a.{ending}")
    notes: list[str] = []
    np.testing.assert_array_equal(read_image(path, 8, 8, note=notes.append), GREY)
    if bits == 16:
        assert notes == []
    else:
        assert notes == [
            f"has grey levels that fit in {bits} bits, though stored in more: taken as {bits}-bit"
        ]


@pytest.mark.parametrize(
    ("factor", "note"),
    [
        (1 / 255, None),
        (1, None),
        (16, "has grey levels up to 4032: taken as 12-bit"),
        (257, "has grey levels up to 64764: taken as 16-bit"),
        (1e6, "has grey levels from 0 to 2.52e+08: taken as from black to white"),
    ],
)
def test_floating_point_levels(tmp_path: Path, factor: float, note: str | None) -> None:
    path = saved(Image.fromarray(GREY.astype(np.float32) * factor), tmp_path / "a.tiff")
    notes: list[str] = []
    found = read_image(path, 8, 8, note=notes.append)
    assert notes == ([] if note is None else [note])
    assert np.abs(found.astype(int) - GREY).max() <= 3


def test_levels_that_mean_nothing(tmp_path: Path) -> None:
    levels = np.where(GREY > 100, np.nan, 1.0).astype(np.float32)
    notes: list[str] = []
    found = read_image(saved(Image.fromarray(levels), tmp_path / "a.tiff"), 8, 8, note=notes.append)
    assert notes == ["has pixels that are NaN or infinite: taken as black"]
    np.testing.assert_array_equal(found, np.where(GREY > 100, 0, 255))
    path = saved(Image.fromarray(levels * np.nan), tmp_path / "b.tiff")
    with pytest.raises(ValueError, match="none of its pixels is a finite number"):
        read_image(path, 8, 8)
    path = saved(Image.fromarray(GREY.astype(np.int32) - 9), tmp_path / "c.tiff")
    with pytest.raises(ValueError, match="below 0 or above 2,147,483,647: save it in 16 bits"):
        read_image(path, 8, 8)
    negative = Image.fromarray(GREY.astype(np.float32) - 126)
    notes.clear()
    found = read_image(saved(negative, tmp_path / "d.tiff"), 8, 8, note=notes.append)
    assert notes == ["has grey levels from -126 to 126: taken as from black to white"]
    assert np.abs(found.astype(int) - GREY).max() <= 3


def test_a_transparent_grey_level_is_ground(tmp_path: Path) -> None:
    levels = np.where(GREY > 100, 65535, 513).astype(np.uint16)
    path = saved(Image.fromarray(levels), tmp_path / "a.png", transparency=513)
    found = read_image(path, 8, 8, invert=True)
    np.testing.assert_array_equal(found, 0)  # white strokes on what --invert yes takes for white
    np.testing.assert_array_equal(read_image(path, 8, 8), np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize("colour", [255, 0])
@pytest.mark.parametrize("fit", [False, True], ids=["full", "fit"])
def test_strokes_on_nothing(tmp_path: Path, colour: int, fit: bool) -> None:
    """The colour of the strokes tells what lies under them."""
    image = Image.new("L", (12, 12), colour)
    alpha = np.pad(SHAPE, ((0, 0), (2, 2)))
    image.putalpha(Image.fromarray(alpha))
    plain = saved(Image.fromarray(alpha), tmp_path / "plain.png")
    notes: list[str] = []
    path = saved(image, tmp_path / "a.png")
    found = read_image(path, 12, 12, invert=None, fit=fit, note=notes.append)
    np.testing.assert_array_equal(found, read_image(plain, 12, 12, fit=fit))
    assert notes == ([] if colour else ["is dark on light and was inverted (--invert no keeps it)"])


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_a_picture_of_several_is_reported(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(GREY)
    options = {"lossless": True} if name == "a.webp" else {}
    notes: list[str] = []
    read_image(saved(image, tmp_path / name, **options), 8, 8, note=notes.append)
    assert notes == []
    more = {"save_all": True, "append_images": [Image.new("L", (8, 8), 9)], **options}
    read_image(saved(image, tmp_path / name, **more), 8, 8, note=notes.append)
    assert notes == ["holds several pictures (an animation or pages): the first was taken"]


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
            read_image(tmp_path / name, 8, 8)


MUTATED = r"""
import io, random, resource, sys, warnings
from pathlib import Path
import numpy as np
from PIL import Image
from elstm.data.image_files import formats
from elstm.data.placement import read_image
from small_sets import peak

count, path = int(sys.argv[1]), Path(sys.argv[2])
warnings.simplefilter("error")
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
files = []
for name in formats():
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
        read_image(path, 8, 8)
        read += 1
    except ValueError as error:
        assert "\n" not in str(error), error
print(read, peak())
"""


@LINUX
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_images_end_in_a_reason_in_bounded_memory(tmp_path: Path, count: int) -> None:
    """Runs in a process that may use 3 GB."""
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
from elstm.data.image_files import formats
from elstm.data.placement import read_image
from small_sets import peak

Image.MAX_IMAGE_PIXELS = None
options = {"fit": sys.argv[3] == "fit", "invert": None}
read_image(Path(sys.argv[1]), 28, 28, **options)
before = peak()
read_image(Path(sys.argv[2]), 28, 28, **options)
print(peak() - before)
"""


@LINUX
@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("RGBA", "full"),
        pytest.param("I;16", "full", marks=pytest.mark.slow),
        pytest.param("RGBA", "fit", marks=pytest.mark.slow),
    ],
)
def test_the_largest_image_takes_little_more_than_its_pixels(
    tmp_path: Path, mode: str, how: str
) -> None:
    small = saved(Image.new(mode, (8, 8)), tmp_path / "small.png")
    size = (7_070, 7_070)
    large = saved(Image.new(mode, size), tmp_path / "large.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", LARGEST, str(small), str(large), how],
        env=own_process(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 320  # MiB: 191 decoded, 48 in grey


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match="not an image that can be read"):
        read_image(path, 8, 8)
