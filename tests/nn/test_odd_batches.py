"""Batches at the edge of what can be normalised train without a NaN, whatever the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_runs import MODELS

from elstm.models import build_model
from elstm.nn import recompute_statistics

KINDS = ["zeros", "no variance", "constant pixel", "two sequences", "one class", "one step"]
STEPS = 5000  # of the long sequence


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(kind: str) -> tuple[Tensor, Tensor]:
    """x (T, B, F), y (B,)."""
    steps = {"one step": 1, "long": STEPS}.get(kind, 6)
    size = 2 if kind in ("two sequences", "long") else 8
    x, y = torch.randn(steps, size, 2), torch.arange(size) % 3
    if kind == "zeros":
        x.zero_()
    elif kind == "no variance":
        x.copy_(x[:, :1].expand_as(x))
    elif kind == "constant pixel":
        x[..., 0], x[0] = 3.0, -0.4
    elif kind == "one class":
        y.zero_()
    return x, y


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "auto") for name in MODELS), ("bn_lstm", "reference"), ("elstm_bn", "reference")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_batches(kind: str, name: str, backend: str) -> None:
    losses = train(name, backend, kind, steps=20)
    assert losses[-1] < losses[0] or kind in ("zeros", "no variance")  # nothing to tell apart


@pytest.mark.parametrize("name", ["bn_lstm", "elstm_bn"])
def test_a_long_sequence(name: str) -> None:
    train(name, "auto", "long", steps=2)


def train(name: str, backend: str, kind: str, steps: int) -> list[float]:
    """Returns the loss of each step; all that training and evaluation leave is finite."""
    torch.manual_seed(0)
    x, y = batch(kind)
    config = MODELS[name](hidden_size=5, num_layers=2, backend=backend)
    model = build_model(
        config.name, config.options(), input_size=2, num_steps=len(x), num_classes=3
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    recompute_statistics(model, [x])
    model.eval()
    assert model(x).isfinite().all()
    assert all(values.isfinite().all() for values in model.state_dict().values())
    return losses
