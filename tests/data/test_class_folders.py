"""Pictures in class folders: what is read, and one clear message for each fault."""

import os

import numpy as np
import pytest
from PIL import Image

from elstm.data import labelled
from elstm.data.placement import read_image
from elstm.data.readers.image_folders import read_image_folders
from elstm.errors import UserError


def picture(path, level, size=(3, 2), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level).save(path)


def test_class_folders_with_and_without_splits(tmp_path):
    plain, split = tmp_path / "plain", tmp_path / "split"
    picture(plain / "cat" / "b.png", 7)
    picture(plain / "cat" / "a.PNG", 8)
    picture(plain / "dog" / "sub" / "c.bmp", 9)
    picture(plain / "dog" / ".hidden.png", 1)
    (plain / "dog" / "notes.txt").write_text("no picture")
    (plain / ".git").mkdir()
    read = read_image_folders(plain)["all"]
    assert read.values.shape == (3, 6, 1)
    assert read.image_size == (2, 3)
    assert read.values[:, 0, 0].tolist() == [8, 7, 9]
    assert read.labels == ("cat", "cat", "dog")
    assert read.ids == ("cat/a.PNG", "cat/b.png", "dog/sub/c.bmp")
    for part, level in (("train", 1), ("test", 2)):
        picture(split / part / "cat" / "a.png", level)
    source = read_image_folders(split)
    assert {name: part.values.max() for name, part in source.items()} == {"train": 1, "test": 2}


def test_colours_and_sizes(tmp_path):
    picture(tmp_path / "cat" / "a.png", (10, 20, 30), mode="RGB")
    picture(tmp_path / "cat" / "b.png", 5, size=(6, 4))
    with pytest.raises(UserError, match=r"b\.png is 4 x 6 and others are 2 x 3.*data\.image_size"):
        read_image_folders(tmp_path)
    read = read_image_folders(tmp_path, channels=3, image_size=(4, 4))["all"]
    assert read.values.shape == (2, 16, 3)
    assert read.values[0, 0].tolist() == [10, 20, 30]
    assert read.values[1, 0].tolist() == [5, 5, 5]


def test_names_that_are_not_utf_8_become_text(tmp_path):
    try:
        picture(tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xe8.png"), 5)
    except OSError:
        pytest.skip("this file system has no such names")
    read = read_image_folders(tmp_path)["all"]
    assert (read.labels, read.ids) == (("caf\\xe9",), ("caf\\xe9/\\xe8.png",))


def test_a_picture_is_upright(tmp_path):
    image = Image.new("L", (3, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / "a.png", exif=exif)
    read = read_image_folders(tmp_path)["all"]
    assert read.values[0, :, 0].tolist() == [0, 0, 0, 0, 0, 255]


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="holds no folder"):
        read_image_folders(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_image_folders(tmp_path / "gone")
    picture(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="dog holds no picture"):
        read_image_folders(tmp_path)
    (tmp_path / "dog" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png cannot be read as a picture"):
        read_image_folders(tmp_path)
    Image.new("I;16", (3, 2), 200).save(tmp_path / "dog" / "a.png")
    with pytest.raises(UserError, match="grey levels of 16 bits"):
        read_image_folders(tmp_path)
    picture(tmp_path / "dog" / "a.png", 1)
    picture(tmp_path / "train" / "cat" / "a.png", 1)
    with pytest.raises(UserError, match=r"cat, dog, which are neither splits nor classes"):
        read_image_folders(tmp_path)


def test_links_are_followed_once_and_other_files_are_named(tmp_path):
    picture(tmp_path / "else" / "a.png", 1)
    folder = tmp_path / "set"
    picture(folder / "cat" / "b.png", 2)
    (folder / "cat" / "more").symlink_to(tmp_path / "else")
    (folder / "cat" / "loop").symlink_to(folder / "cat")
    (folder / "dog").symlink_to(tmp_path / "else")
    (folder / "cat" / "x.heic").write_bytes(b"")
    (folder / "cat" / "y.txt").write_bytes(b"")
    picture(folder / "loose.png", 3)
    read = read_image_folders(folder)["all"]
    assert read.ids == ("cat/b.png", "cat/more/a.png", "dog/a.png")
    note = "cat/x.heic (and 1 more) was skipped: its name does not end like a picture's"
    assert read.notes == (note, "loose.png was skipped: it lies in no class folder")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "validation"), ("train", "dev")])
def test_folders_that_only_look_like_splits(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "cat" / "a.png", 1)
    with pytest.raises(UserError, match="the folders are train, val and test"):
        read_image_folders(tmp_path)


def test_transparent_palette_and_cmyk_pictures_are_what_a_prediction_sees(tmp_path):
    """A picture has the same pixels in a training set as for elstm-predict."""
    draw = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    image = Image.fromarray(draw)  # RGBA
    folder = tmp_path / "cat"
    folder.mkdir()
    image.save(folder / "alpha.png")
    image.convert("RGB").convert("P").save(folder / "palette.png", transparency=0)
    image.convert("CMYK").save(folder / "cmyk.tif")
    for channels in (1, 3):
        read = read_image_folders(tmp_path, channels, (4, 3))["all"]
        for name, values in zip(read.ids, read.values, strict=True):
            seen = read_image(tmp_path / name, 4, 3, channels=channels, exact=True)
            np.testing.assert_array_equal(values, seen.reshape(12, channels))


def test_pictures_that_do_not_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "free_memory", lambda: 1)
    picture(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(UserError, match="GB of memory"):
        read_image_folders(tmp_path)
