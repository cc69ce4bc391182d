"""Files of the UCR/UEA archive: what is read, and one clear message for each fault."""

import numpy as np
import pytest
from tiny_files import TS

from elstm.config.data_options import TsConfig
from elstm.data.readers.ts import read_ts
from elstm.data.unseen import load_series, load_unseen
from elstm.errors import UserError


def test_labels_that_are_missing_in_a_header(tmp_path):
    path = tmp_path / "Own.ts"
    path.write_text(TS.replace("cat dog", "cat NaN"))
    with pytest.raises(UserError, match="line 8: @classLabel: a label is missing"):
        read_ts(path)


def test_ts_files_with_dimensions_missing_values_and_unequal_lengths(tmp_path):
    (tmp_path / "Two_TRAIN.ts").write_text(TS)
    (tmp_path / "Two_TEST.ts").write_text(TS.replace("7,?:8,NaN:dog\n", ""))
    for path in (tmp_path, tmp_path / "Two_TEST.ts"):
        source = read_ts(path)
        assert [len(source[split]) for split in ("train", "test")] == [2, 1]
        train = source["train"]
        np.testing.assert_array_equal(
            train.values, [[[1, 4], [2, 5], [3, 6]], [[7, 8], [np.nan, np.nan], [0, 0]]]
        )
        assert train.lengths.tolist() == [3, 2]
        assert train.labels == ("cat", "dog")
    (tmp_path / "Own.ts").write_text(TS)
    assert set(read_ts(tmp_path / "Own.ts")) == {"all"}


@pytest.mark.parametrize(
    ("old", "new", "phrase"),
    [
        ("@timeStamps false", "@timeStamps true", "time stamps (@timeStamps true) cannot"),
        ("@classLabel true cat dog", "@classLabel false", "has no class labels"),
        ("@classLabel true cat dog", "@targetLabel true", "a set for regression"),
        ("@classLabel true cat dog\n", "", "has no class labels"),
        ("dog\n@data", "dog", "'1,2,3:4,5,6:cat' is no line of a .ts header"),
        (":cat", ":bird", "line 10: the class label is 'bird', and @classLabel names cat, dog"),
        ("4,5,6", "4,5", "its dimensions have 2 to 3 values"),
        ("7,?:8,NaN:dog", "7,?:dog", "line 11: 1 dimensions, and 2 in the first"),
        ("@data\n", "@data 0,1:2,3:cat\n", "line 9: the sequences start in the next line"),
        ("1,2,3", "1,two,3", "dimension 1 holds 'two', which is no number"),
        ("1,2,3", "", "dimension 1 is empty"),
        ("1,2,3:4,5,6:cat", "1", "there is no class label after a colon"),
        ("1,2,3:4,5,6:cat\n7,?:8,NaN:dog\n", "", "holds no sequence after @data"),
    ],
)
def test_ts_files_that_do_not_fit(tmp_path, old, new, phrase):
    assert old in TS
    path = tmp_path / "Own.ts"
    path.write_text(TS.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_ts(path)
    assert phrase in str(caught.value)


def test_a_file_that_is_named_alone(tmp_path):
    """Its partner is found in upper and lower case, and trains; other data are the file itself."""
    (tmp_path / "Two_train.ts").write_text(TS)
    (tmp_path / "Two_test.ts").write_text(TS.replace("7,?:8,NaN:dog\n", ""))
    for end in ("train", "test"):
        path = tmp_path / f"Two_{end}.ts"
        assert [len(part) for part in read_ts(path).values()] == [2, 1]
        options = TsConfig(path=str(tmp_path), missing="zero")
        facts = {"class_names": ["cat", "dog"], "input_size": 2, "mean": [0, 0], "std": [1, 1]}
        _, part = load_series(options, facts, str(path))
        damaged = tmp_path / f"Two_{'test' if end == 'train' else 'train'}.ts"
        content = damaged.read_bytes()
        damaged.write_text("x")  # a prediction reads one file alone
        assert load_series(options, facts, str(path))[1].labels == part.labels
        damaged.write_bytes(content)
        assert part.ids == tuple(f"Two_{end}:{line}" for line in (10, 11)[: len(part)])
        assert len(part) == (2 if end == "train" else 1)
        data, taken = load_unseen(options, facts, str(path), end)
        assert (len(data.test), taken) == (len(part), f"{end} split")
        other = "test" if end == "train" else "train"
        with pytest.raises(UserError, match=f"is the {end} split of two files.* --split {end}"):
            load_unseen(options, facts, str(path), other)
    assert len(load_series(options, facts, str(tmp_path))[1]) == 3
    options.missing = "error"
    with pytest.raises(
        UserError, match=r"values of .*Two_train\.ts are .* with data.missing=error"
    ):
        load_series(options, facts, str(tmp_path / "Two_train.ts"))
    (tmp_path / "Other_test.ts").write_text(TS)
    assert set(read_ts(tmp_path / "Other_test.ts")) == {"all"}


def test_a_split_that_would_not_be_used(tmp_path):
    for split in ("TRAIN", "TEST", "Valid"):
        (tmp_path / f"Two_{split}.ts").write_text(TS)
    for path in (tmp_path, tmp_path / "Two_TRAIN.ts"):
        with pytest.raises(UserError, match=r"holds Two_Valid\.ts, which would not be used"):
            read_ts(path)
    (tmp_path / "Two_Valid.ts").rename(tmp_path / "Other_Valid.ts")
    assert set(read_ts(tmp_path)) == {"train", "test"}


def test_a_folder_with_two_sets(tmp_path):
    for name in ("A_TRAIN", "B_TRAIN"):
        (tmp_path / f"{name}.ts").write_text(TS)
    with pytest.raises(UserError, match=r"holds A_TRAIN\.ts, B_TRAIN\.ts: give the file itself"):
        read_ts(tmp_path)


def test_a_folder_with_two_sets_of_which_one_has_its_name(tmp_path):
    """aeon has JapaneseVowels and JapaneseVowels_eq in one folder."""
    folder = tmp_path / "Waves"
    folder.mkdir()
    for name in ("Waves_TRAIN", "Waves_eq_TRAIN", "Waves_eq_TEST"):
        (folder / f"{name}.ts").write_text(TS)
    assert {split: part.files[0].name for split, part in read_ts(folder).items()} == {
        "train": "Waves_TRAIN.ts"
    }
