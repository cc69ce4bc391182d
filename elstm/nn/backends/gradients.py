"""Computes gradients of a compiled recurrence by the reference, where its code cannot.

This is the case for second derivatives (create_graph=True) and for batches of gradients
(is_grads_batched=True). The forward pass runs again by torch's operators on the saved inputs, and
torch differentiates it as often as requested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elstm.nn.backends.plain import why_unreadable
from elstm.nn.recurrence import Call, NormInputs, recurrence


def learned_tensors(call: Call) -> tuple[Tensor | None, ...]:
    """Returns the ten tensors that gradients flow to.

    They are x, h_0, c_0, weight_ih, weight_hh, bias, γ of norm_ih, norm_hh and norm_c, and β.
    """
    gammas = [None if norm is None else norm.weight for norm in call.norms[:3]]
    beta = None if call.norm_c is None else call.norm_c.bias
    weights = call.weight_ih, call.weight_hh, call.bias
    return call.x, call.h_0, call.c_0, *weights, *gammas, beta


def without_learned(call: Call) -> Call:
    """Returns the call without these tensors, which autograd has to save itself."""
    nothing: Any = None
    return with_learned(call, [nothing] * 10)


def with_learned(call: Call, learned: Sequence[Any]) -> Call:
    """Returns the call with these tensors in place of its own."""
    x, h_0, c_0, weight_ih, weight_hh, bias, gamma_ih, gamma_hh, gamma_c, beta_c = learned

    def norm(
        inputs: NormInputs | None, weight: Tensor | None, bias: Tensor | None
    ) -> NormInputs | None:
        return None if inputs is None else inputs._replace(weight=weight, bias=bias)

    return call._replace(
        x=x,
        h_0=h_0,
        c_0=c_0,
        weight_ih=weight_ih,
        weight_hh=weight_hh,
        bias=bias,
        norm_ih=norm(call.norm_ih, gamma_ih, None),
        norm_hh=norm(call.norm_hh, gamma_hh, None),
        norm_c=norm(call.norm_c, gamma_c, beta_c),
    )


def needs_reference(*tensors: Tensor | None) -> bool:
    """Returns whether the gradient has to come from the reference."""
    return torch.is_grad_enabled() or why_unreadable(*tensors) is not None


# Computes output, h_n and c_n from the ten learned tensors by torch's operators.
Reference = Callable[[Sequence[Tensor | None]], Sequence[Tensor]]


def reference_of(call: Call) -> Reference:
    """Returns the reference for a call, without keeping the learned tensors."""
    return partial(_results, without_learned(call))


def _results(call: Call, learned: Sequence[Tensor | None]) -> Sequence[Tensor]:
    return recurrence(with_learned(call, learned)._replace(recompute=False))[:3]


def reference_gradients(
    reference: Reference,
    learned: Sequence[Tensor | None],
    upstream: Sequence[Tensor | None],
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Returns the gradients of the ten learned tensors, differentiable where that is requested.

    Args:
        reference: computes the results again.
        learned: the saved inputs, connected to the graph that they came from.
        upstream: the gradients of output, h_n and c_n; None: zero.
        needs_grad: which gradients are needed.
    """
    create_graph = torch.is_grad_enabled()
    device = learned[0].device.type if learned[0] is not None else "cpu"
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        # Copies of the inputs are separate variables, because one input may depend on another.
        variables = [
            tensor.view_as(tensor) if needed and tensor is not None else tensor
            for tensor, needed in zip(learned, needs_grad, strict=True)
        ]
        results = reference(variables)
        pairs = [
            (result, gradient)
            for result, gradient in zip(results, upstream, strict=True)
            if gradient is not None and result.requires_grad
        ]
        chosen = [
            v for v, needed in zip(variables, needs_grad, strict=True) if needed and v is not None
        ]
        if not pairs or not chosen:
            return [None] * len(learned)
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                chosen,
                [gradient for _, gradient in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return [
        next(found) if needed and v is not None else None
        for v, needed in zip(variables, needs_grad, strict=True)
    ]
