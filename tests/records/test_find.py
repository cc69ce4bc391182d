"""Finding runs below folders, in sweeps and in archives."""

import os
from pathlib import Path

import pytest
from synthetic_runs import write_run

from elstm.errors import UserError
from elstm.records.find import find_runs
from elstm.reporting.runs import load_runs


def test_runs_are_found_at_any_depth_once_and_not_through_links(tmp_path):
    a = write_run(tmp_path / "outputs/fashion_mnist/lstm/a", epochs=1)
    write_run(tmp_path / "outputs/fashion_mnist/lstm/a/checkpoints/inner", epochs=1)
    write_run(tmp_path / "b", epochs=1)
    (tmp_path / "outputs/link").symlink_to(tmp_path / "b")
    found, _ = find_runs([tmp_path / "outputs", a, a / ".." / "a"])
    assert [run.name for run in found] == ["outputs/fashion_mnist/lstm/a"]


def test_a_sweeps_folder_names_its_runs(tmp_path):
    top = tmp_path / "top"
    for name in ("a", "b"):
        write_run(top / f"outputs/digits/lstm/{name}", epochs=1)
    write_run(tmp_path / "outside", epochs=1)
    sweep = top / "outputs/sweeps/2025"
    sweep.mkdir(parents=True)
    names = ["outputs/digits/lstm/b", "outputs/gone", "../outside", str(tmp_path / "outside"), ""]
    (sweep / "sweep.csv").write_text("seed,run_dir\n" + "".join(f"0,{n}\n" for n in names))
    assert [run.folder for run in find_runs([sweep])[0]] == [top / "outputs/digits/lstm/b"]
    (sweep / "loop").symlink_to("loop")
    names = ["a\0b", "x" * 5000, "outputs/sweeps/2025/loop/x"]
    (sweep / "sweep.csv").write_text("run_dir\n" + "".join(f"{n}\n" for n in names))
    assert find_runs([sweep]) == ([], [])
    (sweep / "sweep.csv").write_text("\0")
    assert find_runs([sweep]) == ([], [])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_run(tmp_path / "outputs/a", epochs=1)
    (tmp_path / "outputs/closed").mkdir()
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, damaged = find_runs([tmp_path / "outputs"])
    assert [run.name for run in found] == ["outputs/a"]
    assert damaged == [("outputs/closed", "cannot be read: Permission denied")]
    for name in ("x" * 300, "loop"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(UserError, match=f"{name[:20]}.* "):
            find_runs([tmp_path / name])


def test_a_root_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        load_runs([tmp_path / "nowhere"])
