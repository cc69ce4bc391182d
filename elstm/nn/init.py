"""Draws initial weights and gate biases, alike for all layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from elstm.nn.recurrence import at_least_float32

RECURRENT_INITS = ("orthogonal", "identity")
LARGEST = 1e18  # its square, the eps of a carried norm, is finite in float32


def computed_by_hook(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Returns the parameters from which a hook computes a weight before each call.

    Such hooks come from torch.nn.utils: weight_norm adds the parameters NAME_g and NAME_v,
    spectral_norm and prune add NAME_orig. The list is empty if there is no such hook.
    """
    own = dict(module.named_parameters(recurse=False))
    return [own[name + end] for end in ("_g", "_v", "_orig") if name + end in own]


def draw(module: nn.Module, name: str, initialise: Callable[..., Any], *arguments: Any) -> None:
    """Initialises a parameter, also where torch.nn.utils.parametrize computes it.

    Raises:
        RuntimeError: a hook computes it, and would replace the values before the next call.
    """
    if computed_by_hook(module, name):
        raise RuntimeError(
            f"{name} cannot be initialised, because a hook computes it before each call; undo"
            " torch.nn.utils.weight_norm, spectral_norm or prune first, for example by"
            " torch.nn.utils.remove_weight_norm or torch.nn.utils.prune.remove"
        )
    values = getattr(module, name)
    if parametrize.is_parametrized(module, name):
        values = values.detach().clone()
        initialise(values, *arguments)
        setattr(module, name, values)  # to the parameters that it is computed from
    else:
        initialise(values, *arguments)


def is_number(value: object) -> bool:
    """Returns whether `value` is a finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_gate_bias(name: str, value: float | str) -> None:
    """Raises ValueError unless `value` is a number of at most LARGEST, or "chrono"."""
    if value != "chrono" and not (is_number(value) and abs(float(value)) <= LARGEST):
        raise ValueError(
            f'{name} must be a finite number within ±{LARGEST:g} or "chrono", got {value!r}'
        )


def check_gammas(gammas: dict[str, float]) -> None:
    """Raises ValueError unless all of gamma_ih, ... are numbers of at most LARGEST."""
    for name, gamma in gammas.items():
        if not is_number(gamma) or abs(gamma) > LARGEST:
            raise ValueError(
                f"gamma_{name} must be a finite number within ±{LARGEST:g}, got {gamma!r}"
            )


@torch.no_grad()
def init_weight_ih(weight: Tensor) -> None:
    """Draws W_x (G * H, I) from N(0, 1/I), so that W_x x_t has unit variance if the input has.

    The variance matters although W_x x_t may be normalised, because eps is added to it.
    """
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


@torch.no_grad()
def init_weight_hh(weight: Tensor, how: str = "orthogonal", gates: int = 4) -> None:
    """Draws W_h (G * H, H), an orthogonal matrix per gate; "identity" sets the identity for gate g.

    Orthogonal blocks preserve the length of h_{t-1}. Cooijmans et al. (2017, section 5.1) use the
    identity for pixel-by-pixel MNIST. G is `gates`: 4, or 3 for a GRU, whose n is third as g is.
    """
    blocks = weight.chunk(gates)
    for gate in blocks:
        # In float32 at least: torch has no QR decomposition in half precision.
        exact = torch.empty_like(gate, dtype=at_least_float32(gate.dtype))
        gate.copy_(nn.init.orthogonal_(exact))
    if how == "identity":
        nn.init.eye_(blocks[2])


@torch.no_grad()
def init_gate_bias(
    bias: Tensor, forget_bias: float | str, input_bias: float | str, steps: int
) -> None:
    """Sets b (4H,) to `forget_bias` and `input_bias` in their blocks, and to zero elsewhere.

    "chrono" (Tallec and Ollivier 2018, arXiv 1804.11188, equation 16) draws b_f ~ log U(1, T - 1)
    and sets b_i = -b_f. The memories of the units then spread over T steps; T is `steps`.
    """
    bias.zero_()
    b_i, b_f, _, _ = bias.chunk(4)
    chrono = torch.empty_like(b_f)
    if "chrono" in (forget_bias, input_bias):
        _draw_chrono(chrono, steps)
    b_f.copy_(chrono) if forget_bias == "chrono" else b_f.fill_(float(forget_bias))
    b_i.copy_(-chrono) if input_bias == "chrono" else b_i.fill_(float(input_bias))


@torch.no_grad()
def init_update_bias(bias: Tensor, update_bias: float | str, steps: int) -> None:
    """Sets b (3H,) of a GRU to `update_bias` in the block of gate z, and to zero elsewhere.

    In torch's GRU, z retains h_{t-1} as the forget gate retains c_{t-1}. So "chrono" draws
    b_z ~ log U(1, T - 1) (Tallec and Ollivier 2018, section 2, whose z has the other sense).
    """
    bias.zero_()
    b_z = bias.chunk(3)[1]
    _draw_chrono(b_z, steps) if update_bias == "chrono" else b_z.fill_(float(update_bias))


def _draw_chrono(bias: Tensor, steps: int) -> None:
    bias.uniform_(1.0, max(steps - 1.0, 1.0)).log_()
