"""EMNIST and CIFAR-10: small files in the published layouts, archives, and damaged ones."""

import dataclasses
import hashlib
import logging

import numpy as np
import pytest
import torch
from own_data import QUICK
from small_sets import (
    CIFAR_CLASSES,
    cifar_archive,
    cifar_batches,
    cifar_files,
    emnist_archive,
    emnist_files,
    idx_bytes,
    write_idx_set,
)

from elstm import train
from elstm.commands import evaluate
from elstm.config.schema import ImageSetConfig
from elstm.data import archive as archives
from elstm.data import catalog, download, image_sets
from elstm.data.catalog import DATA_SETS
from elstm.data.image_sets import load_image_set
from elstm.data.load import load_data
from elstm.errors import UserError
from elstm.records.status import read_status

MAKE = {"emnist": emnist_archive, "emnist_letters": emnist_archive, "cifar10": cifar_archive}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Lets an address of this machine and a small archive stand for the published ones."""

    def publish(name, *, md5=None, size=10_000_000, content=None):
        source = DATA_SETS[name]
        server = tmp_path / "server"
        server.mkdir(exist_ok=True)
        path = MAKE[name](server / source.archive.name)
        if content is not None:
            path.write_bytes(content)
        real = hashlib.md5(path.read_bytes()).hexdigest()
        small = dataclasses.replace(source.archive, url=path.as_uri(), md5=md5 or real, size=size)
        for each, old in list(DATA_SETS.items()):
            if old.archive == source.archive:
                monkeypatch.setitem(DATA_SETS, each, dataclasses.replace(old, archive=small))
        return path

    return publish


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def unpacked_emnist(root, split="balanced", count=47, first=0):
    arrays = emnist_files(split, count, first)
    return write(root / "EMNIST" / "raw", {n: idx_bytes(array) for n, array in arrays.items()})


@pytest.mark.parametrize(
    ("name", "split", "count", "first"),
    [("emnist", "balanced", 47, 0), ("emnist_letters", "letters", 26, 1)],
)
def test_emnist_is_turned_upright_and_counts_from_0(tmp_path, name, split, count, first):
    unpacked_emnist(tmp_path, split, count, first)
    data = load_image_set(name, str(tmp_path))
    stored = emnist_files(split, count, first)
    images = stored[f"emnist-{split}-train-images-idx3-ubyte"].transpose(0, 2, 1)
    cut = len(images) - len(images) // 6
    np.testing.assert_array_equal(data.train.images, images[:cut].reshape(cut, -1))
    np.testing.assert_array_equal(data.val.images, images[cut:].reshape(-1, 784))
    assert data.test.labels.tolist() == list(range(count))
    assert len(data.class_names) == count


def test_emnists_classes_are_torchvisions():
    from torchvision.datasets import EMNIST

    assert list(DATA_SETS["emnist"].class_names) == EMNIST.classes_split_dict["balanced"]
    letters = EMNIST.classes_split_dict["letters"]
    assert ["N/A", *DATA_SETS["emnist_letters"].class_names] == letters
    archive = catalog.EMNIST_ARCHIVE
    assert (archive.url, archive.md5) == (EMNIST.url, EMNIST.md5)
    assert [DATA_SETS[name].file_images for name in ("emnist", "emnist_letters", "cifar10")] == [
        (112_800, 18_800), (124_800, 20_800), (50_000, 10_000),
    ]  # fmt: skip


def test_cifar10_keeps_the_colours_of_a_pixel_together(tmp_path):
    write(tmp_path / "cifar-10-batches-bin", cifar_files())
    batches = list(cifar_batches().values())
    data = load_image_set("cifar10", str(tmp_path))
    images = np.concatenate([images for _, images in batches[:5]]).reshape(100, -1)
    np.testing.assert_array_equal(data.train.images, images[:90])
    np.testing.assert_array_equal(data.val.images, images[90:])
    np.testing.assert_array_equal(data.test.images, batches[5][1].reshape(20, -1))
    assert data.train.labels[:12].tolist() == [*range(10), 0, 1]
    assert list(data.class_names) == CIFAR_CLASSES


@pytest.mark.parametrize(("per_step", "steps", "features"), [(32, 32, 96), (1, 1024, 3)])
def test_cifar10_as_rows_and_pixels(tmp_path, per_step, steps, features):
    write(tmp_path / "cifar-10-batches-bin", cifar_files())
    data = load_data(
        ImageSetConfig(
            name="cifar10",
            root=str(tmp_path),
            pixels_per_step=per_step,
            batch_size=16,
            permute=per_step == 1,
        )
    )
    assert (data.num_steps, data.input_size) == (steps, features)
    x, _ = next(data.eval_batches("test", 20))
    assert x.shape == (steps, 20, features)
    pixels = next(reversed(cifar_batches().values()))[1].reshape(20, 1024, 3) / 255
    if data.permutation is not None:
        pixels = pixels[:, data.permutation]
    expected = torch.from_numpy(pixels).float().reshape(20, steps, features).transpose(0, 1)
    torch.testing.assert_close(x, (expected - data.mean) / data.std, rtol=1e-4, atol=1e-5)
    assert data.description == (
        "90 training, 10 validation, 20 test images of 32 x 32 pixels, in colour, 10 classes, "
        f"from {', '.join(DATA_SETS['cifar10'].files)} in {tmp_path / 'cifar-10-batches-bin'}"
    )


@pytest.mark.parametrize("name", MAKE)
def test_an_archive_is_downloaded_once_and_its_size_is_logged_first(
    tmp_path, published, caplog, monkeypatch, name
):
    path = published(name)
    root = tmp_path / "data"
    with caplog.at_level(logging.INFO):
        first = load_image_set(name, str(root))
    assert f"downloading {path.name}, which has 0.01 GB" in caplog.text
    place = DATA_SETS[name].place
    files = {file for each in DATA_SETS.values() if each.place == place
             for file in each.published_files}  # fmt: skip
    extras = set(DATA_SETS[name].archive.extras)
    assert {file.name for file in (root / place).iterdir()} == files | extras
    monkeypatch.setattr(image_sets, "unpack_archive", pytest.fail)
    assert torch.equal(load_image_set(name, str(root)).train.images, first.train.images)


@pytest.mark.parametrize(
    ("name", "place"),
    [("emnist", "EMNIST/raw"), ("cifar10", "."), ("cifar10", "cifar-10-batches-bin")],
)
def test_an_archive_that_lies_there_is_taken(tmp_path, published, monkeypatch, name, place):
    path = published(name)
    root = tmp_path / "data"
    (root / place).mkdir(parents=True)
    moved = path.rename(root / place / path.name)
    monkeypatch.setattr(download, "_fetch", pytest.fail)
    load_image_set(name, str(root))
    for file in (root / DATA_SETS[name].place).iterdir():
        if file != moved:
            file.unlink()
    moved.write_bytes(moved.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged \(its MD5 is not that of the published file"):
        load_image_set(name, str(root))
    assert moved.is_file()


def test_downloads_that_fail_leave_nothing_behind(tmp_path, published, monkeypatch):
    def fails(match):
        with pytest.raises(UserError, match=match) as caught:
            load_image_set("cifar10", str(tmp_path / "data"))
        assert "put that file into" in str(caught.value) or "free" in str(caught.value)
        assert not (tmp_path / "data").exists()

    path = published("cifar10", md5="0" * 32)
    fails("the file is corrupted")
    published("cifar10", size=100)
    fails(r"\(.*more than 110 bytes\)")
    published("cifar10", size=10**15)
    fails(r"the download of 1000000\.00 GB needs twice as much space")
    published("cifar10")
    path.unlink()
    fails("No such file")


def test_archives_that_hold_something_else(tmp_path, published, monkeypatch):
    def fails(match):
        with pytest.raises(UserError, match=match):
            load_image_set(name, str(tmp_path / "data"))
        assert not (tmp_path / "data").exists()

    for name in ("cifar10", "emnist"):
        published(name, content=b"a log-in page")
        fails("cannot be unpacked")
    name = "emnist"
    published(name)
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    fails(r"emnist-balanced-train-images-idx3-ubyte\.gz has [\d,]+ bytes")
    monkeypatch.undo()
    path = cifar_archive(tmp_path / "a.tar.gz")
    for needed, inside in ((["data_batch_9.bin"], "cifar-10-batches-bin"), (["readme.html"], "x")):
        with pytest.raises(UserError, match="does not hold"):
            archives.extract(path, inside, needed, needed, tmp_path)


def test_no_link_of_an_archive_is_followed(tmp_path):
    import tarfile

    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("in/test_batch.bin")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match="does not hold test_batch"):
        archives.extract(path, "in", ["test_batch.bin"], ["test_batch.bin"], tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("test_batch.bin", b"", "is damaged .*0 bytes"),
        ("data_batch_3.bin", bytes(3072), r"is damaged \(3,072 bytes are no multiple of 3,073"),
        ("data_batch_1.bin", bytes([10]) + bytes(3072), "a label is 10, the classes are 0 to 9"),
        ("batches.meta.txt", b"apple\nbear\n", "it names apple, bear instead of airplane"),
    ],
)
def test_damaged_files_of_cifar10(tmp_path, file, content, match):
    folder = write(tmp_path / "cifar-10-batches-bin", {**cifar_files(), file: content})
    with pytest.raises(UserError, match=match) as caught:
        load_image_set("cifar10", str(tmp_path))
    assert str(folder / file) in str(caught.value)


def test_labels_of_the_letters_begin_at_1(tmp_path):
    raw = unpacked_emnist(tmp_path, "letters", 26, first=1)
    labels = raw / "emnist-letters-test-labels-idx1-ubyte"
    good = labels.read_bytes()
    for bad, reason in (
        (good[:-1] + b"\0", "a label is 0, the classes are 1 to 26"),
        (good[:-1] + bytes([27]), "a label is 27, the classes are 1 to 26"),
        (good[:-3], "31 bytes"),
    ):
        labels.write_bytes(bad)
        with pytest.raises(UserError, match=rf"test-labels-idx1-ubyte is damaged \({reason}"):
            load_image_set("emnist_letters", str(tmp_path))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_on_cifar10_is_evaluated_and_predicts(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from elstm.commands import predict

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cifar-10-batches-bin", cifar_files())
    words = ["data=cifar10", "data.root=.", *QUICK, "hydra.run.dir=run", "trainer.max_epochs=1"]
    assert train.main(words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("cifar10: 90 training, 10 validation, 20 test images of 32 x 32 pixels")
    status = read_status(tmp_path / "run")
    assert status is not None
    assert f"cifar10: {status['data_description']}" == first
    assert evaluate.main(["run"]) == 0
    assert "airplane" in capsys.readouterr().out

    _, images = cifar_batches()["test_batch.bin"]
    for number, image in enumerate(images[:3]):
        Image.fromarray(image).save(f"{number}.png")
    assert predict.main(["run", "0.png", "1.png", "2.png"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("file,predicted,probability,p(airplane)")
    assert len(out) == 4
    assert predict.main(["run", "0.png", "--fit"]) == 1
    assert "the run is on other pictures" in capsys.readouterr().err


def test_files_of_mnist_are_no_emnist(tmp_path, monkeypatch):
    write_idx_set(tmp_path, "EMNIST")
    asked = []
    monkeypatch.setattr(image_sets, "unpack_archive", lambda *args: asked.append(args[1]))
    with pytest.raises(UserError, match="cannot be read"):
        load_image_set("emnist", str(tmp_path))
    assert asked == [list(DATA_SETS["emnist"].published_files)]
