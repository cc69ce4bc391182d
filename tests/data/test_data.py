import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from small_sets import idx_bytes, write_idx_set

from elstm.config.compose import Composer
from elstm.config.schema import SCHEMAS, ImageSetConfig
from elstm.data.catalog import DATA_SETS
from elstm.data.image_sets import load_image_set
from elstm.data.load import load_data
from elstm.errors import UserError
from elstm.training.data_facts import check_same_data

REAL = Path(os.environ.get("ELSTM_DATA") or "data")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_idx_set(path)
    return str(path)


def load(root, **values):
    return load_data(ImageSetConfig(**{"name": "mnist", "root": root, "batch_size": 16} | values))


def test_files_whose_test_labels_changed_are_not_the_runs(tmp_path):
    arrays = write_idx_set(tmp_path)
    facts = load(str(tmp_path)).facts()
    check_same_data(facts, load(str(tmp_path)))
    name = "t10k-labels-idx1-ubyte"
    labels = arrays[name].copy()
    labels[3] += 1
    (tmp_path / "MNIST" / "raw" / name).write_bytes(idx_bytes(labels))
    with pytest.raises(UserError, match=r"labels or splits differ: checksum .* set data\.root= to"):
        check_same_data(facts, load(str(tmp_path)))
    del facts["content"]  # as of earlier versions
    check_same_data(facts, load(str(tmp_path)))


@pytest.mark.parametrize("pixels_per_step", [28, 4, 1, 784])
@pytest.mark.parametrize("permute", [False, True])
def test_sequences_are_the_pixels_in_order_normalised(root, pixels_per_step, permute):
    data = load(root, pixels_per_step=pixels_per_step, permute=permute)
    assert (data.num_steps, data.input_size) == (784 // pixels_per_step, pixels_per_step)
    train = data.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose((data.mean, data.std), (train.mean(), train.std()), rtol=1e-12)

    images = data.test.images[:5]
    x = data.sequences(images)
    assert x.shape == (data.num_steps, 5, pixels_per_step)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    for b, image in enumerate(images.numpy().astype(np.float64)):
        pixels = image[data.permutation] if permute else image
        expected = (pixels / 255 - train.mean()) / train.std()
        np.testing.assert_allclose(x[:, b].flatten(), expected, atol=1e-6)


def test_the_permutation_is_true_and_has_a_seed_of_its_own(root):
    assert load(root).permutation is None
    first = load(root, permute=True).permutation
    assert torch.equal(first.sort().values, torch.arange(784))
    torch.manual_seed(1)
    assert torch.equal(load(root, permute=True, pixels_per_step=1).permutation, first)
    assert not torch.equal(load(root, permute=True, permute_seed=1).permutation, first)
    # Held to values: results on permuted images compare with those of other machines and years.
    assert first[:8].tolist() == [612, 68, 778, 194, 245, 679, 405, 643]


def rows_of(data, x):
    """Which training images the sequences are (the random images are all different)."""
    pixels = data.sequences(data.train.images).transpose(0, 1).flatten(1)
    same = (x.transpose(0, 1).flatten(1)[:, None] == pixels).all(-1)
    assert same.sum(1).eq(1).all()
    return same.int().argmax(1).tolist()


def test_an_epoch_shows_each_image_once_in_an_order_from_seed_and_epoch(root):
    data = load(root)
    assert data.num_train_batches == 6  # of 100 images, 4 are left over

    def epoch(*args):
        rows, labels = [], []
        for x, y in data.train_batches(*args):
            assert y.shape == (16,)
            rows.append(rows_of(data, x))
            labels.append(data.train.labels[rows[-1]].equal(y))
        assert all(labels)
        return rows

    state = torch.get_rng_state()
    first = epoch(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first) == 6
    assert len(set(itertools.chain(*first))) == 96
    torch.manual_seed(5)
    assert epoch(0, 0) == first
    assert epoch(0, 0, 4) == first[4:]
    assert epoch(0, 0, 6) == []
    assert epoch(0, 1) != epoch(1, 0) != first != epoch(0, 1)


def test_evaluation_shows_every_image_in_order(root):
    data = load(root)
    for name, part in (("train", data.train), ("val", data.val), ("test", data.test)):
        batches = list(data.eval_batches(name, 16))
        assert [len(y) for _, y in batches][:-1] == [16] * (len(part) // 16)
        assert torch.equal(torch.cat([y for _, y in batches]), part.labels)
        assert torch.equal(torch.cat([x for x, _ in batches], 1), data.sequences(part.images))


def test_statistics_see_distinct_images_in_full_batches(root):
    data = load(root)

    def batches(*args):
        return [rows_of(data, x) for x in data.statistics_batches(*args)]

    assert [len(rows) for rows in batches(2, 30, 0, 0)] == [30, 30]
    many = batches(10, 30, 0, 0)
    assert [len(rows) for rows in many] == [30, 30, 30]  # 10 of the 100 images are left over
    assert len(set(itertools.chain(*many))) == 90
    assert many == batches(10, 30, 0, 0)
    assert many != batches(10, 30, 0, 1)
    assert [len(rows) for rows in batches(10, 1000, 0, 0)] == [100]


def test_train_size_keeps_the_first_of_the_training_split(root):
    whole, part = load(root), load(root, train_size=20)
    assert torch.equal(part.train.images, whole.train.images[:20])
    assert torch.equal(part.train.labels, whole.train.labels[:20])
    assert torch.equal(part.val.images, whole.val.images)
    assert part.mean == pytest.approx(whole.train.images[:20].double().mean().item() / 255)
    with pytest.raises(UserError, match=r"data\.train_size=101 .* at most 100$"):
        load(root, train_size=101)


def test_values_that_do_not_fit_name_those_that_do(root):
    with pytest.raises(
        UserError, match=r"data\.batch_size=21 .* at most 20 for mnist with this data\.train_size$"
    ):
        load(root, batch_size=21, train_size=20)
    with pytest.raises(
        UserError, match=r"data\.pixels_per_step=5 does not divide the 784 pixels"
    ) as e:
        load(root, pixels_per_step=5)
    allowed = "1, 2, 4, 7, 8, 14, 16, 28, 49, 56, 98, 112, 196, 392, 784"
    assert str(e.value).endswith(f"allowed: {allowed}")
    with pytest.raises(UserError, match=r"64 pixels of digits; allowed: 1, 2, 4, 8, 16, 32, 64$"):
        load(root, name="digits", pixels_per_step=28)


def test_constant_pixels_become_zero(tmp_path):
    arrays = write_idx_set(tmp_path)
    name = "train-images-idx3-ubyte"
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:16] + bytes([7]) * arrays[name].size)
    data = load(str(tmp_path))
    x, _ = next(data.train_batches(0, 0))
    assert x.abs().max() < 1e-6


def test_everything_moves_to_the_device(root):
    data = load(root, permute=True).to("meta")
    x, y = next(data.train_batches(0, 0))
    tensors = [x, y, data.permutation]
    for part in (data.train, data.val, data.test):
        tensors += [part.images, part.labels]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert next(data.statistics_batches(1, 10, 0, 0)).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_the_same_on_the_gpu(root):
    cpu = load(root, permute=True)
    for (a, b), (x, y) in zip(
        cpu.train_batches(3, 2), cpu.to("cuda").train_batches(3, 2), strict=True
    ):
        torch.testing.assert_close(x.cpu(), a, rtol=0, atol=1e-6)
        assert torch.equal(y.cpu(), b)


def test_an_empty_root_is_the_folder_data(tmp_path, monkeypatch):
    write_idx_set(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELSTM_DATA", "")
    root = OmegaConf.structured(ImageSetConfig(name="mnist")).root
    assert root == ""
    assert len(load(root).train) == 100


@pytest.mark.parametrize("name", DATA_SETS)
def test_each_image_set_is_read_row_by_row(name):
    _, config = Composer(None).compose([f"data={name}"])
    assert config.data.name == name
    assert DATA_SETS[name].pixels == config.data.pixels_per_step**2
    if name == "digits":
        data = load_data(config.data)
        assert (data.num_steps, data.input_size, data.num_classes) == (8, 8, 10)
        assert data.num_train_batches >= 30


def test_a_file_of_ones_own_may_be_based_on_any_option(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for option, schema in SCHEMAS["data"].items():
        given = {"batch_size": 16}
        given |= {name: "X.csv" for name in ("path", "id", "label") if hasattr(schema, name)}
        lines = ["defaults:", f"  - {option}", *(f"{key}: {value}" for key, value in given.items())]
        (folder / f"my_{option}.yaml").write_text("\n".join(lines))
    composer = Composer(str(tmp_path))
    for option, schema in SCHEMAS["data"].items():
        _, config = composer.compose([f"data=my_{option}"])
        assert type(config.data) is schema
        assert config.data.name == (option if option in DATA_SETS else "X")
        assert config.data.batch_size == 16


@pytest.mark.parametrize(
    ("name", "folder", "train", "test"),
    [
        ("mnist", "MNIST", (0.1307, 0.3081), (0.1325, 0.3105)),
        ("fashion_mnist", "FashionMNIST", (0.2860, 0.3530), (0.2868, 0.3524)),
    ],
)
def test_the_published_sets(name, folder, train, test):
    if not (REAL / folder / "raw").is_dir():
        pytest.skip(f"no {folder} under {REAL}")
    data = load_image_set(name, str(REAL))
    assert [len(part) for part in (data.train, data.val, data.test)] == [50_000, 10_000, 10_000]
    for images, figures in (
        (torch.cat([data.train.images, data.val.images]), train),
        (data.test.images, test),
    ):
        pixels = images.float() / 255
        assert (pixels.mean().item(), pixels.std().item()) == pytest.approx(figures, abs=6e-5)
