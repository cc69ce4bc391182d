"""elstm-train in float64, for comparing runs to rounding; test_distributed.py starts it.

Arguments: the step after which process 1 gets a SIGTERM or an error, which, and the words.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from elstm.data.sequences import ImageSequences
from elstm.records import pictures as figures
from elstm.training.state import TrainState


def in_float64() -> None:
    original = ImageSequences.sequences
    ImageSequences.sequences = lambda self, images: original(self, images).double()  # type: ignore[method-assign]
    figures.gradient_figure = lambda *_: b"a picture"
    torch.set_default_dtype(torch.float64)


def end_at(step: int, how: str) -> None:
    original = TrainState.count_step

    def count_step(self: TrainState) -> None:
        original(self)
        if self.step == step and os.environ.get("RANK") == "1":
            if how == "error":
                raise ArithmeticError("of process 1")
            os.kill(os.getpid(), signal.SIGTERM)

    TrainState.count_step = count_step  # type: ignore[method-assign]


if __name__ == "__main__":
    from elstm.train import main

    in_float64()
    end_at(int(sys.argv[1]), sys.argv[2])
    sys.exit(main(sys.argv[3:]))
