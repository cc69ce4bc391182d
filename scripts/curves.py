"""Prints how far training losses of a backend differ from those of the reference.

    python scripts/curves.py                               # Fashion-MNIST rows, 200 steps: minutes
    TRITON_INTERPRET=1 python scripts/curves.py --data digits --models bn_lstm --backend triton

The same weights are trained on the same batches three times: by the reference in float64, by the
reference in float32, and by the backend in float32. A row has the largest difference of the loss so
far between each two of them. Training amplifies rounding errors, so compare the columns: without a
wrong gradient the backend is about as far from float64 as the reference in float32. All runs are on
the CPU, so the Triton kernels need Triton's interpreter.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch.nn.functional import cross_entropy

from elstm.config.schema import SCHEMAS, ImageSetConfig
from elstm.data.load import load_image_sequences
from elstm.data.sequences import ImageSequences
from elstm.models import SequenceClassifier, build_model
from elstm.nn import BACKENDS

MODELS = ("lstm", "bn_lstm", "elstm_bn")
SEED = 0


def losses(
    model: SequenceClassifier, data: ImageSequences, steps: int, dtype: torch.dtype
) -> list[float]:
    """Returns the training loss of each step, with Adam as in the experiments."""
    model = model.to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found: list[float] = []
    for epoch in range(steps):
        for x, y in data.train_batches(SEED, epoch):
            loss = cross_entropy(model(x.to(dtype)), y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            found.append(loss.item())
            if len(found) == steps:
                return found
    return found


def largest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", default="fashion_mnist", help="an image set of 28 x 28 pixels, or digits"
    )
    parser.add_argument("--models", nargs="+", default=["bn_lstm", "elstm_bn"], choices=MODELS)
    parser.add_argument("--backend", default="cpu", choices=BACKENDS)
    parser.add_argument("--steps", type=int, default=200, help="number of training steps")
    args = parser.parse_args()
    per_step = 8 if args.data == "digits" else 28
    root = os.environ.get("ELSTM_DATA") or "data"
    data = load_image_sequences(ImageSetConfig(args.data, root=root, pixels_per_step=per_step))
    print(f"{args.data}, largest difference of the training loss so far\n")
    print("| model | steps | loss | reference float32 - float64 |", end="")
    print(f" {args.backend} float32 - float64 | {args.backend} - reference, float32 |")
    print("|---" * 6 + "|")
    for name in args.models:
        runs = []
        for backend, dtype in (
            ("reference", torch.float64),
            ("reference", torch.float32),
            (args.backend, torch.float32),
        ):
            torch.manual_seed(SEED)
            config = SCHEMAS["model"][name](
                forget_bias="chrono", input_bias="chrono", backend=backend
            )
            model = build_model(
                name, config.options(),
                input_size=data.input_size, num_steps=data.num_steps, num_classes=data.num_classes,
            )  # fmt: skip
            runs.append(losses(model, data, args.steps, dtype))
        exact, plain, fast = runs
        for n in sorted({args.steps * part // 4 for part in range(1, 5)} - {0}):
            pairs = ((plain, exact), (fast, exact), (fast, plain))
            apart = " | ".join(f"{largest(one[:n], other[:n]):.1e}" for one, other in pairs)
            print(f"| {name} | {n} | {exact[n - 1]:.4f} | {apart} |", flush=True)


if __name__ == "__main__":
    main()
