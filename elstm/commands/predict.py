"""Runs `elstm-predict RUN_DIR IMAGE... | FOLDER`: writes classes of image files as CSV or Parquet.

elstm.data.image_files decodes a picture, and elstm.data.placement converts it to the form of the
model's images. Pictures are read one at a time and predicted in batches, so that memory is bounded
whatever their number and size.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from elstm.cli import FAILED, Parser, command, home_path, plural, print_line
from elstm.commands.prediction_rows import CsvRows, Rows, check_output, rows_for
from elstm.errors import UserError
from elstm.files.bounded import FORMULA, file_text
from elstm.training.ranks import require_one_process

if TYPE_CHECKING:
    import argparse

    import numpy as np

PROG = "elstm-predict"
DESCRIPTION = """\
Classifies image files with the model of a run and writes CSV: file, predicted class, its
probability, and the probability of every class. The pictures are turned upright by their EXIF
data and scaled to the size of the model's images. With a run on your own sequences (data=arrays,
table or ts), it reads files of that format and writes id and label of each sequence in place of
the file.
"""
INVERT = {"auto": None, "yes": True, "no": False}
BATCH = 256  # images predicted at once


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see elstm.cli)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return command(PROG, lambda: _main(_parse(arguments)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "images", type=home_path, nargs="*", metavar="FILE|FOLDER",
        help="image files, or folders, from which all files with the ending of an image are read, "
        "except hidden ones. For a run on your own sequences: files in the format of its training "
        "data; labels may be missing",
    )  # fmt: skip
    parser.add_argument(
        "--recursive", action="store_true", help="also take images from sub-folders"
    )
    parser.add_argument(
        "--invert", choices=INVERT, default="auto",
        help="exchange light and dark where they are the reverse of MNIST and similar sets (auto, "
        "the default), in all pictures (yes; also --invert alone), or in none (no)",
    )  # fmt: skip
    parser.add_argument(
        "--fit", action="store_true",
        help="find the content of each picture, then crop, scale and centre it as in the training "
        "images (MNIST: into a box of 20 x 20), for your own pictures. Without it the full picture "
        "is scaled",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=home_path, metavar="FILE",
        help="file to write (default: standard output). A name that ends in .parquet gives "
        "Parquet, which needs pip install 'elstm[parquet]'.",
    )  # fmt: skip
    args = parser.parse_intermixed_args(list(_with_values(arguments)))
    if not args.images:
        run = (args.run_dir / ".hydra").is_dir()
        missing = "IMAGE" if run else "RUN_DIR, a run's folder,"
        parser.error(f"{missing} is missing: {PROG} RUN_DIR IMAGE|FOLDER ...")
    return args


def _with_values(arguments: list[str]) -> Iterator[str]:
    """Adds the value of --invert where it is missing, as in `--invert IMAGE`."""
    for argument, following in pairwise([*arguments, ""]):
        alone = argument == "--invert" and following not in INVERT
        yield "--invert=yes" if alone else argument


def _main(args: argparse.Namespace) -> int:
    from elstm.config.data_options import SeriesConfig
    from elstm.training.trained import load_trained  # and with it torch: --help answers at once

    require_one_process(PROG)
    check_output(args.output)
    trained = load_trained(args.run_dir, args.checkpoint, args.weights)
    if trained.weights_text is not None:
        print_line(f"{PROG}: weights: {trained.weights_text}")
    if isinstance(trained.config.data, SeriesConfig):
        return _predict_series(args, trained)
    paths = list(_files(args.images, args.recursive))
    predictor = _Predictor(trained, invert=INVERT[args.invert], fit=args.fit)
    if args.output is None:
        predictor.run(paths, CsvRows(sys.stdout))
    else:

        def write(rows: Rows) -> None:
            predictor.run(paths, rows)
            if predictor.bad == len(paths):
                raise UserError(f"none of {plural(len(paths), 'file')} could be read: "
                    f"{args.output} was not written")  # fmt: skip

        _write_output(args.output, write)
    predictor.print_notes()
    if predictor.bad:
        print_line(f"{PROG}: error: {predictor.bad} of {len(paths)} files could not be read")
    return FAILED if predictor.bad else 0


def _predict_series(args: argparse.Namespace, trained: Any) -> int:
    """Predicts the sequences of files; returns the exit code."""
    from elstm.commands.predict_series import check_options, write_predictions

    check_options(args)

    def write(rows: Rows) -> None:
        write_predictions(trained, args.images, rows)

    if args.output is None:
        write(CsvRows(sys.stdout))
    else:
        _write_output(args.output, write)
    return 0


def _files(given: Sequence[Path], recursive: bool) -> Iterator[Path]:
    """Returns the files, and the images in the folders in order of name."""
    from elstm.data.image_files import endings

    for path in given:
        if not _is_folder(path):
            yield path
            continue
        try:
            inside = sorted(p for p in _visible(path, recursive) if p.suffix.lower() in endings())
        except OSError as error:
            raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error
        if not inside:
            hint = "" if recursive else "; --recursive reads its sub-folders"
            raise UserError(f"there are no images in {path}{hint}")
        yield from inside


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # for example a name that is too long; opening it gives the reason
        return False


def _visible(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yields the files in a folder that are not hidden. Links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


class _Predictor:
    """Reads pictures, predicts their classes and writes them as rows.

    Args:
        trained: the model and its facts.
        invert: see elstm.data.placement.read_image.
        fit: likewise.

    Attributes:
        bad: how many files could not be read.
    """

    def __init__(self, trained: Any, *, invert: bool | None, fit: bool) -> None:
        from elstm.data.catalog import DATA_SETS

        self.model, self.facts = trained.model, trained.facts
        if "image_size" not in self.facts:
            raise UserError(f"{PROG} classifies pictures, and the run was trained on series")
        # Own data have a fingerprint, and may have the name of a published set.
        self.own = "fingerprint" in self.facts
        source = None if self.own else DATA_SETS.get(self.facts["name"])
        self.box = None if source is None else source.box
        if fit and self.box is None:
            known = ", ".join(name for name, each in DATA_SETS.items() if each.box is not None)
            raise UserError(f"--fit places contents as in {known}; the run is on other pictures")
        self.invert, self.fit = invert, fit
        self.bad = 0
        self.notes: dict[str, tuple[Path, int]] = {}  # the first file and the number of files

    def run(self, paths: Sequence[Path], rows: Rows) -> None:
        rows.start(["file"], self.facts["class_names"], _shown)
        batch: list[tuple[Path, np.ndarray]] = []
        for number, path in enumerate(paths, start=1):
            try:
                batch.append((path, self.read(path)))
            except ValueError as error:
                print_line(f"{PROG}: {path}: {error}")
                self.bad += 1
            if batch and (len(batch) == BATCH or number == len(paths)):
                for (name, _), p in zip(batch, self.probabilities(batch), strict=True):
                    rows.add([file_text(name)], p)
                batch.clear()

    def read(self, path: Path) -> np.ndarray:
        from elstm.data.placement import read_as_trained

        def note(text: str) -> None:
            first, count = self.notes.get(text, (path, 0))
            self.notes[text] = first, count + 1

        return read_as_trained(
            path, self.facts, self.box, eight_bits=self.own,  # as in training
            invert=self.invert, fit=self.fit, note=note,
        )  # fmt: skip

    def probabilities(self, batch: list[tuple[Path, np.ndarray]]) -> list[list[float]]:
        import numpy as np
        import torch

        from elstm.data.sequences import to_sequences

        images = torch.from_numpy(np.stack([image.reshape(-1) for _, image in batch]))
        facts = self.facts
        with torch.no_grad():
            x = to_sequences(
                images, facts["pixels_per_step"], facts["mean"], facts["std"],
                facts["permutation"], facts.get("channels", 1),
            )  # fmt: skip
            probabilities: list[list[float]] = self.model(x).softmax(1).tolist()
        return probabilities

    def print_notes(self) -> None:
        for text, (first, count) in self.notes.items():
            more = f" (and {count - 1:,} more)" if count > 1 else ""
            print_line(f"{PROG}: {first}{more}: the picture {text}")


def _shown(name: str, terminal: bool) -> str:
    """Returns a file's name for a cell.

    A spreadsheet would read a name that starts with = as a formula, and a terminal would execute
    control characters.
    """
    name = f"./{name}" if name[0] in (*FORMULA, "\t", "\r") else name
    if not terminal:
        return name
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def _write_output(path: Path, write: Callable[[Rows], None]) -> None:
    """Writes a file that the user has named, at once or not at all.

    A link is followed, and the file's permissions are preserved. A pipe or a device is written to.
    """
    from elstm.files.atomic import write_atomic, writing

    def write_rows(file: IO[bytes]) -> None:
        with rows_for(path, file) as rows:
            write(rows)

    with writing(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and stat.S_ISDIR(mode):
            raise UserError(f"cannot write {path}: it is a folder")
        if mode is not None and not stat.S_ISREG(mode):
            with path.open("wb") as stream:
                write_rows(stream)
            return
        if mode is not None and not os.access(path, os.W_OK):
            raise UserError(f"cannot write {path}: it is read-only")

    def replace(file: IO[bytes]) -> None:
        write_rows(file)
        if mode is not None:
            with suppress(OSError, AttributeError):  # Windows before Python 3.13
                os.fchmod(file.fileno(), stat.S_IMODE(mode))

    write_atomic(path.resolve(), replace)


if __name__ == "__main__":
    sys.exit(main())
