"""Runs the recurrence with layer normalisation (Ba et al. 2016), as a plain loop over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elstm.nn import init
from elstm.nn.recurrence import at_least_float32, cell_shapes, check_dtype, check_expected
from elstm.nn.sequences import keep_ended, zero_ended

Norm = Callable[[Tensor], Tensor]


class LayerNorm(nn.LayerNorm):
    """Computes LN(x; a, b) = (x - mean) / sqrt(var + eps) * a + b over the features of each row.

    It computes in float32 at least, whatever the dtype of x. `gamma` is the initial value of a.
    """

    def __init__(self, features: int, *, eps: float, gamma: float, **factory: Any) -> None:
        self.gamma = gamma
        super().__init__(features, eps, **factory)

    def reset_parameters(self) -> None:
        init.draw(self, "weight", nn.init.constant_, self.gamma)
        init.draw(self, "bias", nn.init.zeros_)

    def forward(self, x: Tensor) -> Tensor:
        dtype = at_least_float32(x.dtype)
        a, b = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.to(dtype), self.normalized_shape, a, b, self.eps)


class LayerNormCall(NamedTuple):
    """Holds the arguments of the recurrence with layer normalisation: one layer in one direction.

    Attributes:
        x, batch_sizes, h_0, c_0, weight_ih, weight_hh, bias: as in elstm.nn.recurrence.Call.
        norm_ih, norm_hh, norm_c: the LayerNorm of W_x x_t, of W_h h_{t-1} and of c_t, or other
            modules, which only the plain loop can call.
    """

    x: Tensor
    batch_sizes: list[int] | None
    h_0: Tensor
    c_0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    norm_ih: LayerNorm
    norm_hh: LayerNorm
    norm_c: LayerNorm


def check_layer_norm_shapes(call: LayerNormCall) -> None:
    """Raises ValueError unless all tensors of a call fit its input and state.

    Raises:
        TypeError: a norm is None. Any other module may stand there, and has its own checks.
    """
    units = call.h_0.shape[-1]
    check_dtype(call.x, call.weight_ih)
    expected = cell_shapes(call)
    for name in ("norm_ih", "norm_hh", "norm_c"):
        norm, features = getattr(call, name), units if name == "norm_c" else 4 * units
        if norm is None:
            raise TypeError(f"{name} must be a module, got None; torch.nn.Identity() is no norm")
        if isinstance(norm, nn.LayerNorm):
            parts = {"weight": norm.weight, "bias": norm.bias}
            expected += [
                (f"{name}.{part}", tensor, (features,))
                for part, tensor in parts.items()
                if tensor is not None
            ]
    check_expected(expected)


def layer_norm_recurrence(
    call: LayerNormCall, *, states: list[tuple[Tensor, ...]] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs one layer in one direction; the equations are those of LayerNormLSTM.

    Args:
        call: what to run.
        states: a list to which every (h_t, c_t) of the rows active at t is appended, for
            diagnostics.

    Returns:
        output (T, B, H), zero where a row is not active; h_n and c_n (B, H).
    """
    x, batch_sizes, h_0, c_0, weight_ih, weight_hh, bias, norm_ih, norm_hh, norm_c = call
    projected = F.linear(x, weight_ih)
    normalised = norm_ih(projected)  # LN(W_x x_t) for all t at once
    if bias is not None:
        normalised = normalised + bias
    output, h_n, c_n = run_steps(
        normalised, batch_sizes, h_0, c_0, weight_hh, norm_hh, norm_c, states=states
    )
    return output.to(projected.dtype), h_n.to(projected.dtype), c_n.to(projected.dtype)


def run_steps(
    given: Tensor,
    batch_sizes: list[int] | None,
    h_0: Tensor,
    c_0: Tensor,
    weight_hh: Tensor,
    norm_hh: Norm,
    norm_c: Norm,
    *,
    states: list[tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs all steps; `given` (T, B, 4H) is z without LN(W_h h_{t-1})."""
    batch = given.shape[1]
    state_dtype = at_least_float32(given.dtype)
    h_all, c_all = h_0.to(state_dtype), c_0.to(state_dtype)
    outputs = []
    for t, wx in enumerate(given.unbind(0)):
        active = batch if batch_sizes is None else batch_sizes[t]
        h, c = h_all[:active], c_all[:active]
        z = norm_hh(F.linear(h.to(weight_hh.dtype), weight_hh)) + wx[:active]  # (20)
        i, f, g, o = z.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()  # (21)
        h = o.sigmoid() * norm_c(c).tanh()  # (22)
        if states is not None:
            states.append((h, c))
        h_all, c_all = keep_ended(h, h_all), keep_ended(c, c_all)
        outputs.append(zero_ended(h, batch))
    return torch.stack(outputs), h_all, c_all


def merged_recurrence(
    batch_sizes: Sequence[int] | None, eps: Sequence[float], learned: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the same recurrence on tensors alone, with all biases but the cell's added up in one.

    Args:
        batch_sizes: as in LayerNormCall.
        eps: of norm_ih, norm_hh and norm_c.
        learned: x, h_0, c_0, weight_ih, weight_hh, bias, γ of the three norms, and β of norm_c.
    """
    x, h_0, c_0, weight_ih, weight_hh, bias, *gammas, beta_c = cast("Sequence[Tensor]", learned)
    ih, hh, c = (
        partial(F.layer_norm, normalized_shape=gamma.shape, weight=gamma, bias=beta, eps=each)
        for gamma, beta, each in zip(gammas, (None, None, beta_c), eps, strict=True)
    )
    sizes = None if batch_sizes is None else list(batch_sizes)
    return run_steps(ih(F.linear(x, weight_ih)) + bias, sizes, h_0, c_0, weight_hh, hh, c)
