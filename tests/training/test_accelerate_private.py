"""Accelerate forgets its state where it is told to, and only there."""

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from elstm.training.accelerate_private import forget_state


def test_the_state_of_a_process_is_forgotten():
    forget_state()
    assert Accelerator(cpu=True, gradient_accumulation_steps=2).mixed_precision == "no"
    with pytest.raises(ValueError, match="already been initialized"):  # why this is needed
        Accelerator(cpu=True, mixed_precision="bf16")
    forget_state()
    assert AcceleratorState._shared_state == GradientState._shared_state == {}
    assert PartialState._shared_state == {}
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    forget_state()
