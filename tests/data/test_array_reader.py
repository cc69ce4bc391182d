"""Arrays in .npz files: what is read, and one clear message for each fault."""

import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from tiny_files import X

from elstm.config.data_options import ArraysConfig
from elstm.data.labelled import SERIES_BYTES
from elstm.data.load import load_data
from elstm.data.readers.arrays import read_arrays
from elstm.errors import UserError


def test_the_layout_says_what_the_axes_are(npz):
    y = np.array(["a", "b"])
    plain = read_arrays(npz(X=X, y=y))["all"]
    np.testing.assert_array_equal(plain.values, X)
    assert plain.values.dtype == np.float32
    assert plain.labels == ("a", "b")
    assert plain.lengths.tolist() == [4, 4]
    turned = read_arrays(npz(X=X.transpose(0, 2, 1), y=y), "nct")["all"]
    np.testing.assert_array_equal(turned.values, X)
    flat = read_arrays(npz(X=X[:, :, 0], y=y), "nt")["all"]
    np.testing.assert_array_equal(flat.values, X[:, :, :1])


def test_splits_and_lengths_of_arrays(npz):
    y = np.array([1, 2])
    path = npz(X_train=X, y_train=y, X_test=X + 1, y_test=y, lengths_train=np.array([2, 4]))
    source = read_arrays(path)
    assert set(source) == {"train", "test"}
    assert source["train"].lengths.tolist() == [2, 4]
    assert not source["train"].values[0, 2:].any()  # what lies beyond the length is zero
    np.testing.assert_array_equal(source["train"].values[1], X[1])
    np.testing.assert_array_equal(source["test"].values, X + 1)


@pytest.mark.parametrize(
    ("arrays", "layout", "phrase"),
    [
        ({"X": X}, "ntc", "X but not y"),
        ({"x": X, "y": np.zeros(2)}, "ntc", "needed are X and y"),
        ({"X_valid": X, "y_valid": np.zeros(2)}, "ntc", "or X_train and y_train"),
        ({"X": X, "X_train": X, "y": np.zeros(2)}, "ntc", "both X and X_train"),
        ({"X": X[:, :, 0], "y": np.zeros(2)}, "ntc", "data.layout=nt fits"),
        ({"X": X, "y": np.zeros(2)}, "nt", "data.layout=ntc or nct fits"),
        ({"X": X, "y": np.zeros(4)}, "ntc", "has to count the sequences"),
        ({"X": X, "y": np.zeros((2, 2))}, "ntc", "one label for each"),
        ({"X": X, "y": np.array([1.0, np.nan])}, "ntc", "a label is missing"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([4, 5])}, "ntc", "lengths[1] is 5, and X"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([0, 4])}, "ntc", "from 1 to 4"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([4.0, 4.0])}, "ntc", "2 integers"),
        ({"X": X, "y": np.zeros(2), "lengths": np.array([4])}, "ntc", "one for each sequence"),
        ({"X": X, "y": np.zeros(2), "seq_lens": np.array([4, 3])}, "ntc", "holds seq_lens, which"),
        ({"X": X, "y": np.zeros(2), "mask": np.ones((2, 4))}, "ntc", "holds mask, which would not"),
        ({"X": X[:0], "y": np.zeros(0)}, "ntc", "is empty"),
        ({"X": X.astype("U9"), "y": np.zeros(2)}, "ntc", "not real numbers"),
        (
            {"X": np.array([[1, "a"], [2, None]], object), "y": np.zeros(2)},
            "nt",
            "not real numbers",
        ),
        ({"X": X, "y": np.array(["a", None], object)}, "ntc", "Python objects, which are never"),
    ],
)
def test_arrays_that_do_not_fit(npz, arrays, layout, phrase):
    with pytest.raises(UserError) as caught:
        read_arrays(npz(**arrays), layout)
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_no_pickle_is_loaded(tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", pickle.dumps(Trap()))
        archive.writestr("y.npy", pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file"):
        read_arrays(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file"):
        read_arrays(path)
    single = tmp_path / "one.npy"
    np.save(single, X)
    with pytest.raises(UserError, match="one array"):
        read_arrays(single)
    with pytest.raises(UserError, match="No such file"):
        read_arrays(tmp_path / "gone.npz")


def test_the_size_is_known_before_anything_is_loaded(tmp_path):
    """The header promises 4 TB; the file has 80 bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 1000, 1000)}
    )
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", header.getvalue())
        labels = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            labels, {"descr": "<i8", "fortran_order": False, "shape": (1_000_000,)}
        )
        archive.writestr("y.npy", labels.getvalue())
    with pytest.raises(UserError, match=r"needs about 18,000\.0 GB of memory"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("shape", "missing"), [((300, 100, 20), "error"), ((600, 1000, 1), "forward")]
)
def test_loading_takes_the_memory_that_was_checked(npz, shape, missing):
    path = npz(X=np.ones(shape, np.float32), y=np.arange(shape[0]) % 3)
    options = ArraysConfig(name="x", path=str(path), missing=missing, batch_size=2)
    tracemalloc.start()
    try:
        load_data(options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SERIES_BYTES * np.prod(shape) + 2_000_000  # for code that is imported


@pytest.mark.parametrize(
    "name",
    [
        *("lengths", "lengths_test", "X_valid", "X_dev", "X_Test", "x_test", "Xval", "LENGTHS_val"),
        *("test_X", "trainX", "y_test", "test_lengths"),
    ],
)
def test_arrays_that_would_not_be_used(npz, name):
    arrays = {"X_train": X, "y_train": [0, 1], "lengths_train": [4, 2], name: [1, 2]}
    with pytest.raises(UserError, match=f"set.npz holds {name}, which would not be used"):
        read_arrays(npz(**arrays, note=[1]))


def test_groups_of_arrays(npz):
    y, who = np.array([1, 2]), np.array([[3.0], [4.0]])
    path = npz(X_train=X, y_train=y, who_train=who, X_test=X, y_test=y, who_test=["a", "b"])
    source = read_arrays(path, group="who")
    assert [source[split].groups for split in ("train", "test")] == [("3", "4"), ("a", "b")]
    assert read_arrays(path)["train"].groups == ()
    for group, arrays, phrase in (
        ("who", {}, "and who is none; the file holds X, y"),
        ("y", {}, "and y is none"),
        ("who", {"who": [1, 2, 3]}, "who (data.group) has to hold 2 groups, .* and is 3"),
        ("who", {"who": [1, np.nan]}, "who (data.group): a group is missing"),
    ):
        with pytest.raises(UserError, match=phrase.replace("(", r"\(").replace(")", r"\)")):
            read_arrays(npz(X=X, y=y, **arrays), group=group)
