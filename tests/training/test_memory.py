"""Tests that runs which cannot fit into memory are refused, in one message each."""

import pytest
import torch
from training_runs import small_config

from elstm.errors import UserError
from elstm.models import build_model
from elstm.training import device as runtime
from elstm.training import memory


def test_the_estimate_holds_weights_gradients_and_both_moments():
    for name in ("lstm", "gru", "bn_lstm", "elstm_bn"):
        options = {"num_layers": 3, "bidirectional": True, "recompute": True}
        if name == "gru":
            del options["recompute"]
        config = small_config(name, model=options)
        layers = config.model.options()
        model = build_model(config.model.name, layers, input_size=8, num_steps=8, num_classes=10)
        matrices = sum(p.numel() for p in model.rnn.parameters() if p.dim() == 2)
        batch = 8 * config.data.batch_size * 8 * 2 * 3 * (3 if name == "gru" else 1)
        assert memory.least_memory(config) == 4 * (4 * matrices + batch)


def test_what_cannot_fit_is_refused(monkeypatch):
    config, cpu = small_config("lstm"), torch.device("cpu")
    assert memory.total_memory(cpu) > 2**28
    memory.check_memory(config, cpu)
    monkeypatch.setattr(memory, "total_memory", lambda device: 10_000)
    with pytest.raises(UserError, match=r"model.hidden_size=8 .* needs at least .* GiB"):
        memory.check_memory(config, cpu)


def test_errors_of_torch_are_explained():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert str(memory.explained(raised.value)).startswith("out of memory (")
    wrong = ValueError("backend 'cpu' cannot serve this call: x")
    assert "model.backend='cpu' cannot serve" in str(memory.explained(wrong))
    other = RuntimeError("shapes differ")
    assert memory.explained(other) is other


@pytest.mark.parametrize(
    ("cuda", "error", "hidden", "said"),
    [
        (None, "", None, "is a build for CPUs alone: pip install"),
        ("13.0", "Found no NVIDIA driver on your system. Please check", None, "Found no NVIDIA"),
        ("13.0", "Found no NVIDIA driver on your system. Please check", "", "Found no NVIDIA"),
        ("13.0", "No CUDA GPUs are available", "-1", "hidden by CUDA_VISIBLE_DEVICES='-1'"),
        ("13.0", "The NVIDIA driver on your system is too old. x", None, "is too old"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, cuda, error, hidden, said):
    def init():
        raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if hidden is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(UserError) as raised:
        runtime.choose_device("cuda")
    assert said in str(raised.value)
    assert "this machine has: auto, cpu" in str(raised.value)
