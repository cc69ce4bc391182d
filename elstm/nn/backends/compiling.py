"""Decides what torch.compile traces of a layer, so that batches of changing lengths compile once.

A packed batch is a list of lengths, and the reference is a loop over time. If they were traced,
each new length would need another graph, which takes several seconds to compile. Both therefore run
uncompiled, as torch.nn.LSTM does in torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakSet

import torch

from elstm.nn.backends.plain import constant_result

Function = TypeVar("Function", bound=Callable[..., Any])
_MODULES: dict[str, Any] = {}
_UNTRACED: dict[Any, Any] = {}
_VARYING: WeakSet[Any] = WeakSet()


def traced() -> bool:
    """Returns whether torch.compile traces this call; torch.export has to trace everything."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def untraced(function: Function) -> Function:
    """Returns the function as torch.compile leaves it out, with all that it calls."""
    _disable(function)
    return _UNTRACED[function]


@constant_result
def _disable(function: Callable[..., Any]) -> bool:
    """Runs where torch.compile traces, so that it imports nothing in programs without it."""
    if function not in _UNTRACED:
        _UNTRACED[function] = torch.compiler.disable(function)
    return True


@constant_result
def _load() -> bool:
    from torch.fx.experimental import symbolic_shapes  # takes a second

    _MODULES["shapes"] = symbolic_shapes
    return True


def varies(size: int) -> bool:
    """Returns whether torch.compile treats a size of its input as one that changes."""
    _load()
    return not _MODULES["shapes"].has_static_value(size)


@constant_result
def remember_varying(layer: Any) -> bool:
    """Remembers a layer whose number of steps varies, and returns True.

    torch.compile traces a function by itself once its caller's graph has ended there. It then no
    longer knows that the size varies.
    """
    _VARYING.add(layer)
    return True


@constant_result
def has_varied(layer: Any) -> bool:
    return layer in _VARYING


def unless_varying(function: Function, steps: int) -> Function:
    """Returns the function, a loop over `steps`; as torch.compile leaves it out where they vary."""
    return untraced(function) if traced() and varies(steps) else function
