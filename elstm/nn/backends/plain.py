"""Decides which tensors compiled code may read: plain, dense memory of an ordinary tensor.

Compiled code takes addresses. A tensor of torch may have none (fake, meta and wrapped tensors). Its
values may differ from the numbers in its memory (negative or conjugate views). torch may also
record or transform it as operators run on it. All of these take the reference, which is made of
torch's operators.

Six facts have no public interface in torch: whether a transform of torch.func runs, whether a
dispatch mode is active, which function modes are active, whether forward-mode differentiation is
on, which dispatch keys a tensor has, and whether one module or all modules have hooks. No other
module reads them. They were checked with torch 2.14.1, and tests/nn/test_plain.py fails when one
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from elstm.nn.layer_norm import LayerNorm
from elstm.nn.recurrence import Call

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_PLAIN_KEYS: set[int] = set()  # the dispatch keys of tensors that passed, collected as calls come


def constant_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """Does what torch.compiler.assume_constant_result does, without importing the compiler.

    The import takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def why_unreadable(*tensors: Tensor | None) -> str | None:
    """Returns why compiled code cannot read these tensors, in one line; None where it can."""
    if torch.compiler.is_dynamo_compiling():
        return running_transform()  # the compiler traces ordinary tensors; its modes are no concern
    if torch.jit.is_tracing():
        return "torch.jit.trace records the call"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode of torch is active, such as FakeTensorMode"
    if _function_mode():
        return "a function mode of torch is active"
    reason = running_transform()
    if reason is not None:
        return reason
    keys_of, tangents = torch._C._dispatch_keys, forward_ad._current_level >= 0
    for tensor in tensors:
        if tensor is None:
            continue
        if (
            type(tensor) not in _PLAIN_TYPES
            or keys_of(tensor).raw_repr() not in _PLAIN_KEYS
            or not tensor.data_ptr()
        ):
            reason = _fault(tensor)
            if reason is not None:
                return reason
        if tangents and forward_ad.unpack_dual(tensor).tangent is not None:
            return "a tensor has a tangent of forward-mode differentiation"
    return None


def why_unreadable_call(call: Call) -> str | None:
    """Returns why compiled code cannot read the tensors of a call; None where it can."""
    norms = [norm for norm in call.norms if norm is not None]
    of_norms = [part for norm in norms for part in (norm.weight, norm.bias, norm.mean, norm.var)]
    weights = call.weight_ih, call.weight_hh, call.bias
    return why_unreadable(call.x, call.h_0, call.c_0, *weights, *of_norms)


@constant_result
def why_not_layer_norm(norm: nn.Module) -> str | None:
    """Returns why compiled code cannot compute what a call of `norm` does; None where it can.

    It computes layer normalisation with weight and bias, and calls no module.
    """
    forward = getattr(norm.forward, "__func__", None)
    if forward not in (LayerNorm.forward, nn.LayerNorm.forward):
        return f"a norm is a {type(norm).__name__}"
    if norm.weight is None or norm.bias is None:
        return "a norm has no weight or no bias"
    hooks = norm._forward_hooks, norm._forward_pre_hooks
    of_all = nn.modules.module._has_any_global_hook()
    if of_all or any((*hooks, norm._backward_hooks, norm._backward_pre_hooks)):
        return "a norm has hooks"
    return None


@constant_result
def running_transform() -> str | None:
    """Returns that a transform of torch.func runs, in one line; None where none does."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func runs, such as grad or vmap"
    return None


def _function_mode() -> bool:
    """Returns whether a __torch_function__ mode is active, other than a default device's."""
    if not torch._C._len_torch_function_stack():
        return False
    modes = (
        torch._C._get_function_stack_at(n) for n in range(torch._C._len_torch_function_stack())
    )
    return any(not isinstance(mode, DeviceContext) for mode in modes)


def _fault(tensor: Tensor) -> str | None:
    if type(tensor) not in _PLAIN_TYPES:
        return f"a tensor is a {type(tensor).__name__}"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor belongs to a transform of torch.func"
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return "a tensor is not dense"
    if tensor.is_neg() or tensor.is_conj():
        return "a tensor is a negative or conjugate view"
    if not _has_memory(tensor):
        return "a tensor has no memory"
    # All tensors with these dispatch keys pass the checks above, except that of their memory.
    if tensor.numel():
        _PLAIN_KEYS.add(torch._C._dispatch_keys(tensor).raw_repr())
    return None


def _has_memory(tensor: Tensor) -> bool:
    """Returns whether the numbers lie at an address; meta, freed and batched tensors have none."""
    if not tensor.numel():
        return not tensor.is_meta
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:  # a wrapper without storage, such as those of is_grads_batched
        return False
