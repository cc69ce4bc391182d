"""Pictures in class folders and the same ones in IDX files train the same model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from own_data import QUICK, write_class_folders
from PIL import Image
from small_sets import idx_bytes
from training_runs import rows as metrics

from elstm import train
from elstm.commands import evaluate
from elstm.config.schema import ImageSetConfig
from elstm.data.catalog import DATA_SETS, IDX_FILES
from elstm.data.image_sets import load_image_set
from elstm.data.load import images_checksum, load_data
from elstm.data.unseen import load_unseen
from elstm.errors import UserError
from elstm.training.trained import load_trained

pytestmark = pytest.mark.usefixtures("no_pictures")
REAL = Path(os.environ.get("ELSTM_DATA") or "data").absolute()
Pictures = dict[str, tuple[np.ndarray, np.ndarray]]  # by split: images (N, 28, 28), labels


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with a bar whose height is their class, in noise, in the order of their classes."""
    draw = np.random.default_rng(seed)
    labels = np.sort(np.arange(count) % 10)
    images = draw.integers(0, 150, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 6] += 100
    return images, labels


def write_both(pictures: Pictures) -> None:
    """Writes folders/{train,val,test}/CLASS/*.png, and idx/MNIST/raw with the same order."""
    for split, (images, labels) in pictures.items():
        write_class_folders(Path("folders", split), images, labels.astype(str))
    raw = Path("idx/MNIST/raw")
    raw.mkdir(parents=True)
    both = [np.concatenate(parts) for parts in zip(pictures["train"], pictures["val"], strict=True)]
    for file, array in zip(IDX_FILES, (*both, *pictures["test"]), strict=True):
        (raw / file).write_bytes(idx_bytes(array))


def assert_same(*words: str) -> None:
    assert train.main(["data=mnist", "data.root=idx", *words, "hydra.run.dir=a"]) == 0
    assert train.main(["data=images", "data.path=folders", *words, "hydra.run.dir=b"]) == 0
    a, b = ({k: v for k, v in metrics(Path(run))[-1].items() if "second" not in k} for run in "ab")
    assert float(a["test_accuracy"]) > 0.2
    assert {k: v for k, v in a.items() if k[:4] in ("val_", "test", "trai")} == {
        k: v for k, v in b.items() if k[:4] in ("val_", "test", "trai")
    }
    first, second = (load_trained(Path(run)).model.state_dict() for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    monkeypatch.chdir(tmp_path)
    pictures = {"train": bars(250, 0), "val": bars(50, 1), "test": bars(60, 2)}
    write_both(pictures)
    return pictures


def test_class_folders_give_what_idx_files_give(
    small: Pictures, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elstm.records.pictures.confusion_figure", lambda *args: b"")
    assert_same(*QUICK, "model.hidden_size=12")
    capsys.readouterr()
    assert evaluate.main(["a"]) == 0
    expected = capsys.readouterr().out.splitlines()[1:-2]
    for place in ("idx", "idx/MNIST/raw", "folders", "folders/test"):
        assert evaluate.main(["a", "--data", place]) == 0
        out = capsys.readouterr().out.splitlines()
        which = "all 60" if place == "folders/test" else "test split, 60"
        assert out[0] == f"elstm_bn on {place}, {which} images"
        assert out[1:-2] == expected
    for file in IDX_FILES[:2]:
        Path("idx/MNIST/raw", file).unlink()  # those of the test are enough
    assert evaluate.main(["a", "--data", "idx"]) == 0
    capsys.readouterr()
    assert evaluate.main(["a", "--data", "idx", "--split", "val"]) == 1
    assert evaluate.main(["a", "--data", "gone"]) == 1
    assert "--data gone: there is no such file or folder; set --data" in capsys.readouterr().err


def test_pictures_of_other_classes_and_spellings(small: Pictures) -> None:
    options = ImageSetConfig(name="mnist", root="idx", batch_size=16)
    facts = load_data(options).facts()
    names = DATA_SETS["fashion_mnist"].class_names
    fashion = ImageSetConfig(name="fashion_mnist", root="idx", batch_size=16)
    facts_of_fashion = {**facts, "class_names": list(names)}
    images = np.zeros((3, 40, 40), np.uint8)
    write_class_folders(Path("names"), images, np.array(["T-shirt-top", "Bag", "Bag"]))
    write_class_folders(Path("numbers"), images, np.array(["0", "8", "8"]))
    for place in ("names", "numbers"):
        data, _ = load_unseen(fashion, facts_of_fashion, place, "test")
        assert sorted(data.test.labels.tolist()) == [0, 8, 8]
        assert data.test.images.shape == (3, 784)
        assert (data.mean, data.std) == (facts["mean"], facts["std"])
    with pytest.raises(UserError, match=r"labels that the run was not trained on: Bag, T-shirt"):
        load_unseen(options, facts, "names", "test")
    Path("empty").mkdir()
    Image.new("L", (28, 28)).save("one.png")
    for place in ("empty", "one.png"):
        with pytest.raises(UserError, match=r"a folder with the files of mnist or a folder of pic"):
            load_unseen(options, facts, place, "test")


@pytest.mark.slow
def test_fashion_mnists_test_images_as_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (REAL / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"no FashionMNIST under {REAL}")
    monkeypatch.chdir(tmp_path)
    test = load_image_set("fashion_mnist", str(REAL)).test
    images, labels = test.images.view(-1, 28, 28).numpy(), test.labels.numpy()
    pictures = {}
    for split, rows in {"train": (0, 6000), "val": (6000, 7200), "test": (7200, 10_000)}.items():
        part = labels[slice(*rows)]
        order = rows[0] + np.argsort(part, kind="stable")  # as folders are read: class by class
        pictures[split] = images[order], labels[order]
    write_both(pictures)
    assert_same("data.batch_size=64", "trainer.max_epochs=2", "trainer.device=cpu",
                "trainer.progress=false", "model.hidden_size=64", "optimizer.lr=0.003")  # fmt: skip
    print(f"test accuracy of both: {metrics(Path('a'))[-1]['test_accuracy']}")


def test_pictures_that_are_dark_on_light_are_inverted_as_by_a_prediction(small: Pictures) -> None:
    options = ImageSetConfig(name="mnist", root="idx", batch_size=16)
    facts = load_data(options).facts()
    images, labels = (part[small["test"][1] > 0] for part in small["test"])  # 0 fills the frame
    write_class_folders(Path("dark"), 255 - images, labels.astype(str))
    data, _ = load_unseen(options, facts, "dark", "test")
    torch.testing.assert_close(data.test.images, torch.from_numpy(images).flatten(1))


def test_the_checksum_of_images_is_that_of_a_run(small: Pictures) -> None:
    for size in (None, 100):
        options = ImageSetConfig(name="mnist", root="idx", batch_size=16, train_size=size)
        assert images_checksum(options) == load_data(options).content  # type: ignore[attr-defined]
    Path("idx/MNIST/raw", IDX_FILES[0]).unlink()
    assert images_checksum(options) is None
