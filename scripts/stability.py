"""Prints how stably BN layers train and evaluate, by eps and sequence length.

    python scripts/stability.py                             # MNIST, 28 and 196 steps: minutes
    python scripts/stability.py --data mnist fashion_mnist digits --steps 28 196 784

Each row is one short training run. It has the last epoch's loss, and the validation accuracy of the
same weights with batch statistics, with population statistics recomputed from one batch of 2,000
and pooled over ten of 1,000, and with the moving averages. A layer is stable where the first two
agree. `default` is the default eps of the layer. The learning rate falls along half a cosine, as at
the end of a real run.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from torch.nn.functional import cross_entropy

from elstm.config.schema import SCHEMAS, ImageSetConfig
from elstm.data.load import load_image_sequences
from elstm.data.sequences import ImageSequences
from elstm.models import SequenceClassifier, build_model
from elstm.nn import batch_statistics, recompute_statistics

MODELS = ("bn_lstm", "elstm_bn")
SEED = 0


@torch.no_grad()
def accuracy(model: SequenceClassifier, data: ImageSequences) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.eval_batches("val", 1000))
    return right / len(data.val)


def train(model: SequenceClassifier, data: ImageSequences, epochs: int, lr: float) -> float:
    """Trains by Adam with a cosine schedule; returns the last epoch's mean loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    steps = epochs * data.num_train_batches
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_sum = torch.zeros(())
    for epoch in range(epochs):
        model.train()
        loss_sum.zero_()
        for x, y in data.train_batches(SEED, epoch):
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            loss_sum += loss.detach()
    return float(loss_sum / data.num_train_batches)


def row(args: argparse.Namespace, name: str, steps: int, model_name: str, eps: float | None) -> str:
    pixels = 64 if name == "digits" else 784
    size = None if name == "digits" else args.train_size
    root = os.environ.get("ELSTM_DATA") or "data"
    data = load_image_sequences(
        ImageSetConfig(name, root=root, pixels_per_step=pixels // steps, train_size=size)
    )
    torch.manual_seed(SEED)
    config = SCHEMAS["model"][model_name](eps=eps, forget_bias="chrono", input_bias="chrono")
    model = build_model(
        model_name,
        config.options(),
        input_size=data.input_size,
        num_steps=data.num_steps,
        num_classes=data.num_classes,
    )
    start = time.perf_counter()
    loss = train(model, data, args.epochs, args.lr)
    seconds = time.perf_counter() - start
    model.eval()
    moving = accuracy(model, data)
    with batch_statistics(model):
        batch = accuracy(model, data)
    recompute_statistics(model, data.statistics_batches(1, 2000, SEED, 0))
    recomputed = accuracy(model, data)
    recompute_statistics(model, data.statistics_batches(10, 1000, SEED, 0))
    pooled = accuracy(model, data)
    shown = "default" if eps is None else f"{eps:g}"
    accuracies = " | ".join(f"{value:.2%}" for value in (batch, recomputed, pooled, moving))
    return (
        f"| {name} | {steps} | {model_name} | {shown} | {loss:.3f} | {accuracies} | {seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        nargs="+",
        default=["mnist"],
        metavar="NAME",
        help="image sets, as data= names them",
    )
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[28, 196], help="the digits always have 8"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument(
        "--eps",
        nargs="+",
        default=["default", "0.1", "0.001"],
        help="numbers, or default for that of the layer",
    )
    parser.add_argument("--train-size", type=int, default=10_000, help="number of training images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-3)
    args = parser.parse_args()
    accuracies = "batch | recomputed | pooled | moving"
    print(f"| data | steps | model | eps | training loss | {accuracies} | seconds |")
    print("|---" * 10 + "|")
    for name in args.data:
        for steps in [8] if name == "digits" else args.steps:
            for model_name in args.models:
                for eps in args.eps:
                    value = None if eps == "default" else float(eps)
                    print(row(args, name, steps, model_name, value), flush=True)


if __name__ == "__main__":
    main()
