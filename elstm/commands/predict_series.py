"""Predicts the sequences of files, for `elstm-predict` with a run on user sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elstm.commands.prediction_rows import shown_text
from elstm.errors import UserError
from elstm.files.bounded import file_text

if TYPE_CHECKING:
    import argparse

    from elstm.commands.prediction_rows import Rows
    from elstm.training.trained import TrainedModel


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError where an option for pictures is given."""
    given = {
        "--recursive": args.recursive, "--invert": args.invert != "auto", "--fit": args.fit,
    }  # fmt: skip
    for option, is_given in given.items():
        if is_given:
            raise UserError(f"{option} is for pictures, and the run is on sequences of numbers")


def write_predictions(trained: TrainedModel, paths: Sequence[Path], rows: Rows) -> None:
    """Writes a row for each sequence: id, label if it has one, prediction and probabilities.

    All files are read before the first row is written.

    Raises:
        UserError: a file cannot be read, or does not fit the model.
    """
    import torch  # these late: --help answers at once

    from elstm.data.unseen import load_series

    read = [load_series(trained.config.data, trained.facts, str(path)) for path in paths]
    rows.start(["id", "label"], trained.facts["class_names"], shown_text)
    for path, (data, part) in zip(paths, read, strict=True):
        number, file = 0, "" if len(paths) == 1 else f"{file_text(path)}: "
        for x, _ in data.eval_batches("test", trained.config.data.eval_batch_size):
            with torch.no_grad():
                probabilities = trained.model(x).softmax(1).tolist()
            for p in probabilities:
                rows.add([f"{file}{part.ids[number]}", part.labels[number]], p)
                number += 1
