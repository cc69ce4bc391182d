"""Runs `elstm-eval RUN_DIR`: measures a trained model on a split, class by class."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elstm.cli import Parser, command, data_root_as, print_line, summary
from elstm.data.catalog import name_from_path
from elstm.errors import UserError, printable
from elstm.training.ranks import require_one_process

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

PROG = "elstm-eval"
SPLITS = ("train", "val", "test")
MAX_NAME = 24  # characters of a class's name in the table
DESCRIPTION = """\
Evaluates the model of a run. It prints accuracy with population statistics (the result) and with
the statistics of each batch, balanced accuracy, macro F1, loss and a table by class. It writes the
confusion matrix as a picture to RUN_DIR.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see elstm.cli)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return command(PROG, lambda: _main(_parse(arguments)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="split to evaluate (default: test)"
    )
    parser.add_data_root()
    parser.add_argument(
        "--data", metavar="PATH",
        help="other labelled data in the format of the run's data; for a run on a published image "
        "set a folder with files of that format, or with a folder of pictures for each class. "
        "All sequences of files without splits are used. The statistics of the run's training "
        "split scale them.",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), help="device (default: the run's)"
    )
    return parser.parse_args(arguments)


def _main(args: argparse.Namespace) -> int:
    import dataclasses  # these and torch are imported late, so that --help answers at once

    from elstm.config.schema import data_with_seed
    from elstm.data.load import load_data, with_location
    from elstm.data.sequences import SequenceData
    from elstm.data.unseen import load_unseen
    from elstm.files.atomic import write_atomic
    from elstm.records.pictures import confusion_figure
    from elstm.training import device as runtime
    from elstm.training.data_facts import check_same_data, is_stratified
    from elstm.training.evaluation import score_with_both_statistics
    from elstm.training.scores import balanced_accuracy, macro_f1
    from elstm.training.trained import load_trained

    require_one_process(PROG)
    trained = load_trained(args.run_dir, args.checkpoint, args.weights)
    config = trained.config
    trainer, source = config.trainer, data_with_seed(config)
    if args.device is not None:
        trainer = dataclasses.replace(trainer, device=args.device)
    elif trainer.device not in ("auto", *runtime.available_devices()):
        print_line(f"{PROG}: there is no {trainer.device} here, on which the run was trained")
        trainer = dataclasses.replace(trainer, device="auto")
    if trainer.precision == "fp16" and runtime.choose_device(trainer.device) == "cpu":
        print_line(f"{PROG}: in fp32, since a CPU does not do the run's fp16")
        trainer = dataclasses.replace(trainer, precision="fp32")
    if args.data_root is not None:
        if args.data is not None:
            raise UserError("--data-root moves the run's own data; it does nothing with --data")
        source = with_location(source, args.data_root)
    device = runtime.choose_device(trainer.device, trainer.precision)
    if args.data is not None:
        with data_root_as("--data"):
            data: SequenceData
            data, taken = load_unseen(source, trained.facts, args.data, args.split)
    else:
        taken = f"{args.split} split"
        with data_root_as("--data-root"):
            data = load_data(source, stratify=is_stratified(trained.facts))
            check_same_data(trained.facts, data)
    if not len(data.split(args.split)):
        raise UserError(
            f"the run has no {args.split} split (data.val_fraction=0): give --split train or test"
        )
    with runtime.process_settings(trainer):
        population, in_batch = score_with_both_statistics(
            trained.model.to(device),
            data.to(device),
            args.split,
            source.eval_batch_size,
            precision=trainer.precision,
        )

    total, right = int(population.confusion.sum()), int(population.confusion.trace())
    what = "images" if "image_size" in trained.facts else "sequences"
    counted = f"all {total:,}" if taken == "all" else f"{taken}, {total:,}"
    print(f"{config.model.name} on {data.name}, {counted} {what}")
    print(f"checkpoint   {trained.path} ({trained.epoch} epochs, {trained.step} steps)")
    if trained.weights_text is not None:
        print(f"weights      {trained.weights_text}")
    print(f"accuracy     {population.accuracy:.2%} ({right:,} right), population statistics")
    print(f"             {in_batch.accuracy:.2%} with the statistics of each batch")
    print(
        f"balanced     {balanced_accuracy(population.confusion):.2%} mean recall of the classes, "
        f"macro F1 {macro_f1(population.confusion):.4f}"
    )
    print(f"loss         {population.loss:.4f}\n")
    print(_table(population.confusion, data.class_names, what))
    shown = f"all {what}" if taken == "all" else taken
    title = f"{config.model.name} on {data.name}, {shown}: {population.accuracy:.2%} right"
    picture = args.run_dir / _picture_name(args)
    try:
        png = confusion_figure(population.confusion.numpy(), data.class_names, title, what)
    except Exception as error:  # matplotlib, its fonts and its cache raise anything
        raise UserError(f"the confusion matrix cannot be drawn: {summary(error)}") from error
    write_atomic(picture, png, sync=False)
    print(f"\nconfusion matrix: {picture}")
    return 0


def _picture_name(args: argparse.Namespace) -> str:
    """Returns the file name of the confusion matrix, which never is that of the run's own data."""
    name: str = args.split
    if args.data is not None:
        name = name_from_path(args.data)
        if name.startswith(SPLITS):  # a folder or file called test, say
            name = f"data_{name}"
    if args.checkpoint != "best":
        name += f"_{Path(args.checkpoint).stem}"
    if args.weights is not None:
        name += f"_{args.weights}"
    return f"confusion_{name}.png"


def _table(confusion: Tensor, class_names: Sequence[str], what: str) -> str:
    """Lists recall, precision, F1 and the most frequent error of each class.

    Args:
        what: images or sequences, which the table counts.
    """
    from elstm.training import scores

    shown = [printable(name) for name in class_names]  # whoever made the run has chosen them
    names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in shown]
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':<{width}}  {what}  recall  precision      F1  mostly taken for"]
    columns = scores.recalls, scores.precisions, scores.f1_scores
    recall, precision, f1 = (column(confusion).tolist() for column in columns)
    for i, name in enumerate(names):
        row = confusion[i].clone()
        count, row[i] = int(row.sum()), 0
        wrong = int(row.max())
        taken = f"{names[int(row.argmax())]} ({wrong})" if wrong else ""
        cells = f"{_percent(recall[i]):>6}  {_percent(precision[i]):>9}  {_percent(f1[i]):>6}"
        lines.append(f"{name:<{width}}  {count:>{len(what)}}  {cells}  {taken}".rstrip())
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


if __name__ == "__main__":
    sys.exit(main())
