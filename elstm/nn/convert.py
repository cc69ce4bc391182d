"""Builds a layer of elstm.nn from one of torch.nn, with its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dropout")  # `module` has given this warning
        layer = layer_class(**taken, **options)
    _take_weights(layer, module)
    return layer.train(module.training)


@torch.no_grad()
def _take_weights(layer: nn.Module, module: nn.Module) -> None:
    for name, weight in layer.named_parameters(recurse=False):
        found = getattr(module, name, None)
        parts = [] if found is None else [found]  # torch's layers have no h_0 and no c_0
        if found is None and name.startswith("bias_l"):
            end = name.removeprefix("bias_")
            parts = [getattr(module, f"{bias}_{end}") for bias in ("bias_ih", "bias_hh")]
        if parts:
            weight.copy_(parts[0] if len(parts) == 1 else parts[0] + parts[1])
            weight.requires_grad_(any(part.requires_grad for part in parts))
