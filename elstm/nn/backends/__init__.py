"""Chooses which implementation of the recurrence serves a call.

A backend is a module of this package with two functions of a Call. `recurrence` does what
`elstm.nn.recurrence.recurrence` does. `refuses` returns why it cannot serve the call, or None. It
is imported when the first call reaches it. Calls that no compiled code can serve
(elstm.nn.backends.plain) do not reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from elstm.nn import recurrence as reference
from elstm.nn.backends.compiling import unless_varying
from elstm.nn.backends.plain import (
    constant_result,
    why_not_layer_norm,
    why_unreadable,
    why_unreadable_call,
)
from elstm.nn.layer_norm import LayerNormCall, layer_norm_recurrence
from elstm.nn.recurrence import Call, Recurrence, Results

# Fastest first; the reference serves every call.
_MODULES: dict[str, str] = {
    "cpu": "elstm.nn.backends.cpu.backend",
    "triton": "elstm.nn.backends.cuda",
}
# `auto` tries a backend on devices like those on which it has been measured.
_AUTOMATIC: dict[str, Callable[[torch.device], bool]] = {
    "cpu": lambda device: device.type == "cpu",
    "triton": lambda device: (
        device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    ),
}
BACKENDS = ("auto", *_MODULES, "reference")


def check_backend(name: str) -> None:
    """Raises ValueError unless `name` is one of BACKENDS."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")


_SPREAD = "it computes the statistics of one process, not of all (sync_batch_stats)"
_LOADED: dict[str, Any] = {}


@constant_result
def _load(module_name: str) -> bool:
    """Imports a backend where torch.compile traces too: it would break its graph at an import."""
    if module_name not in _LOADED:
        _LOADED[module_name] = import_module(module_name)
    return True


def choose(name: str, call: Call) -> tuple[str, Recurrence]:
    """Returns the name and the recurrence of the backend for a call.

    Raises:
        ValueError: a backend requested by name cannot serve the call; the message gives the reason.
            Or there is no such backend.
    """
    check_backend(name)
    in_python: Recurrence = unless_varying(reference.recurrence, call.x.shape[0])
    if call.recompute and why_unreadable_call(call) is not None:
        in_python = _without_recompute  # it needs hooks that transforms do not allow
    if name == "reference":
        return name, in_python
    general = _why_not_compiled(call)
    for candidate, module_name in _MODULES.items():
        if name != candidate and (name != "auto" or not _AUTOMATIC[candidate](call.x.device)):
            continue
        _load(module_name)
        module = _LOADED[module_name]
        reason = general or module.refuses(call)
        if reason is None:
            return candidate, module.recurrence
        if name == candidate:
            raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
    return "reference", in_python


def _why_not_compiled(call: Call) -> str | None:
    """Returns why no compiled code can serve the call, in one line; None where one may."""
    if any(norm is not None and norm.counts is not None for norm in call.norms):
        return _SPREAD
    for norm in (call.norm_ih, call.norm_hh):
        if norm is not None and (norm.weight is None or norm.bias is not None):
            return "a norm of a projection has a bias or no weight, which no compiled code reads"
    return why_unreadable_call(call)


def _without_recompute(call: Call) -> Results:
    return reference.recurrence(call._replace(recompute=False))


def untested_backend(device: torch.device, used: str) -> str | None:
    """Returns a backend that might be faster than the one used, where `auto` has no measurement."""
    if used == "reference" and device.type == "cuda" and not _AUTOMATIC["triton"](device):
        return "triton" if torch.cuda.get_device_capability(device) >= (8, 0) else None
    return None


_LAYER_NORM = {
    "cpu": "elstm.nn.backends.cpu.layer_norm",
    "triton": "elstm.nn.backends.cuda.layer_norm",
}


def choose_layer_norm(name: str, call: LayerNormCall) -> tuple[str, Callable[..., Any]]:
    """Does what `choose` does, for the recurrence with layer normalisation; "auto" tries "cpu"."""
    check_backend(name)
    in_python = unless_varying(layer_norm_recurrence, call.x.shape[0])
    if name == "reference":
        return name, in_python
    candidate = "cpu" if name == "auto" else name
    norms = call.norm_ih, call.norm_hh, call.norm_c
    reason = next(filter(None, map(why_not_layer_norm, norms)), None)
    if reason is None:
        weights = [weight for norm in norms for weight in (norm.weight, norm.bias)]
        tensors = call.x, call.h_0, call.c_0, call.weight_ih, call.weight_hh, call.bias
        reason = why_unreadable(*tensors, *weights)
    if reason is None:
        module_name = _LAYER_NORM[candidate]
        _load(module_name)
        reason = _LOADED[module_name].refuses(call)
        if reason is None:
            return candidate, _LOADED[module_name].recurrence
    if name == candidate:
        raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
    return "reference", in_python
