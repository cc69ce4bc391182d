"""Builds a layer of elstm.nn from one of torch.nn, with its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from elstm.nn.init import computed_by_hook

Layer = TypeVar("Layer", bound=nn.Module)


def converted(
    layer_class: type[Layer],
    torch_class: type[nn.RNNBase],
    module: nn.RNNBase,
    options: Mapping[str, Any],
) -> Layer:
    """Implements elstm.nn.base.RecurrentBase.from_torch."""
    function = f"{layer_class.__name__}.from_torch"
    if not isinstance(module, torch_class):
        kind = type(module).__name__
        raise TypeError(f"{function} takes a torch.nn.{torch_class.__name__}, got a {kind}")
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    names += ["bidirectional", *(["proj_size"] if module.proj_size else [])]
    taken: dict[str, Any] = {name: getattr(module, name) for name in names}
    weight: Any = module.weight_ih_l0
    taken |= {"device": weight.device, "dtype": weight.dtype}
    for name in options:
        if name in taken:
            raise TypeError(f"{name} is taken from the given module; {function} cannot change it")
    if getattr(module, "learn_initial_state", False):  # a layer of elstm.nn
        taken["learn_initial_state"] = options.get("learn_initial_state", True)
        options = {k: v for k, v in options.items() if k != "learn_initial_state"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dropout")  # `module` has given this warning
        layer = layer_class(**taken, **options)
    _take_weights(layer, module)
    return layer.train(module.training)


@torch.no_grad()
def _take_weights(layer: nn.Module, module: nn.RNNBase) -> None:
    _update_weights(module)
    for name, weight in layer.named_parameters(recurse=False):
        sources = [name]
        if getattr(module, name, None) is None and name.startswith("bias_l"):
            end = name.removeprefix("bias_")
            sources = [f"bias_ih_{end}", f"bias_hh_{end}"]
        # torch's layers have no h_0 and no c_0.
        found = {s: part for s in sources if (part := getattr(module, s, None)) is not None}
        if found:
            first, *others = found.values()
            weight.copy_(first + others[0] if others else first)
            weight.requires_grad_(any(_trained(module, *item) for item in found.items()))


def _update_weights(module: nn.RNNBase) -> None:
    """Calls `module` if hooks compute weights of it, which are else those of its last call."""
    if any(computed_by_hook(module, name) for name in vars(module)):
        weight: Any = module.weight_ih_l0
        training = module.training
        module.eval()
        try:
            module(torch.zeros(1, 1, module.input_size, device=weight.device, dtype=weight.dtype))
        finally:
            module.train(training)


def _trained(module: nn.Module, name: str, value: Tensor) -> bool:
    """Returns whether a weight is trained, directly or by those that it is computed from."""
    computed_from = computed_by_hook(module, name)
    if computed_from:
        return any(part.requires_grad for part in computed_from)
    if parametrize.is_parametrized(module, name):
        parts = getattr(module.parametrizations, name).parameters()
        return any(part.requires_grad for part in parts)
    return value.requires_grad or not isinstance(value, nn.Parameter)
