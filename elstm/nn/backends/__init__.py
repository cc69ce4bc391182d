"""The registry of recurrences: one function, several implementations, chosen here and nowhere else.

A backend is a module of this package with three functions. Of the same arguments as
`elstm.nn.recurrence.recurrence`: `recurrence`, and `refuses`, which returns why it cannot serve a
call, or None where it can. Of a device: `automatic`, whether `auto` takes it there, which it does
once it has been measured. It is imported when it is first asked: by `auto` only for its
kind of device.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from elstm.nn import recurrence as reference
from elstm.nn.recurrence import NormInputs, Recurrence

# Fastest first; the reference serves every call.
_MODULES: dict[str, str] = {
    "cpu": "elstm.nn.backends.cpu",
    "triton": "elstm.nn.backends.triton",
}
_DEVICES = {"cpu": "cpu", "triton": "cuda"}
BACKENDS = ("auto", *_MODULES, "reference")


def check_backend(name: str) -> None:
    """Raises ValueError unless `name` is one of BACKENDS."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")


_SPREAD = "its statistics are those of one process, not of all (sync_batch_stats)"
_LOADED: dict[str, Any] = {}


def constant_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compiler.assume_constant_result, without importing the compiler: a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_result
def _load(module_name: str) -> bool:
    """Imports a backend where torch.compile traces too: it would break its graph at an import."""
    if module_name not in _LOADED:
        _LOADED[module_name] = import_module(module_name)
    return True


def choose(name: str, *call: Any) -> tuple[str, Recurrence]:
    """The backend for a call of `recurrence`, with its name.

    Raises:
        ValueError: a backend asked for by name cannot serve the call; the message says why.
    """
    spread = any(isinstance(part, NormInputs) and part.shares is not None for part in call)
    for candidate, module_name in _MODULES.items():
        kind = call[0].device.type
        if name != candidate and (name != "auto" or kind != _DEVICES[candidate]):
            continue
        _load(module_name)
        module = _LOADED[module_name]
        if name == "auto" and not module.automatic(call[0].device):
            continue
        reason = _SPREAD if spread else module.refuses(*call)
        if reason is None:
            return candidate, module.recurrence
        if name == candidate:
            raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
    return "reference", reference.recurrence
