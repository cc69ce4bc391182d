"""Calls the parts of torch without a public interface, checked with torch 2.11 and 2.14.

No other module outside elstm.nn uses private parts. The reasons are:

torch._foreach_norm
    The norm of each gradient is computed in one kernel. torch.nn.utils.get_total_norm does the same
    and returns the total alone.
torch.distributed.distributed_c10d._get_default_store
    Processes exchange texts and errors through the store of the process group, also when a
    collective operation cannot run any more.
torch._higher_order_ops.scan.scan
    A loop over time steps becomes one node of an exported program. torch.export has no other loop.
torch.ops.aten._assert_tensor_metadata
    An exported program checks the shapes of its inputs, but not their dtypes.

elstm.nn has its own in elstm/nn/norm.py and elstm/nn/backends/plain.py. The test
tests/training/test_torch_private.py fails if one of those here changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed


def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the 2-norm of each tensor."""
    return list(torch._foreach_norm(list(tensors)))


def default_store() -> Any:
    """Returns the store that all processes of the job read and write."""
    return distributed.distributed_c10d._get_default_store()


def assert_dtype(tensor: Tensor, dtype: torch.dtype) -> None:
    """Raises RuntimeError if a tensor has another dtype, also within an exported program."""
    torch.ops.aten._assert_tensor_metadata.default(tensor, None, None, dtype)


def scan(body: Callable[..., Any], state: Any, inputs: Any) -> Any:
    """Runs `body` over the first dimension of `inputs`, and returns the last state and all outputs.

    Args:
        body: maps a state and the inputs of a step to the next state and the outputs.
        state: tensors; a list or another nested structure.
        inputs: likewise, with the steps first.
    """
    from torch._higher_order_ops.scan import scan as prototype  # late, as it imports the compiler

    return prototype(body, state, inputs)
