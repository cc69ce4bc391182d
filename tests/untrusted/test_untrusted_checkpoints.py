"""Untrusted checkpoints run no code, stay small, and have to fit the config of their run."""

from __future__ import annotations

import copy
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from untrusted_runs import WORDS, change, refused_by_all, write_checkpoints

from elstm import train
from elstm.commands import evaluate, predict
from elstm.config.compose import Composer
from elstm.config.run_config import load_run_config
from elstm.errors import UserError
from elstm.training import checkpoint
from elstm.training import run as training

pytestmark = pytest.mark.usefixtures("no_pictures")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


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
    write_checkpoints(run, write)
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
    write_checkpoints(run, lambda path: path.exists() and change(path, edit))
    refused_by_all(run, image, capsys, said)


def test_a_config_of_terabytes_is_refused_before_it_is_built(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("hidden_size: 8\n", "hidden_size: 65536\n"))
    assert load_run_config(run).model.hidden_size == 65536
    refused_by_all(run, image, capsys, "65536")  # elstm-train counts the memory before
    write_checkpoints(run, lambda p: p.exists() and change(p, lambda c: c.pop("settings")))
    assert predict.main([str(run), str(image)]) == 1
    assert "the config's of 262144 x 8 float32" in capsys.readouterr().err


def test_optimizer_states_of_another_shape_reach_no_optimizer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fused optimizer writes as many elements as the parameter has, wherever the state ends."""

    def shorten(content: dict[str, Any]) -> None:
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)

    write_checkpoints(run, lambda path: path.exists() and change(path, shorten))
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

    write_checkpoints(run, grow)
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
    write_checkpoints(run, lambda p: p.exists() and change(p, lambda c: c.pop("settings")))
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
