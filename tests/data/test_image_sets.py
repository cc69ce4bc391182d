import gzip
import hashlib
import os

import numpy as np
import pytest
import torch
from small_sets import idx_bytes, write_idx_set
from torchvision import datasets

from elstm.config.schema import DigitsConfig, ImageSetConfig
from elstm.data import image_sets
from elstm.data.catalog import DATA_SETS, DIGITS, DataSet
from elstm.data.catalog import IDX_FILES as FILES
from elstm.data.image_sets import load_image_set, random_order, stratified
from elstm.data.load import load_data
from elstm.errors import UserError

IDX_SETS = {name: source for name, source in DATA_SETS.items() if source.md5}


@pytest.fixture
def offline(monkeypatch):
    def download(dataset, files, folder):
        raise AssertionError(f"{files} would be downloaded")

    monkeypatch.setattr(image_sets, "download", download)


def sorted_rows(images):
    return np.unique(images, axis=0, return_counts=True)


def test_digits_are_all_of_scikit_learns_split_evenly_over_the_classes():
    from sklearn.datasets import load_digits

    digits = load_image_set("digits", "")
    parts = (digits.train, digits.val, digits.test)
    assert [len(part) for part in parts] == [1297, 200, 300]
    assert digits.val.labels.bincount().tolist() == [20] * 10
    assert digits.test.labels.bincount().tolist() == [30] * 10

    original, labels = load_digits(return_X_y=True)
    images = torch.cat([part.images for part in parts])
    assert images.dtype == torch.uint8
    # each image with its label, in another order, and 0 ... 16 spread over 0 ... 255
    ours = np.column_stack([images, torch.cat([part.labels for part in parts])])
    expected = np.column_stack([np.round(original * 255 / 16), labels])
    for a, b in zip(sorted_rows(ours), sorted_rows(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_digits_are_no_set_of_a_users_own(caplog):
    load_data(DigitsConfig(name="digits", pixels_per_step=8))
    assert "of your own" not in caplog.text


def test_the_split_of_the_digits_is_the_same_everywhere():
    digits = load_image_set("digits", "")
    # Held to values: a generator that changed would compare models on other images unseen.
    assert digits.test.labels[:12].tolist() == [6, 3, 0, 4, 1, 1, 9, 5, 3, 6, 7, 9]
    assert (
        hashlib.sha256(digits.train.images.numpy().tobytes()).hexdigest()[:16] == "4d4bac790caa6a33"
    )


def test_random_order_is_a_permutation_that_follows_from_its_key_alone():
    state = torch.get_rng_state()
    order = random_order(1000, "train", 3, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(random_order(1000, "train", 3, 7), order)
    assert torch.equal(order.sort().values, torch.arange(1000))
    for other in (("train", 7, 3), ("train", 3, 8), ("statistics", 3, 7), ("train", 3 + 2**32, 7)):
        assert not torch.equal(random_order(1000, *other), order)
    assert random_order(10, "train", 0, 0).tolist() == [3, 6, 1, 0, 8, 9, 2, 5, 4, 7]


@pytest.mark.parametrize("name", IDX_SETS)
def test_the_last_sixth_of_training_validates(tmp_path, offline, name):
    arrays = write_idx_set(tmp_path, IDX_SETS[name].folder)
    images, labels, test_images, test_labels = (arrays[file] for file in FILES)
    data = load_image_set(name, str(tmp_path))
    for part, a, b in (
        (data.train, images[:100], labels[:100]),
        (data.val, images[100:], labels[100:]),
        (data.test, test_images, test_labels),
    ):
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        np.testing.assert_array_equal(part.images, a.reshape(len(a), -1))
        np.testing.assert_array_equal(part.labels, b)
    assert len(data.class_names) == 10


def test_a_complete_folder_is_not_written_to(tmp_path, offline):
    write_idx_set(tmp_path)

    def listing():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = listing()
    load_image_set("mnist", str(tmp_path))
    assert listing() == before


def test_packed_files_are_read_in_memory(tmp_path, offline, monkeypatch, caplog):
    arrays = write_idx_set(tmp_path, packed=True)
    raw = tmp_path / "MNIST" / "raw"
    md5 = tuple(hashlib.md5((raw / f"{file}.gz").read_bytes()).hexdigest() for file in FILES)
    published = DataSet(DIGITS, (28, 28), 100, "MNIST", md5)
    monkeypatch.setitem(DATA_SETS, "mnist", published)
    data = load_image_set("mnist", str(tmp_path))
    np.testing.assert_array_equal(data.test.images, arrays[FILES[2]].reshape(40, -1))
    assert len(list(raw.iterdir())) == 4
    assert data.origin == f"{', '.join(f'{file}.gz' for file in FILES)} in {raw}"
    assert "of your own" not in caplog.text


def test_sound_files_of_a_users_own_are_read_and_named(tmp_path, offline, caplog):
    """A .gz carries a checksum of its own, so damage is told from another content."""
    arrays = write_idx_set(tmp_path, packed=True)
    data = load_image_set("mnist", str(tmp_path))
    np.testing.assert_array_equal(data.test.images, arrays[FILES[2]].reshape(40, -1))
    for file in FILES:
        assert f"{file}.gz is not the published file: it is read as a set of your own" in (
            caplog.text
        )


def test_an_own_file_beside_a_gz_is_not_ignored_in_silence(tmp_path, offline, caplog):
    arrays = write_idx_set(tmp_path, packed=True)
    raw = tmp_path / "MNIST" / "raw"
    (raw / FILES[0]).write_bytes(idx_bytes(arrays[FILES[0]]))  # as torchvision unpacks it
    load_image_set("mnist", str(tmp_path))
    assert "holds something else" not in caplog.text
    for content in (idx_bytes(255 - arrays[FILES[0]]), b"", idx_bytes(arrays[FILES[0]]) + b"0"):
        caplog.clear()
        (raw / FILES[0]).write_bytes(content)
        data = load_image_set("mnist", str(tmp_path))
        assert f"{FILES[0]}.gz was read, and not {FILES[0]}, which holds something" in caplog.text
        np.testing.assert_array_equal(data.train.images, arrays[FILES[0]][:100].reshape(100, -1))


@pytest.mark.parametrize("place", ["{}", "{}.gz", "{0}/{0}"])
def test_kaggles_names_are_found(tmp_path, offline, place):
    arrays = write_idx_set(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    for file in FILES:
        content = (raw / file).read_bytes()
        (raw / file).unlink()
        path = raw / place.format(file.replace("-idx", ".idx"))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    data = load_image_set("mnist", str(tmp_path))
    np.testing.assert_array_equal(data.test.images, arrays[FILES[2]].reshape(40, -1))


def test_a_set_sorted_by_class_is_named(tmp_path, offline, caplog):
    arrays = write_idx_set(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    (raw / FILES[1]).write_bytes(idx_bytes(np.sort(arrays[FILES[1]])))  # 12 of each class
    load_data(ImageSetConfig(name="mnist", root=str(tmp_path), batch_size=16))
    messages = [record.message for record in caplog.records]
    assert messages == [
        "the files hold 120 training and 40 test images instead of 60,000 and 10,000, so they are "
        "not the published set",
        "the training split holds no image of class 9",
        "the validation split holds no image of classes 0, 1, 2, 3, 4, 5, 6, 7",
    ]


def test_a_subset_keeps_the_shares_of_the_classes():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rows = stratified(labels, 10)
    assert labels[rows].bincount().tolist() == [5, 3, 2]
    assert rows.tolist() == [0, 1, 2, 3, 4, 50, 51, 52, 80, 81]  # the first ones, in order
    # 7 rows are 3.5, 2.1 and 1.4: the one that is left goes to the largest remainder.
    assert labels[stratified(labels, 7)].bincount().tolist() == [4, 2, 1]
    assert torch.equal(stratified(labels, 100), torch.arange(100))
    mixed = labels[random_order(100, "mixed")]
    assert mixed[stratified(mixed, 50)].bincount().tolist() == [25, 15, 10]


def test_checksums_and_classes_are_torchvisions():
    for source in IDX_SETS.values():
        theirs = getattr(datasets, source.folder)
        resources = [(f"{file}.gz", md5) for file, md5 in zip(FILES, source.md5, strict=True)]
        assert resources == list(theirs.resources)
        assert [name.split(" - ")[0] for name in theirs.classes] == list(source.class_names)


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "kmnist"])
def test_a_missing_file_is_asked_for_by_name(tmp_path, monkeypatch, name):
    folder = IDX_SETS[name].folder
    arrays = write_idx_set(tmp_path, folder)
    raw = tmp_path / folder / "raw"
    (raw / FILES[1]).unlink()
    asked = []

    def download(dataset, files, target):
        asked.append((dataset, files, target))
        (raw / FILES[1]).write_bytes(idx_bytes(arrays[FILES[1]]))

    monkeypatch.setattr(image_sets, "download", download)
    assert len(load_image_set(name, str(tmp_path)).train) == 100
    assert asked == [(folder, [f"{FILES[1]}.gz"], raw)]


def test_wrong_labels_and_counts_are_named(tmp_path, offline):
    arrays = write_idx_set(tmp_path)
    raw = tmp_path / "MNIST" / "raw"

    def fails_with(file, array, match):
        (raw / file).write_bytes(idx_bytes(array))
        with pytest.raises(UserError, match=match):
            load_image_set("mnist", str(tmp_path))
        (raw / file).write_bytes(idx_bytes(arrays[file]))

    labels = arrays[FILES[1]].copy()
    labels[50] = 10
    fails_with(FILES[1], labels, r"train-labels-idx1-ubyte is damaged \(a label is 10, .*0 to 9\)")
    fails_with(FILES[1], labels[:30], "120 images but 30 labels in train-")
    fails_with(FILES[2], arrays[FILES[2]][:7], "7 images but 40 labels in t10k-")
    fails_with(FILES[0], arrays[FILES[1]], "1 dimensions instead of 3")
    load_image_set("mnist", str(tmp_path))


def test_a_root_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (str(tmp_path / "file"), "~nobody-of-this-name", "a\0b", "x" * 300):
        with pytest.raises(UserError, match=r"data\.root="):
            load_image_set("mnist", root)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)
def test_folders_without_permission(tmp_path):
    write_idx_set(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    raw.chmod(0o500)  # read-only and complete
    load_image_set("mnist", str(tmp_path))
    (raw / FILES[1]).chmod(0)
    with pytest.raises(UserError, match="train-labels-idx1-ubyte cannot be read"):
        load_image_set("mnist", str(tmp_path))
    raw.chmod(0o700)
    (raw / FILES[1]).unlink()
    raw.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\)"):
        load_image_set("mnist", str(tmp_path))
    raw.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        load_image_set("mnist", str(tmp_path))
    raw.chmod(0o700)


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(UserError, match=r"data\.name=cifar.*digits, mnist, fashion_mnist, kmnist"):
        load_image_set("cifar", "data")
