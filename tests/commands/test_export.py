"""elstm-export: its programs in onnxruntime and torch against the model, for every kind of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import MODELS, small_config

from elstm.commands import export
from elstm.commands.programs import ImageProgram, export_program
from elstm.config.schema import ELSTMBNConfig
from elstm.data.load import load_data
from elstm.data.sequences import to_sequences
from elstm.errors import UserError
from elstm.models import build_model
from elstm.nn import CELL_NORMS
from elstm.records import pictures as figures
from elstm.training import run as training
from elstm.training import trained

DEEP = {"num_layers": 2, "bidirectional": True, "learn_initial_state": True}
IMAGES = torch.randint(0, 256, (9, 8, 8), dtype=torch.uint8, generator=torch.Generator())
FACTS = {
    "pixels_per_step": 4, "mean": 0.3, "std": 0.4, "permutation": torch.arange(64).flip(0),
    "image_size": [8, 8], "pixels": 64,
}  # fmt: skip


def model_and_logits(config: Any) -> tuple[Any, torch.Tensor]:
    """Returns a model with statistics other than 0 and 1 for all but the last of 16 steps."""
    torch.manual_seed(0)
    model = build_model(config.name, config.options(), input_size=4, num_steps=16, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for _ in range(3):
            model.rnn(torch.randn(14, 6, 4))
        x = to_sequences(IMAGES.flatten(1), 4, 0.3, 0.4, FACTS["permutation"])  # type: ignore[arg-type]
        return model, model.eval()(x)


@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_folded_statistics_are_those_of_the_model(cell_norm: str) -> None:
    for options in ({}, {"normalize_input": False}, {"normalize_hidden": False}):
        config = ELSTMBNConfig(hidden_size=5, cell_norm=cell_norm, **options)
        model, expected = model_and_logits(config)
        logits, probabilities = ImageProgram(model, FACTS).eval()(IMAGES)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(probabilities, expected.softmax(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [name if name == "elstm_bn" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_programs_do_what_the_model_does(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, expected = model_and_logits(MODELS[name](hidden_size=5, **DEEP))
    program = export_program(ImageProgram(model, FACTS))
    content = export._to_onnx(program, {"data": "digits"}, ["images"])
    session = runtime.InferenceSession(content)
    for size in (1, 2, 9):
        images = IMAGES[:size]
        for logits in (
            session.run(None, {"images": images.numpy()})[0],
            program.module()(images)[0],
        ):
            torch.testing.assert_close(
                torch.as_tensor(logits), expected[:size], rtol=1e-4, atol=1e-5
            )
    with pytest.raises(RuntimeError, match="dtype mismatch"):
        program.module()(IMAGES / 255)
    graph = onnx.load_from_string(content).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Scan") == 4  # of two layers and two directions, whatever the steps
    assert len(kinds) < 100
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("images", ["batch", 8, 8])
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    assert session.get_modelmeta().custom_metadata_map == {"data": "digits"}


# --- the command


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "gradient_figure", lambda *_: b"a picture")
        training.run(small_config(max_epochs=1, data={"permute": True}), folder)
    return folder


@pytest.fixture(autouse=True)
def its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(max_epochs=1, data={"permute": True})
    monkeypatch.setattr(trained, "load_run_config", lambda run_dir: config)


def test_the_command(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run_dir), "--format", "pt2", "-o", str(tmp_path / "new" / "folder")]
    assert export.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("model.pt2   300 test images in torch: the same predictions")
    path = tmp_path / "new" / "folder" / "model.pt2"
    assert [p.name for p in path.parent.iterdir()] == ["model.pt2"]
    export._check_replaceable(path, export.MARKS["pt2"])
    said = {"elstm.json": ""}
    program = torch.export.load(path, extra_files=said).module()
    facts = json.loads(said["elstm.json"])
    assert json.loads(facts["class_names"]) == list("0123456789")
    assert (facts["model"], facts["data"], facts["step"]) == ("elstm_bn", "digits", "5")
    data = load_data(small_config(data={"permute": True}).data)
    model = trained.load_trained(run_dir).model
    with torch.no_grad():
        expected = model(data.sequences(data.test.images)).softmax(1)
        found = program(data.test.images.view(-1, 8, 8))[1]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_file_that_is_no_export_stays(name: str, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / f"model.{name}").write_bytes(b"of another program")
    assert export.main([str(tmp_path / "run"), "-o", str(tmp_path)]) == 1
    assert f"model.{name} was not written by elstm-export: move it away" in capsys.readouterr().err
    assert (tmp_path / f"model.{name}").read_bytes() == b"of another program"


def test_programs_may_differ_by_rounding_alone() -> None:
    expected = torch.tensor([[1.0, 1.0 + 1e-6], [0.0, 9.0], [3.0, 0.0]])
    inputs = (torch.zeros(3, 8, 8, dtype=torch.uint8),)

    def check(change: torch.Tensor) -> str:
        found = iter((expected + change).split((1, 2)))
        return export._check("pt2", lambda images: next(found), "torch", inputs, expected)

    assert "the same predictions, logits" in check(torch.zeros(3, 2))
    tie = torch.tensor([[1e-5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert "the same predictions but for 1 where two classes tie" in check(tie)
    for wrong in (0.5, torch.nan):
        with pytest.raises(UserError, match=r"model\.pt2 was not written"):
            check(torch.tensor([[0.0, 0.0], [0.0, wrong], [0.0, 0.0]]))


def test_what_differs_is_not_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def worse(content: bytes) -> export.Run:
        program = torch.export.load(io.BytesIO(content)).module()
        return lambda images: -program(images)[0]

    monkeypatch.setattr(export, "_torch_run", worse)
    assert export.main([str(run_dir), "--format", "pt2", "-o", str(tmp_path / "out")]) == 1
    assert "model.pt2 was not written: of 300 test images in torch, 300" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: Any) -> None:
        raise TypeError("Elman is not known to the export")

    with monkeypatch.context() as patch:
        patch.setattr("elstm.commands.programs.ImageProgram", refuse)
        assert export.main([str(run_dir), "--format", "pt2"]) == 1
    assert "cannot be exported: Elman is not known to the export" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert export.main([str(run_dir)]) == 1
    assert "ONNX needs onnx, onnxscript, onnxruntime: pip install" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export.main([str(run_dir), "--images", "3"])
