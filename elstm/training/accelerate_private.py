"""Calls the part of Accelerate without a public interface, checked with Accelerate 1.15.0.

Accelerate keeps its state for the full process and refuses a second device or precision, but a
sweep trains many runs in one process. There is no public way to forget the state.
tests/training/test_accelerate_private.py fails if this changes.
"""

from accelerate.state import AcceleratorState, GradientState


def forget_state() -> None:
    """Makes the next Accelerator of this process start with new state; the process group stays."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
