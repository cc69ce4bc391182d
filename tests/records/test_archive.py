import math
import os

import numpy as np
import pytest
import yaml
from synthetic_runs import write_inside, write_run

from elstm.files.bounded import Damaged, flatten
from elstm.records.archive import Archive, finished_runs, pack
from elstm.records.cells import decode, encode, settings_tree
from elstm.records.correct import encode_correct, read_correct
from elstm.records.find import find_runs
from elstm.records.stored import RunFolder, table_rows
from elstm.reporting.runs import load_runs


def packed(folder, archive, *, inside=None):
    """Packs the runs in a folder and returns the archive, which is written elsewhere."""
    runs, damaged = find_runs([folder])
    assert damaged == []
    names = [run.folder.relative_to(folder).as_posix() for run in runs]
    archive.mkdir()
    for name, content in pack(runs, names, names if inside is None else inside).items():
        (archive / name).write_bytes(content)
    return Archive(archive)


@pytest.fixture
def study(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"study/digits/lstm/{seed}", "lstm", "digits", seed=seed, epochs=2)
    write_run(
        tmp_path / "study/digits/bn/0", "bn_lstm", "digits", epochs=2, state="failed",
        error="=cmd, \"x\"\n,", model__renorm=True, model__sizes=[1, [2.5, "x"]], other={},
    )  # fmt: skip
    return tmp_path / "study"


def test_half_a_million_images_are_read(tmp_path):
    correct = np.arange(600_000) % 3 == 0
    (tmp_path / "test_correct.csv").write_bytes(encode_correct(correct))
    found = read_correct(RunFolder("x", tmp_path))
    assert found is not None
    assert (found == correct).all()


@pytest.mark.parametrize(
    ("fields", "cells"), [(["extensions"], ["[" * 100_000]), (["x", "x.y"], ["5", "7"])]
)
def test_a_status_that_cannot_be_read_damages_only_its_archive(study, tmp_path, fields, cells):
    folder = packed(study, tmp_path / "packed").folder
    header = ["run", "folder", "model.name", "data.name", "seed", "state", *fields]
    row = ["1", "a", "lstm", "digits", "0", "done", *cells]
    (folder / "runs.csv").write_text(f"{','.join(header)}\n{','.join(row)}\n")
    runs, damaged = find_runs([tmp_path])
    assert len(runs) == 3
    ((name, reason),) = damaged
    assert name.endswith("packed")
    assert reason.startswith("runs.csv")


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -3, 10**20, 0.1, -1e-8, 1e30, math.inf, -math.inf, "", "lstm", "null",
        "true", "1", "-1", "1.5", "3.10", "1e-3", ".inf", "nan", "=cmd()", "+1", "-x", "@x", "'x",
        '"x"', "a,b", "a\nb", "\x1b[31m", " x ", "${oc.env:HOME}", "é", "\u202e", "x" * 1000,
    ],
)  # fmt: skip
def test_cells_hold_every_value(value):
    cell = encode(value)
    assert cell
    assert cell.isprintable()
    assert isinstance(value, int | float) or cell[0] not in "=+-@"
    back = decode(cell)
    assert (type(back), back) == (type(value), value)


def test_a_run_reads_as_its_folder_did(study, tmp_path):
    folder = study / "digits/bn/0"
    write_inside(folder, {"norm, c": [(1.0, 0.5, 0.25)]}, {"gradient": [0.5, 0.25]})
    runs, _ = find_runs([study])
    archived = packed(study, tmp_path / "archive").runs
    assert [run.name for run in archived] == ["digits/bn/0", "digits/lstm/0", "digits/lstm/1"]
    for run, back in zip(runs, archived, strict=True):
        assert back.config() == run.config()
        status = {key: value for key, value in run.status().items() if key in back.status()}
        assert back.status() == status
        assert run.status().keys() - status.keys() == {"model", "data", "seed"}
        for table in ("metrics.csv", "norms.csv", "over_time.csv"):
            assert table_rows(back, table) == table_rows(run, table)
    assert settings_tree(archived[0].config()) == yaml.safe_load(
        (folder / ".hydra/config.yaml").read_text()
    )
    assert len(table_rows(archived[0], "norms.csv")) == 1


def test_the_full_config_of_the_first_run_stands_in_the_archive(study, tmp_path):
    packed(study, tmp_path / "archive")
    tree = yaml.safe_load((tmp_path / "archive/archive.yaml").read_text())
    first = yaml.safe_load((study / "digits/bn/0/.hydra/config.yaml").read_text())
    assert flatten(tree["config"], "") == flatten(first, "")


def test_runs_with_other_columns_share_a_table(study, tmp_path):
    (study / "digits/lstm/0/over_time.csv").write_text("t,gradient\n1,0.5\n")
    (study / "digits/lstm/1/over_time.csv").write_text("t,cell_mean,gradient\n1,7,0.25\n2,8,0\n")
    (study / "digits/lstm/1/norms.csv").write_text("norm\n")
    archive = packed(study, tmp_path / "archive", inside=["digits/lstm/0", "digits/lstm/1"])
    _, one, two = archive.runs
    assert table_rows(one, "over_time.csv") == [{"t": "1", "gradient": "0.5", "cell_mean": ""}]
    assert [row["cell_mean"] for row in table_rows(two, "over_time.csv")] == ["7", "8"]
    assert not (tmp_path / "archive/norms.csv").exists()
    assert table_rows(two, "norms.csv") == []


@pytest.mark.parametrize("images", [0, 1, 8, 13, 10_000])
def test_correctness_of_each_test_image(study, tmp_path, images):
    correct = np.random.default_rng(0).random(images) < 0.9
    (study / "digits/lstm/1/test_correct.csv").write_bytes(encode_correct(correct))
    runs = packed(study, tmp_path / "archive", inside=[]).runs
    for run in (RunFolder("", study / "digits/lstm/1"), runs[2]):
        assert read_correct(run).tolist() == correct.tolist()
    assert read_correct(runs[1]) is None


@pytest.mark.parametrize("row", ["9,ff", "-1,", "8,zz", "x,ff", "8,ffff", "8,ff\n8,ff", "8"])
def test_damaged_correctness_is_an_error(tmp_path, row):
    (tmp_path / "test_correct.csv").write_text(f"images,correct\n{row}\n")
    with pytest.raises(Damaged, match=r"test_correct\.csv"):
        read_correct(RunFolder("", tmp_path))


def test_finished_runs_are_those_that_are_done(study, tmp_path):
    assert finished_runs(tmp_path / "archive") == []
    packed(study, tmp_path / "archive")
    found = finished_runs(tmp_path / "archive")
    assert [run.name for run in found] == ["digits/lstm/0", "digits/lstm/1"]
    assert found[0].folder == tmp_path / "archive/digits/lstm/0"
    assert found[0].status()["test_accuracy"] > 0.5


def edit(archive, name, old, new):
    path = archive / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("runs.csv", "digits/lstm/1", "../../x", "not below"),
        ("runs.csv", "digits/lstm/1", "/etc", "not below"),
        ("runs.csv", "digits/lstm/1", "c:\\x", "not below"),
        ("runs.csv", "digits/lstm/1", "digits/lstm/0", "holds a run twice"),
        ("runs.csv", "\n3,", "\n2,", "holds a run twice"),
        ("runs.csv", "run,folder", "folder,run", "does not name run"),
        ("runs.csv", "seed", "model.name", "names a column twice"),
        ("runs.csv", "\n3,", "\n3,x,", "row 4 does not have"),
        ("runs.csv", "bn_lstm", '"""x"', "row 2: a text has no end"),
        ("runs.csv", "bn_lstm", '"x', "is not a table"),
        ("archive.yaml", "format: 1", "format: 2", "has format 2, this version reads 1"),
        ("archive.yaml", "format: 1", "formats: 1", "names no format"),
        ("archive.yaml", "format: 1", "format: !!python/name:os.system", "not plain YAML"),
        ("archive.yaml", "config:", "config:\n  x: [" + "1," * 5001 + "]", "5,000 entries"),
        ("curves.csv", "\n3,", "\n4,", "a run that is not in runs.csv"),
        ("curves.csv", "run,epoch", "epoch", "does not name the columns"),
        ("curves.csv", "\n3,", "\n3,x", "epoch is not a number"),
    ],
)
def test_damage_is_one_message(study, tmp_path, name, old, new, said):
    packed(study, tmp_path / "archive")
    edit(tmp_path / "archive", name, old, new)
    runs, damaged = load_runs([tmp_path / "archive"])
    assert damaged
    assert said in damaged[0][1]
    assert len(runs) < 3


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(10**12)


def test_links_pipes_and_huge_files_are_not_read(study, tmp_path):
    folder = tmp_path / "archive"
    packed(study, folder)
    for name in ("archive.yaml", "runs.csv", "curves.csv"):
        path = folder / name
        path.rename(tmp_path / "elsewhere")
        for make in (
            lambda path: path.symlink_to(tmp_path / "elsewhere"),
            os.mkfifo,
            make_huge,
        ):
            make(path)
            with pytest.raises(Damaged, match=r"is a link|not a plain file|larger than"):
                Archive(folder).runs[0].lines("metrics.csv")
            path.unlink()
        (tmp_path / "elsewhere").rename(path)
    assert len(Archive(folder).runs) == 3


def test_an_archive_of_too_many_settings_is_refused_before_it_is_held(study, tmp_path):
    folder = tmp_path / "archive"
    packed(study, folder)
    row = (folder / "runs.csv").read_text().splitlines()[1].partition(",")[2]
    with (folder / "runs.csv").open("a") as file:
        file.writelines(f"{number},{row}\n" for number in range(4, 25_000))
    with pytest.raises(Damaged, match="too many"):
        Archive(folder)
