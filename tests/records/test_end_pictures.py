"""Tests the pictures and texts that TensorBoard shows of a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import small_config

from elstm.files.bounded import to_yaml
from elstm.records.pictures import Mistake, mistakes_figure
from elstm.training import evaluation
from elstm.training.run import run


def test_a_run_has_its_mistakes_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[Mistake]] = []
    true = evaluation.mistakes
    monkeypatch.setattr(evaluation, "mistakes", lambda *a: drawn.append(true(*a)) or drawn[-1])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- model=lstm\n- data.path='a b'\n")
    sources = [{"provider": "main", "path": "/conf"}, {"provider": "command-line", "path": "/mine"}]
    (tmp_path / ".hydra" / "hydra.yaml").write_text(
        to_yaml({"hydra": {"runtime": {"config_sources": sources}}})
    )
    run(small_config(max_epochs=1), tmp_path)
    reader = EventAccumulator(str(tmp_path)).Reload()
    images = [
        "pictures/confusion_of_test",
        "pictures/gradient_over_time",
        "pictures/mistakes_of_test",
    ]
    assert sorted(reader.Tags()["images"]) == images
    for tag in images:
        (image,) = reader.Images(tag)
        assert image.encoded_image_string.startswith(b"\x89PNG")
    texts = {
        tag.removesuffix("/text_summary"): reader.Tensors(tag)[0]
        .tensor_proto.string_val[0]
        .decode()
        for tag in reader.Tags()["tensors"]
        if tag.startswith("run/")
    }
    command = "    elstm-train --config-dir /mine model=lstm 'data.path='\"'\"'a b'\"'\"''"
    assert texts["run/command"] == command
    assert "      hidden_size: 8" in texts["run/config"]
    assert "rnn.norm_c_l0 | StepBatchNorm" in texts["run/model"]
    (mistakes,) = drawn
    assert 0 < len(mistakes) <= 16
    assert all(m.label != m.predicted for m in mistakes)
    confidences = [m.confidence for m in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert mistakes[0].example.shape == (8, 8, 1)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (20, 1), (20, 3)])
def test_mistakes_of_images_and_series(shape: tuple[int, ...]) -> None:
    example = torch.ones(shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    mistakes = [Mistake(example, "$a", "b" * 50, 0.5)] * 5
    assert mistakes_figure(mistakes, "$title").startswith(b"\x89PNG")
