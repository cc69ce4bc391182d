"""Calls of a recurrence with everything that it gives back, for tests of the backends."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from elstm.nn.recurrence import Call, NormInputs


def served(
    function: Callable[..., Any],
    dtype: torch.dtype,
    device: str,
    *,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    cell_norm: str,
    norm_ih: bool = True,
    norm_hh: bool = True,
    bias: bool = True,
    sizes: list[int] | None = None,
    batch_steps: int | None = None,
    recompute: bool = False,
    seed: int = 0,
    refuses: Callable[..., str | None] | None = None,
) -> dict[str, Tensor]:
    """Output, state, gradients and statistics of a call on the same numbers in every dtype."""
    batch_steps = steps if batch_steps is None else batch_steps
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=generator) * scale
        return numbers.to(device, dtype).requires_grad_()

    def norm(features: int, has_beta: bool) -> NormInputs:
        mean, var = draw(steps, features).detach(), draw(steps, features).detach().square() + 0.1
        gamma = draw(features)
        beta = draw(features) if has_beta else None
        if cell_norm == "center" and has_beta:
            return NormInputs(None, beta, mean, None, 0.1, batch_steps)
        return NormInputs(gamma, beta, mean, var, 0.1, batch_steps)

    leaves: dict[str, Any] = {
        "x": draw(steps, batch, inputs),
        "h_0": draw(batch, hidden),
        "c_0": draw(batch, hidden),
        "weight_ih": draw(4 * hidden, inputs, scale=inputs**-0.5),
        "weight_hh": draw(4 * hidden, hidden, scale=hidden**-0.5),
        "bias": draw(4 * hidden) if bias else None,
    }
    norms = {
        "ih": norm(4 * hidden, False) if norm_ih else None,
        "hh": norm(4 * hidden, False) if norm_hh else None,
        "c": norm(hidden, True) if cell_norm != "none" else None,
    }
    x, *others = leaves.values()
    call = Call(x, sizes, *others, *norms.values(), None, cell_norm, recompute)
    if refuses is not None:
        assert refuses(call) is None
    output, h_n, c_n, statistics = function(call)
    found = {"output": output, "h_n": h_n, "c_n": c_n}
    loss = sum((part * draw(*part.shape).detach()).sum() for part in found.values())
    loss.backward()

    for name, inputs_of_norm in norms.items():
        if inputs_of_norm is not None:
            leaves[f"gamma_{name}"], leaves[f"beta_{name}"] = inputs_of_norm[:2]
    found |= {f"d_{name}": leaf.grad for name, leaf in leaves.items() if leaf is not None}
    for name, pair in zip(norms, statistics, strict=False):
        assert (pair is None) == (norms[name] is None)
        if pair is not None:
            found[f"mean_{name}"] = pair.mean
            assert (pair.var is None) == (norms[name].weight is None)
            if pair.var is not None:
                found[f"var_{name}"] = pair.var
    assert statistics[3] is None
    return {name: part.detach().double().cpu() for name, part in found.items()}


Served = dict[str, Tensor]


def assert_as_exact(found: Served, exact: Served, plain: Served) -> None:
    """Errors against float64, root mean square: no more than twice the reference's in float32."""
    assert_as_exact_in_most([(found, exact, plain)])


def assert_as_exact_in_most(draws: list[tuple[Served, Served, Served]]) -> None:
    """The same for the median over several draws of the numbers.

    A single draw of few sequences cannot hold the bound. The errors of one tensor share their
    causes, such as the rounding of one unit's state, so a draw with H units has some H independent
    errors. The ratio of two such root mean squares is then that of an F distribution with (H, H)
    degrees of freedom: for H = 7 it is above 2 in 4 of 100 draws although both sums are equally
    exact. Over
    11 draws the median is above 2 by chance in less than 1 of 10,000 tests.
    """
    for name in draws[0][0]:
        ratios = []
        for found, exact, plain in draws:
            assert found.keys() == exact.keys()
            assert found[name].shape == exact[name].shape, name
            if not found[name].numel():
                continue
            error, of_plain = (rms(part[name] - exact[name]) for part in (found, plain))
            # Few numbers may leave the reference without an error: some roundings of them instead.
            ratios.append(error / max(of_plain, 5e-7 * rms(exact[name]), 1e-300))
        if ratios:
            assert statistics.median(ratios) <= 2, f"{name}: {statistics.median(ratios):.1f}"


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
