"""A report that replaces another one leaves none of its figures, and all of the user's files."""

import html
from types import SimpleNamespace

import pytest
from synthetic_runs import write_run

from elstm.commands.report import main
from elstm.reporting import dynamics, write


@pytest.fixture
def runs(tmp_path):
    for data in ("fashion_mnist", "mnist"):
        write_run(tmp_path / f"runs/{data}", "lstm", data, epochs=2)
    return tmp_path / "runs"


def figures(folder):
    return {path.name for path in folder.glob("figures/*")}


def test_figures_of_an_earlier_report_are_removed_and_no_other_file(runs, tmp_path):
    folder = tmp_path / "report"
    assert main([str(runs), "-o", str(folder)]) == 0
    before = figures(folder)
    (folder / "figures/mine.png").write_bytes(b"my own")
    (folder / "notes.md").write_text("my own")
    # A figure that the user has edited is the user's own.
    edited = folder / "figures/mnist-training-loss.svg"
    edited.write_text(edited.read_text() + "<!-- my note -->")
    assert main([str(runs / "fashion_mnist"), "-o", str(folder)]) == 0
    stale = {name for name in before if name.startswith("mnist")}
    assert len(stale) == 6
    assert figures(folder) == before - stale | {"mine.png", edited.name}
    assert (folder / "notes.md").read_text() == "my own"


def test_a_report_without_figures_leaves_no_empty_folder(runs, tmp_path):
    folder = tmp_path / "report"
    main([str(runs), "-o", str(folder)])
    main([str(runs), "-o", str(folder), "--figures", "none"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html", "report.md", "results.csv", "summary.csv",
    ]  # fmt: skip


def test_a_list_names_no_file_outside_the_figures(runs, tmp_path):
    folder = tmp_path / "report"
    main([str(runs), "-o", str(folder), "--figures", "none"])
    own = tmp_path / "own.png"
    own.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    page = folder / "report.html"
    for names in (f'{{"../own.png": "{empty}", "figures/../../own.png": "{empty}"}}', "[1]", "{"):
        text = page.read_text()
        assert 'name="elstm-figures" content="{}"' in text
        page.write_text(text.replace('content="{}"', f'content="{html.escape(names, quote=True)}"'))
        assert main([str(runs), "-o", str(folder), "--figures", "none"]) == 0
    assert own.exists()


def test_a_linked_folder_of_figures_is_left_alone(runs, tmp_path):
    folder, elsewhere = tmp_path / "report", tmp_path / "elsewhere"
    main([str(runs), "-o", str(folder)])
    (folder / "figures").rename(elsewhere)
    (folder / "figures").symlink_to(elsewhere)
    before = {path.name for path in elsewhere.iterdir()}
    main([str(runs), "-o", str(folder), "--figures", "none"])
    assert {path.name for path in elsewhere.iterdir()} == before


def test_texts_of_the_user_are_not_overwritten(runs, tmp_path, capsys):
    folder = tmp_path / "report"
    folder.mkdir()
    for name in ("report.html", "report.md", "results.csv", "summary.csv"):
        (folder / name).write_text("my own")
        assert main([str(runs), "-o", str(folder), "--figures", "none"]) == 1
        assert f"{name} is not the {name} of an earlier report" in capsys.readouterr().err
        assert (folder / name).read_text() == "my own"
        assert [path.name for path in folder.iterdir()] == [name]
        (folder / name).unlink()


def test_times_of_several_machines_are_not_compared(tmp_path):
    for seed in range(3):
        for model, device in (("lstm", "CPU"), ("elstm_bn", "NVIDIA H200")):
            status = {"device_name": device}
            write_run(tmp_path / f"{model}-{seed}", model, seed=seed, epochs=4, status=status)
    main([str(tmp_path), "-o", str(tmp_path / "report"), "--figures", "time-to-baseline"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Times are not comparable" in text
    assert "of its epochs" in text
    assert "of its time" not in text
    assert "wall-clock time to" not in text


def test_file_names_keep_whole_numbers():
    assert write._file_name(f"{'a' * 44} train_size=10000", set()) == "a" * 44
    assert write._file_name("a" * 70, set()) == "a" * 60


def test_the_norms_that_are_drawn_are_counted():
    def read(count):
        return [(None, SimpleNamespace(norms=dict.fromkeys(f"norm_c_l{n}" for n in range(count))))]

    assert dynamics.shown_norms(read(4)) == "each normalisation"
    assert dynamics.shown_norms(read(6)) == "the first 4 of 6 normalisations"


def test_times_are_left_out_on_request(tmp_path):
    write_run(tmp_path / "runs", epochs=2)
    arguments = [str(tmp_path / "runs"), "-o", str(tmp_path / "report")]
    captions = []
    for option in ([], ["--no-times"]):
        assert main([*arguments, "--figures", "validation-accuracy", *option]) == 0
        text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
        captions.append(" and wall-clock time. Mean" in text)
    assert captions == [True, False]
