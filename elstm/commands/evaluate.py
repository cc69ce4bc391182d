"""`elstm-eval RUN_DIR`: how good a trained model is on a split, class by class."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elstm.cli import Parser, command, data_root_as, say
from elstm.training.ranks import require_one_process

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

PROG = "elstm-eval"
DESCRIPTION = """\
Evaluates the model of a run: accuracy with population statistics (what counts) and with the
statistics of each batch, loss, a table by class, and the confusion matrix as a picture in RUN_DIR.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (see elstm.cli)."""
    words = sys.argv[1:] if argv is None else list(argv)
    return command(PROG, lambda: _main(_parse(words)))


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="default: test"
    )
    parser.add_data_root()
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), help="default: the run's"
    )
    return parser.parse_args(words)


def _main(args: argparse.Namespace) -> int:
    import dataclasses  # these and torch late: --help answers at once

    from elstm.data.load import load_data, moved
    from elstm.files.atomic import write_atomic
    from elstm.records.pictures import confusion_figure
    from elstm.training import device as runtime
    from elstm.training.data_facts import check_same_data, is_stratified
    from elstm.training.evaluation import score_with_both_statistics
    from elstm.training.trained import load_trained

    require_one_process(PROG)
    trained = load_trained(args.run_dir, args.checkpoint)
    config = trained.config
    trainer, source = config.trainer, config.data
    if args.device is not None:
        trainer = dataclasses.replace(trainer, device=args.device)
    elif trainer.device not in ("auto", *runtime.available_devices()):
        say(f"{PROG}: there is no {trainer.device} here, on which the run was trained")
        trainer = dataclasses.replace(trainer, device="auto")
    if trainer.precision == "fp16" and runtime.choose_device(trainer.device) == "cpu":
        say(f"{PROG}: in fp32, since a CPU does not do the run's fp16")
        trainer = dataclasses.replace(trainer, precision="fp32")
    if args.data_root is not None:
        source = moved(source, args.data_root)
    device = runtime.choose_device(trainer.device, trainer.precision)
    with data_root_as("--data-root"):
        data = load_data(source, stratify=is_stratified(trained.facts))
        check_same_data(trained.facts, data)
    with runtime.process_settings(trainer):
        population, in_batch = score_with_both_statistics(
            trained.model.to(device),
            data.to(device),
            args.split,
            source.eval_batch_size,
            precision=trainer.precision,
        )

    total, right = int(population.confusion.sum()), int(population.confusion.trace())
    print(f"{config.model.name} on {data.name}, {args.split} split, {total:,} images")
    print(f"checkpoint   {trained.path} ({trained.epoch} epochs, {trained.step} steps)")
    print(f"accuracy     {population.accuracy:.2%} ({right:,} right), population statistics")
    print(f"             {in_batch.accuracy:.2%} with the statistics of each batch")
    print(f"loss         {population.loss:.4f}\n")
    print(_table(population.confusion, data.class_names))
    name = f"confusion_{args.split}.png"
    if args.checkpoint != "best":
        name = f"confusion_{args.split}_{Path(args.checkpoint).stem}.png"
    title = (
        f"{config.model.name} on {data.name}, {args.split} split: {population.accuracy:.2%} right"
    )
    picture = args.run_dir / name
    write_atomic(
        picture, confusion_figure(population.confusion.numpy(), data.class_names, title), sync=False
    )
    print(f"\nconfusion matrix: {picture}")
    return 0


def _table(confusion: Tensor, class_names: Sequence[str]) -> str:
    """Recall, precision and the most frequent error of each class."""
    width = max(len("class"), *map(len, class_names))
    lines = [f"{'class':<{width}}  images  recall  precision  mostly taken for"]
    for i, name in enumerate(class_names):
        row, images = confusion[i].clone(), int(confusion[i].sum())
        right, predicted = int(row[i]), int(confusion[:, i].sum())
        row[i] = 0
        wrong = int(row.max())
        taken = f"{class_names[int(row.argmax())]} ({wrong})" if wrong else ""
        recall = f"{right / images:.1%}" if images else "-"
        precision = f"{right / predicted:.1%}" if predicted else "-"
        lines.append(f"{name:<{width}}  {images:>6}  {recall:>6}  {precision:>9}  {taken}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
