"""elstm-predict: image files of all kinds to CSV, and the bad ones each a line."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_tools import SHAPE, png_that_claims, saved
from PIL import Image
from training_runs import small_config

from elstm.commands import predict
from elstm.config.schema import Config
from elstm.data import image_files
from elstm.data.load import load_data
from elstm.data.readers.image_folders import read_image_folders
from elstm.data.sequences import ImageSequences
from elstm.errors import UserError
from elstm.records import pictures as figures
from elstm.training import run as training
from elstm.training import trained


@pytest.fixture(scope="module")
def config() -> Config:
    return small_config(max_epochs=2, lr=0.05, data={"permute": True})


@pytest.fixture(scope="module")
def data(config: Config) -> ImageSequences:
    return load_data(config.data)


@pytest.fixture(scope="module")
def trained_run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "gradient_figure", lambda *_: b"a picture")
        training.run(config, folder)
    return folder


@pytest.fixture(autouse=True)
def its_config(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was made without Hydra; reading .hydra/config.yaml is tested elsewhere."""
    monkeypatch.setattr(trained, "load_run_config", lambda run_dir: config)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predictions_are_those_of_the_evaluation(
    trained_run: Path, data: ImageSequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test images as files, in several batches, without the data set."""
    monkeypatch.setattr(predict, "BATCH", 7)
    images = data.test.images[:20].view(-1, 8, 8).numpy()
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "out.csv"
    assert predict.main([str(trained_run), str(folder), "--output", str(out)]) == 0
    rows = read(out.read_text())
    assert [Path(r["file"]).name for r in rows] == [f"{i:02}.png" for i in range(20)]
    model = trained.load_trained(trained_run).model
    with torch.no_grad():
        expected = model(data.sequences(data.test.images[:20])).softmax(1)
    found = np.array([[float(r[f"p({d})"]) for d in range(10)] for r in rows])
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
    assert [int(r["predicted"]) for r in rows] == expected.argmax(1).tolist()
    assert [r["probability"] for r in rows] == [r[f"p({r['predicted']})"] for r in rows]


def test_bad_files_are_a_line_each(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, text, half = tmp_path / "good.png", tmp_path / "text.png", tmp_path / "half.png"
    noise = np.random.default_rng(0).integers(0, 100, (64, 64), dtype=np.uint8)
    noise[20:40, 20:40] += 150
    Image.fromarray(noise).save(good)
    text.write_text("no image")
    half.write_bytes(good.read_bytes()[:-2000])
    large, huge = tmp_path / "large.png", tmp_path / "huge.png"
    large.write_bytes(png_that_claims(8_000, 8_000))
    huge.write_bytes(png_that_claims(60_000, 60_000))
    words = [good, text, half, large, huge, tmp_path / "gone.png", good]
    assert predict.main([str(trained_run), *map(str, words)]) == 1
    captured = capsys.readouterr()
    assert [r["file"] for r in read(captured.out)] == [str(good), str(good)]
    lines = captured.err.splitlines()
    for line, (path, message) in zip(
        lines,
        [
            (text, "not an image that can be read"),
            (half, "truncated"),
            (large, "it has too many pixels, at most 50,000,000"),
            (huge, "it has too many pixels, at most 50,000,000"),
            (tmp_path / "gone.png", "there is no such file"),
            (f"{good} (and 1 more)", "was scaled in full (--fit finds the content"),
            ("error", "5 of 7 files could not be read"),
        ],
        strict=True,
    ):
        assert line.startswith(f"elstm-predict: {path}: ")
        assert message in line


def test_an_output_is_written_at_once_or_not_at_all(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = str(saved(Image.fromarray(SHAPE), tmp_path / "a.png"))
    out = tmp_path / "out.csv"
    out.write_text("old")
    out.chmod(0o600)
    link = tmp_path / "link.csv"
    link.symlink_to(out)
    words = [str(trained_run), image, "--output", str(link)]

    def fails(*_: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(predict._Predictor, "probabilities", fails)
        assert predict.main(words) == 1
    assert predict.main([str(trained_run), str(tmp_path / "gone.png"), *words[2:]]) == 1
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "link.csv", "out.csv"]
    assert predict.main(words) == 0
    assert [r["file"] for r in read(out.read_text())] == [image]
    assert link.is_symlink()
    assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_output_may_be_a_pipe(trained_run: Path, tmp_path: Path) -> None:
    image = str(saved(Image.fromarray(SHAPE), tmp_path / "a.png"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert predict.main([str(trained_run), image, "--output", str(pipe)]) == 0
        assert [r["file"] for r in read(os.read(reader, 10_000).decode())] == [image]
    finally:
        os.close(reader)


def test_names_of_all_kinds(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commas, quotes and line ends come back from the CSV; bytes that are not UTF-8 are shown."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["a,b.png", 'a"b.png', "a\nb.png", "a\rb.png", "=1+1.png", "é😀.png", "caf\udce9.png"]
    for name in names:
        Image.fromarray(SHAPE).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(folder / name)
    out = tmp_path / "out.csv"
    assert predict.main([str(trained_run), str(folder), "--output", str(out)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {str(folder / name) for name in [*names[:-1], "caf\\xe9.png"]}
    assert {row["file"] for row in rows} == shown
    assert predict.main([str(trained_run), str(folder / names[-1])]) == 0
    assert "caf\\xe9.png" in capsys.readouterr().out
    assert predict._shown("=1+1\x1b[2J\n.png", terminal=True) == r"./=1+1\x1b[2J\n.png"


def test_what_is_taken_from_a_folder(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hidden files are skipped; what has an image's name and is none costs its line alone."""
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "._a.png", "b/c.PNG", "b/deep/d.png", ".hidden/e.png"):
        Image.fromarray(SHAPE[:8]).save(tmp_path / name)
    words = [str(trained_run), str(tmp_path)]

    def taken() -> list[str]:
        return [str(Path(r["file"]).relative_to(tmp_path)) for r in read(capsys.readouterr().out)]

    assert predict.main(words) == 0
    assert taken() == ["a.png"]
    assert predict.main([*words, "--recursive"]) == 0
    assert taken() == ["a.png", "b/c.PNG", "b/deep/d.png"]
    assert predict.main([str(trained_run), str(tmp_path / "._a.png")]) == 0
    capsys.readouterr()

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "empty.png").touch()
    assert predict.main(words) == 1
    captured = capsys.readouterr()
    assert len(read(captured.out)) == 1
    assert captured.err.splitlines() == [
        f"elstm-predict: {tmp_path}/empty.png: it is empty",
        f"elstm-predict: {tmp_path}/link.png: there is no such file",
        f"elstm-predict: {tmp_path}/pipe.png: not a plain file",
        "elstm-predict: error: 3 of 4 files could not be read",
    ]


def test_a_folder_and_a_file_that_may_not_be_read(
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs as an ordinary user, because root may read everything."""
    path = saved(Image.fromarray(SHAPE), tmp_path / "a.png")

    def denied(name: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(name))

    with monkeypatch.context() as patch:
        patch.setattr(image_files.os, "open", denied)
        assert predict.main([str(trained_run), str(path)]) == 1
    assert f"elstm-predict: {path}: cannot be read: Permission denied" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        assert predict.main([str(trained_run), str(tmp_path)]) == 1
    message = f"cannot read the folder {tmp_path}: Permission denied"
    assert message in capsys.readouterr().err
    assert predict.main([str(trained_run), "a" * 5000]) == 1
    assert "File name too long" in capsys.readouterr().err


def test_dark_on_light_is_recognised_and_reported(
    trained_run: Path, data: ImageSequences, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = data.test.images[:12].view(-1, 8, 8).numpy()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    words = [str(trained_run), str(tmp_path)]

    def predicted(*options: str) -> tuple[list[str], str]:
        assert predict.main([*words, *options]) == 0
        captured = capsys.readouterr()
        return [r["p(3)"] for r in read(captured.out)], captured.err

    expected, err = predicted()
    assert err == ""
    for i, image in enumerate(images):
        Image.fromarray(255 - image).save(tmp_path / f"{i:02}.png")
    found, err = predicted()
    assert found == expected
    assert err == (
        f"elstm-predict: {tmp_path}/00.png (and 11 more): the picture is dark on light and was "
        "inverted (--invert no keeps it)\n"
    )
    assert predicted("--invert", "yes") == (expected, "")
    # It was a flag; and options may stand anywhere.
    assert predict.main([words[0], "--invert", words[1]]) == 0
    assert [r["p(3)"] for r in read(capsys.readouterr().out)] == expected
    kept, err = predicted("--invert=no")
    assert kept != expected
    assert err == ""


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_a_users_own_are_taken_as_in_training(tmp_path: Path, channels: int) -> None:
    """Checks that the reader of the training images is used, in colour, without inversion."""
    light = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    light[:3] = light[-3:] = light[:, :3] = light[:, -3:] = 250
    (tmp_path / "a").mkdir()
    for name in ("light.png", "light.jpg"):
        Image.fromarray(light).resize((300, 400), Image.Resampling.NEAREST).save(
            tmp_path / "a" / name
        )
    # A folder may be called like a published set, of which it is none.
    facts = {"name": "mnist", "image_size": [8, 6], "channels": channels, "mean": 0.6}
    facts["fingerprint"] = "0123456789abcdef"
    trained = SimpleNamespace(model=None, facts=facts)
    predictor = predict._Predictor(trained, invert=None, fit=False)
    source = read_image_folders(tmp_path, channels, (8, 6))["all"]
    for row, name in enumerate(source.ids):
        found = predictor.read(tmp_path / name)
        np.testing.assert_array_equal(found.reshape(48, channels), source.values[row])
    assert predictor.notes == {}
    Image.fromarray(light[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="grey levels of 16 bits"):  # refused in training too
        predictor.read(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"--fit places contents as in digits, mnist"):
        predict._Predictor(trained, invert=None, fit=True)
    series = SimpleNamespace(model=None, facts={"name": "mine", "num_steps": 9})
    with pytest.raises(UserError, match="classifies pictures, and the run was trained on series"):
        predict._Predictor(series, invert=None, fit=False)


def test_a_picture_without_contrast_is_reported(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(Image.new("L", (50, 40), 255), tmp_path / "page.png")
    for options in ([], ["--fit"], ["--invert", "yes"]):
        assert predict.main([str(trained_run), str(path), *options]) == 0
        assert capsys.readouterr().err == (
            f"elstm-predict: {path}: the picture has no contrast, "
            "so its prediction is meaningless\n"
        )


def test_user_errors(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(saved(Image.fromarray(SHAPE), tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "gone", image], "there is no run folder"),
        ([trained_run, tmp_path / "empty"], "there are no images in"),
        ([trained_run, image, "--output", tmp_path / "gone" / "x.csv"], "cannot write"),
        ([trained_run, image, "--output", tmp_path], "it is a folder"),
    ):
        assert predict.main([str(word) for word in words]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("elstm-predict: error: ")
        assert message in captured.err
