"""elstm-export of runs on series: the programs against the model and elstm-predict."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_data import QUICK, sequences, the_run, write_arrays
from torch.nn.utils.rnn import pack_padded_sequence
from training_runs import MODELS

from elstm import train
from elstm.commands import export, predict
from elstm.commands.programs import SeriesProgram, export_program
from elstm.data import preparing
from elstm.data.labelled import LabelledSet
from elstm.models import build_model

DEEP = {"num_layers": 2, "bidirectional": True, "learn_initial_state": True}
SERIES_FACTS = {
    "num_steps": 6, "input_size": 3, "mean": [0.5, -1.0, 0.0], "std": [2.0, 0.5, 1.0],
}  # fmt: skip
LENGTHS = [6, 1, 9, 4, 3]  # one is longer than any in training


def series_and_logits(config: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A model with statistics of 6 steps; series with NaN, past whose ends anything stands."""
    torch.manual_seed(0)
    model = build_model(config.name, config.options(), input_size=3, num_steps=6, num_classes=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for _ in range(3):
            model.rnn(torch.randn(6, 5, 3))
    series = torch.randn(5, 9, 3)
    series[0, 3:5, 1] = series[2, 0, 2] = torch.nan
    for row, length in enumerate(LENGTHS):
        series[row, length:] = torch.nan if row % 2 else 1e6
    parts = {
        "x": LabelledSet(
            np.where(np.arange(9)[:, None] < np.array(LENGTHS)[:, None, None], series.numpy(), 0),
            np.array(LENGTHS),
            ("a",) * 5,
            ("",) * 5,
            (),
        )
    }
    part = preparing.fill_missing(parts, "forward")["x"]
    mean, std = np.array(SERIES_FACTS["mean"]), np.array(SERIES_FACTS["std"])
    x = preparing.standardized(part, mean, std).transpose(0, 1)
    with torch.no_grad():
        packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
        return model.eval(), series, model(packed)


@pytest.mark.parametrize("name", MODELS)
def test_series_of_any_lengths(name: str) -> None:
    model, series, expected = series_and_logits(MODELS[name](hidden_size=5, **DEEP))
    program = SeriesProgram(model, SERIES_FACTS, "forward", unequal=True).eval()
    logits, _ = program(series, torch.tensor(LENGTHS))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_program_of_series_takes_any_batch_and_steps() -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, series, expected = series_and_logits(MODELS["elstm_bn"](hidden_size=5, **DEEP))
    served = SeriesProgram(model, SERIES_FACTS, "forward", unequal=True)
    program = export_program(served)
    session = runtime.InferenceSession(export._to_onnx(program, {}, served.names))
    assert [(each.name, each.shape) for each in session.get_inputs()] == [
        ("series", ["batch", "steps", 3]), ("lengths", ["batch"]),
    ]  # fmt: skip
    lengths = torch.tensor(LENGTHS)
    for rows in (slice(0, 5), slice(1, 2), slice(3, 5)):
        some, of = series[rows, : max(LENGTHS[rows])], lengths[rows]
        onnx = session.run(None, {"series": some.numpy(), "lengths": of.numpy()})[0]
        for logits in (onnx, program.module()(some, of)[0]):
            torch.testing.assert_close(
                torch.as_tensor(logits), expected[rows], rtol=1e-4, atol=1e-5
            )


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("unequal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_command_for_series(
    unequal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The program gives what elstm-predict prints, for sequences of all lengths."""
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("waves.npz"), unequal=unequal)
    assert train.main(["data=arrays", "data.path=waves.npz", *QUICK, "trainer.max_epochs=1"]) == 0
    folder = the_run()
    capsys.readouterr()
    assert export.main([str(folder), "--format", "pt2"]) == 0
    assert "9 test sequences in torch: the same predictions" in capsys.readouterr().out
    assert predict.main([str(folder), "waves.npz"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    expected = [[float(row[f"p({name})"]) for name in range(3)] for row in rows]
    said = {"elstm.json": ""}
    program = torch.export.load(folder / "export" / "model.pt2", extra_files=said).module()
    arrays = sequences(unequal=unequal)
    inputs = [torch.from_numpy(arrays["X"])]
    if unequal:
        inputs.append(torch.from_numpy(arrays["lengths"]))
    with torch.no_grad():
        np.testing.assert_allclose(program(*inputs)[1].numpy(), expected, atol=1e-5)
    text = "float32 (batch, steps, 2), unscaled"
    text += "; int64 (batch,), the steps of each" if unequal else ""
    assert json.loads(said["elstm.json"])["input"] == text
