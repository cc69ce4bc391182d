"""Run folders, checkpoints and configs of strangers: they run no code, lead nowhere, stay small."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from PIL import Image
from synthetic_runs import write_run
from training_runs import without_pictures

from elstm import train
from elstm.commands import evaluate, export, predict, report
from elstm.commands.prediction_rows import CsvRows
from elstm.config.compose import Composer
from elstm.config.run_config import load_run_config
from elstm.errors import UserError
from elstm.files.atomic import read_json, write_atomic
from elstm.training import checkpoint
from elstm.training import run as training

pytestmark = pytest.mark.usefixtures("no_pictures")

WORDS = [
    "model=bn_lstm",
    "model.backend=reference",
    "model.hidden_size=8",
    "data.train_size=64",
    "trainer.max_epochs=1",
]


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as elstm-train leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    cfg, config = Composer().compose(WORDS)
    (folder / ".hydra").mkdir(parents=True)
    with open_dict(cfg):
        OmegaConf.save(cfg.hydra, folder / ".hydra" / "hydra.yaml")
        del cfg["hydra"]
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        training.run(config, folder)
    (folder / "train.log").touch()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, in which nothing may come about by itself."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    monkeypatch.chdir(tmp_path)
    yield folder
    assert not list(tmp_path.rglob("harm"))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """A checkpoint of the stranger's making, properly sealed."""
    content = checkpoint.load(path)
    edit(content)
    for key in ("format", "version"):
        del content[key]
    checkpoint.save(content, path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    return path


def refused_by_all(run: Path, image: Path, capsys: pytest.CaptureFixture[str], said: str) -> None:
    """Checks the messages of elstm-predict, which reads as elstm-eval does, and of elstm-train."""
    for command, words in (
        (predict.main, [str(run), str(image)]),
        (train.main, [f"trainer.resume={run}"]),
    ):
        capsys.readouterr()
        assert command(words) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err
        assert "a bug" not in err


def test_the_run_itself_works(run: Path, image: Path) -> None:
    assert predict.main([str(run), str(image)]) == 0
    assert evaluate.main([str(run)]) == 0
    assert train.main([f"trainer.resume={run}"]) == 0


@pytest.mark.parametrize(("value", "loads"), [("stop", True), ("skip", False)])
def test_a_run_with_a_setting_that_was_removed(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str], value: str, loads: bool
) -> None:
    """Checks that the run loads with the default, and that every command refuses other values."""
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("trainer:\n", f"trainer:\n  on_nonfinite: {value}\n"))
    if not loads:
        refused_by_all(run, image, capsys, "trainer.on_nonfinite=skip: this setting was removed")
        for command in (evaluate.main, export.main):
            assert command([str(run)]) == 1
            assert "supports it is d8d01eb" in capsys.readouterr().err
        return
    assert predict.main([str(run), str(image)]) == 0
    assert evaluate.main([str(run)]) == 0
    assert export.main([str(run)]) == 0
    assert train.main([f"trainer.resume={run}"]) == 0


def test_names_of_classes_run_nothing() -> None:
    """Neither in a terminal nor in a spreadsheet."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    names = ["=cmd()", "\x1b[31m"]
    for out in (io.StringIO(), Terminal()):
        rows = CsvRows(out)
        rows.start(["file"], names, lambda text, terminal: text)
        rows.add(["a"], [0.75, 0.25])
        header, row = out.getvalue().splitlines()
        assert row == "a,'=cmd(),0.750000,0.750000,0.250000"
        assert ("\x1b" in header) == (not out.isatty())
    assert "\x1b" not in evaluate._table(torch.eye(2, dtype=torch.int64), names, "images")


# --- checkpoints


def everywhere(run: Path, write: Callable[[Path], object]) -> None:
    for name in ("best.pt", "last.pt", "previous.pt"):
        write(run / "checkpoints" / name)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(pickle.dumps(Malicious())),
        lambda path: path.write_bytes(
            pickle.dumps({"format": checkpoint.FORMAT, "x": Malicious()})
        ),
        lambda path: torch.save(
            {"format": checkpoint.FORMAT, "version": 1, "x": Malicious()}, path
        ),
        lambda path: torch.save(
            {"format": checkpoint.FORMAT, "version": 1, "x": Malicious()},
            path,
            _use_new_zipfile_serialization=False,
        ),
    ],
    ids=["pickle", "pickled checkpoint", "torch.save", "torch.save of old"],
)
def test_pickles_are_not_run(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], object]
) -> None:
    everywhere(run, write)
    refused_by_all(run, image, capsys, "is damaged or was not written by elstm")


def terabytes() -> torch.Tensor:
    return torch.zeros(1).expand(10**6, 10**6)


def expand(tensors: dict[str, torch.Tensor], name: str) -> None:
    """Every element of a tensor at one place in memory."""
    tensors[name] = torch.zeros(1).expand(tensors[name].shape)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c["model"].update({"head.weight": terabytes()}), "damaged"),
        (lambda c: c["optimizer"]["state"][0].update(exp_avg=terabytes()), "damaged"),
        (lambda c: c.update(extra=torch.zeros(9).to_sparse()), "damaged"),
        (lambda c: c.update(extra=bytearray(9)), "damaged"),
        (lambda c: c.update(extra=[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]), "damaged"),
        (lambda c: c.update(model=[]), "it holds no model"),
        (lambda c: c.pop("data"), "it holds no data"),
        (lambda c: c.pop("state"), "it holds no state"),
        (lambda c: c["model"].update({"head.bias": torch.zeros(11)}), "head.bias of 11 float32"),
        (lambda c: c["model"].update({"head.bias": 1}), "head.bias not at all, the config's of 10"),
        (lambda c: c["model"].update({"more": torch.zeros(1)}), "more of 1 float32"),
        (lambda c: c["model"].pop("head.bias"), "head.bias not at all"),
        (lambda c: c["data"].update(name="mnist"), "name mnist, not digits"),
        (lambda c: c["data"].update(image_size=[10**6, 10**6]), "image_size [1000000, 1000000]"),
        (lambda c: c["data"].update(pixels_per_step=0), "pixels_per_step 0, not 8"),
        (lambda c: c["data"]["class_names"].__setitem__(0, "=cmd()"), "class_names"),
        (lambda c: c["data"].update(std=0.0), "standard deviation of its data is 0.0"),
        (lambda c: c["data"].update(mean="x"), "the mean of its data is x"),
        (lambda c: c["data"].update(permutation=torch.arange(64)), "an order of the pixels"),
        (lambda c: c["data"].update(mean=10**400), "the mean of its data is 10000"),
        (lambda c: c["state"].update(step=-1), "step is -1"),
        (lambda c: c["state"].update(step=2**70), "step is 1180591620717411303424"),
        (lambda c: c["state"].update(epoch="\x1b[31m"), "epoch is ?[31m"),
        (lambda c: c["model"]["head.bias"].fill_(float("nan")), "head.bias is not finite"),
        (
            lambda c: c["settings"].update({"model.eps": 0.5}),
            "trained with model.eps=0.5, not null",
        ),
        (lambda c: expand(c["model"], "head.weight"), "damaged"),
        (lambda c: expand(c["optimizer"]["state"][0], "exp_avg"), "damaged"),
        (lambda c: c.update(extra=torch.nn.Parameter(torch.zeros(2))), "damaged"),
        (lambda c: c.update(extra=torch.zeros(2, device="meta")), "damaged"),
        (lambda c: c.update(extra=torch._neg_view(torch.zeros(2))), "damaged"),
    ],
)
def test_checkpoints_that_are_not_of_the_run(
    run: Path,
    image: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[dict[str, Any]], object],
    said: str,
) -> None:
    everywhere(run, lambda path: path.exists() and change(path, edit))
    refused_by_all(run, image, capsys, said)


def test_a_config_of_terabytes_is_refused_before_it_is_built(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("hidden_size: 8\n", "hidden_size: 65536\n"))
    assert load_run_config(run).model.hidden_size == 65536
    refused_by_all(run, image, capsys, "65536")  # elstm-train counts the memory before
    everywhere(run, lambda p: p.exists() and change(p, lambda c: c.pop("settings")))
    assert predict.main([str(run), str(image)]) == 1
    assert "the config's of 262144 x 8 float32" in capsys.readouterr().err


def test_optimizer_states_of_another_shape_reach_no_optimizer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fused optimizer writes as many elements as the parameter has, wherever the state ends."""

    def shorten(content: dict[str, Any]) -> None:
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)

    everywhere(run, lambda path: path.exists() and change(path, shorten))
    assert train.main([f"trainer.resume={run}"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "its optimizer's exp_avg of parameter 0 is of 1 float32, not of 32 x 8 float32" in err


def test_a_huge_checkpoint_is_refused_before_it_is_read(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(3 * 2**30)  # sparse

    everywhere(run, grow)
    monkeypatch.setattr(checkpoint, "_sealed", lambda *_: pytest.fail("the file is read"))
    refused_by_all(run, image, capsys, "has 3,221,225,472 bytes, more than the run's config needs")


@pytest.mark.parametrize(
    "word", ["model=elstm_bn", "model.eps=0.1", "model.gamma_c=2", "model.normalize_input=false"]
)
def test_a_checkpoint_of_another_model_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    """Checks that the settings of the checkpoint are compared, whatever the shapes are."""
    other = run.with_name("other")
    words = [word, *WORDS[1:]] if word.startswith("model=") else [*WORDS, word]
    _, config = Composer().compose(words)
    other.mkdir()
    training.run(config, other)
    best = other / "checkpoints" / "best.pt"
    assert evaluate.main([str(run), "--checkpoint", str(best)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "does not fit the config of" in err
    best.replace(run / "checkpoints" / "best.pt")
    assert train.main([f"trainer.resume={run}"]) == 1
    assert "best.pt is not the best checkpoint of this run" in capsys.readouterr().err


def test_a_checkpoint_without_settings_loads(run: Path, image: Path) -> None:
    """Loads a checkpoint as the first versions wrote it."""
    everywhere(run, lambda p: p.exists() and change(p, lambda c: c.pop("settings")))
    assert predict.main([str(run), str(image)]) == 0
    assert train.main([f"trainer.resume={run}"]) == 0


def test_entries_of_a_checkpoint_that_lie_on_one_another(run: Path) -> None:
    """600 names for the same megabyte would be 600 of them in memory."""
    path = run / "checkpoints" / "best.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(1_000_000))
        for number in range(600):
            entry = copy.copy(archive.filelist[0])
            entry.filename = f"archive/data/{number}"
            archive.filelist.append(entry)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)


# --- configs

EVIL = [
    "_target_: os.system",
    "x: {_target_: os.mkdir, _args_: [harm]}",
    "x: !!python/object/apply:os.mkdir [harm]",
    "x: !!python/object/new:os.mkdir [harm]",
    "x: !!python/name:os.system",
    "x: ${oc.env:HOME}",
    "x: ${oc.decode:'${oc.env:HOME}'}",
    "hydra: {callbacks: {x: {_target_: os.mkdir}}}",
]


@pytest.mark.parametrize("evil", EVIL)
def test_a_runs_config_runs_nothing(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str], evil: str
) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_text(f"{path.read_text()}\n{evil}\n")
    refused_by_all(run, image, capsys, ".hydra")


def test_hydra_yaml_is_not_read(run: Path, image: Path) -> None:
    (run / ".hydra" / "hydra.yaml").write_text("\n".join(EVIL))
    (run / ".hydra" / "overrides.yaml").write_text("- hydra.callbacks.x._target_=os.mkdir\n" * 3)
    assert predict.main([str(run), str(image)]) == 0
    assert train.main([f"trainer.resume={run}"]) == 0


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "5,000 entries"),
        ("x" * 100_001, "larger than 100,000 bytes"),
        *((evil, "") for evil in EVIL),
    ],
)
def test_a_config_dir_runs_nothing_and_stays_small(
    run: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    folder = Path("extra/experiment")
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    for words in (["experiment=evil"], ["-m", "experiment=evil", "seed=0,1"]):
        assert train.main(["--config-dir", "extra", *words]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err
        assert not Path("outputs").exists()


# --- run folders


@pytest.mark.parametrize("name", ["train.log", "metrics.csv", "checkpoints", "norms.csv"])
def test_a_resume_writes_through_no_link_and_waits_for_no_pipe(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, elsewhere = run / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    before = elsewhere.read_bytes() if elsewhere.is_file() else None
    path.symlink_to(elsewhere)
    assert train.main([f"trainer.resume={run}"]) == 1
    assert "is a link" in capsys.readouterr().err
    path.unlink()
    os.mkfifo(path)
    assert train.main([f"trainer.resume={run}"]) == 1
    assert "not a plain file" in capsys.readouterr().err
    assert before is None or elsewhere.read_bytes() == before


def test_a_file_in_the_place_of_the_checkpoints(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("x")
    before = (run / "metrics.csv").read_bytes()
    assert train.main([f"trainer.resume={run}"]) == 1
    assert "checkpoints is a file and has to be a folder" in capsys.readouterr().err
    assert (run / "metrics.csv").read_bytes() == before


def test_checkpoints_that_are_links_are_not_read(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("best.pt", "last.pt"):
        path = run / "checkpoints" / name
        path.rename(f"{name}-elsewhere")
        path.symlink_to(Path(f"{name}-elsewhere").absolute())
    refused_by_all(run, image, capsys, "is a link")


def test_a_new_file_is_not_written_through_a_link_that_waits_for_it(run: Path) -> None:
    victim = Path("victim").absolute()
    victim.write_text("mine")
    (run / f".status.json.{os.getpid()}.tmp").symlink_to(victim)
    write_atomic(run / "status.json", b"{}")
    assert victim.read_text() == "mine"
    assert (run / "status.json").read_text() == "{}"


@pytest.mark.parametrize(
    "content", ["[" * 500_000, '{"a":' * 200_000, "1" * 500_000, '{"x": "' + "y" * 1_000_000 + '"}']
)
def test_a_status_of_any_kind_is_passed_over(run: Path, content: str) -> None:
    path = run / "status.json"
    path.write_text(content)
    assert read_json(path) is None
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10**9)
    assert read_json(path) is None
    path.unlink()
    os.mkfifo(path)
    assert read_json(path) is None
    assert train.main([f"trainer.resume={run}"]) == 0


def test_a_sweep_passes_over_links_and_shows_no_escapes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Path("outputs/digits/bn_lstm")
    group.mkdir(parents=True)
    shutil.copytree(run, group / "2000-run")
    path = group / "2000-run" / "status.json"
    status = json.loads(path.read_text())
    path.write_text(
        json.dumps({**status, "state": "done", "error": "=cmd()\x1b[31m", "wall_seconds": 10**400})
    )
    assert train.main(["-m", *WORDS]) == 0
    captured = capsys.readouterr()
    assert "already done" in captured.out
    assert "\x1b[31m" not in captured.out + captured.err
    (table,) = Path("outputs/sweeps").glob("*/sweep.csv")
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert row["error"] == "'=cmd()?[31m"

    shutil.rmtree("outputs")
    group.mkdir(parents=True)
    (group / "2000-run").symlink_to(run)
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    assert train.main(["-m", *WORDS, "trainer.max_steps=1"]) == 0
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


# --- what reports make of them

INJECTION = "=cmd|'/C calc'!A0<script>alert(1)</script>[x](javascript:alert(1))\x1b[31m"


def test_a_report_of_a_strangers_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "runs" / "=a<b>", "lstm", epochs=2)
    write_run(tmp_path / "runs" / "b", "lstm", epochs=2, seed=1)
    path = folder / "status.json"
    status = json.loads(path.read_text())
    path.write_text(
        json.dumps({**status, "error": INJECTION, "device": INJECTION, "backend": "@x"})
    )
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text() + f"\nextra: {json.dumps(INJECTION)}\n")
    (folder / "norms.csv").write_text(f'epoch,norm,gamma_mean\n1,"{INJECTION}",2\n' + "x," * 10**6)
    (folder / "events.out.tfevents.1.elstm").write_bytes(b"\xff" * 100)
    report.main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err
    for name in ("results.csv", "summary.csv"):
        for row in csv.reader((tmp_path / "report" / name).read_text().splitlines()):
            for cell in row:
                assert cell[:1] not in ("=", "+", "@")
                assert cell.isprintable()
    html = (tmp_path / "report" / "report.html").read_text()
    assert html.count("<script") == 1  # the page's own, allowed by its checksum alone
    assert "script-src 'sha256-" in html
    assert "default-src 'none'" in html
    assert "](javascript" not in (tmp_path / "report" / "report.md").read_text().replace("\\]", "")


# --- the environment


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_an_environment_that_is_no_number(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x\x1b")
    assert train.main(WORDS) == 1
    err = capsys.readouterr().err
    assert f"{name}=x?, which has to be a" in err
    assert not Path("outputs").exists()


def test_a_data_root_of_the_environment_that_cannot_be(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSTM_DATA", "x\x1b[31m${oc.env:HOME}")
    words = [word for word in WORDS if not word.startswith("data")]
    assert train.main([*words, "data=mnist"]) == 1
    err = capsys.readouterr().err
    assert "data.root" in err
    assert "\x1b" not in err
