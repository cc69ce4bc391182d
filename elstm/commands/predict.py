"""`elstm-predict RUN_DIR IMAGE... | FOLDER`: the classes of image files, as CSV.

An image of one of FORMATS is grey-scaled (over black where it is transparent; CMYK and palettes by
their colours; of 16 bits the upper eight count), resized to the model's images and normalised as in
training. One image at a time is decoded, and none of more than MAX_PIXELS is, so that memory is
bounded whatever the files say of themselves.
"""

from __future__ import annotations

import csv
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from elstm.cli import FAILED, Parser, command, say
from elstm.errors import UserError
from elstm.training.ranks import require_one_process

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from PIL import Image

PROG = "elstm-predict"
DESCRIPTION = """\
Classifies image files with the model of a run and writes CSV: file, predicted class, its
probability, and the probability of every class. The models are trained on light strokes on a dark
ground (digits, clothes); give --invert for dark on light.
"""
MAX_PIXELS = 50_000_000  # 200 MB decoded at 4 bytes a pixel
MAX_BYTES = 200_000_000  # of a file: such an image without compression
STRIP = 1_000_000  # pixels turned to grey at once
# What people have. Pillow reads forty more, some through other programs (EPS, WMF).
FORMATS = (
    "PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "MPO", "DIB", "ICO", "PCX",
    "PPM", "SGI", "TGA",
)  # fmt: skip
BATCH = 256  # images predicted at once


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (see elstm.cli): 1 if a file could not be read."""
    words = sys.argv[1:] if argv is None else list(argv)
    return command(PROG, lambda: _main(_parse(words)))


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE|FOLDER",
        help="image files; of a folder all files in it whose names end like an image's",
    )  # fmt: skip
    parser.add_argument("--invert", action="store_true", help="the images are dark on light")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    return parser.parse_args(words)


def _main(args: argparse.Namespace) -> int:
    from elstm.files.atomic import writing
    from elstm.training.trained import load_trained  # and with it torch: --help answers at once

    require_one_process(PROG)
    paths = list(_files(args.images))
    trained = load_trained(args.run_dir, args.checkpoint)
    rows, columns = trained.facts["image_size"]
    names = trained.facts["class_names"]
    bad = 0
    with ExitStack() as stack:
        out: TextIO = sys.stdout
        if args.output is not None:
            stack.enter_context(writing(args.output))
            out = stack.enter_context(args.output.open("w", encoding="utf-8", newline=""))
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["file", "predicted", "probability", *(f"p({name})" for name in names)])
        batch: list[tuple[Path, np.ndarray]] = []
        for number, path in enumerate(paths, start=1):
            try:
                batch.append((path, read_image(path, rows, columns, invert=args.invert)))
            except ValueError as error:
                say(f"{PROG}: {path}: {error}")
                bad += 1
            if batch and (len(batch) == BATCH or number == len(paths)):
                _write(writer, batch, trained, names)
                batch.clear()
    if bad:
        say(f"{PROG}: error: {bad} of {len(paths)} files could not be read")
    return FAILED if bad else 0


def _files(given: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, folders as the images in them, in order of name."""
    from PIL import Image

    formats, known = _formats(), Image.registered_extensions()
    endings = {ending for ending, name in known.items() if name in formats}
    for path in given:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in endings and p.is_file())
        if not inside:
            raise UserError(f"there are no images in {path}")
        yield from inside


def _write(
    writer: Any, batch: list[tuple[Path, np.ndarray]], trained: Any, names: Sequence[str]
) -> None:
    import numpy as np
    import torch

    from elstm.data.sequences import to_sequences

    images = torch.from_numpy(np.stack([image.reshape(-1) for _, image in batch]))
    facts = trained.facts
    with torch.no_grad():
        x = to_sequences(
            images, facts["pixels_per_step"], facts["mean"], facts["std"], facts["permutation"]
        )
        probabilities = trained.model(x).softmax(1)
    for (path, _), p in zip(batch, probabilities.tolist(), strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        # A spreadsheet would take such a name as a formula.
        shown = f"./{path}" if str(path)[0] in "=+-@" else path
        writer.writerow([shown, names[best], f"{p[best]:.6f}", *(f"{value:.6f}" for value in p)])


def read_image(path: Path, rows: int, columns: int, *, invert: bool = False) -> np.ndarray:
    """uint8 (rows, columns), 0 black, 255 white; of an animation the first picture.

    Raises:
        ValueError: why it cannot be read, in one line.
    """
    import warnings

    import numpy as np
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        with warnings.catch_warnings(), _open_plain(path) as file:
            warnings.simplefilter("ignore")  # of damaged metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_formats()) as image:
                image.draft("L", (columns, rows))  # a JPEG is decoded no larger than needed
                grey = _to_grey(image, ground=255 if invert else 0)
            small = grey.resize((columns, rows), Image.Resampling.BOX)  # means over areas
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ValueError(f"it has too many pixels, at most {MAX_PIXELS:,}") from error
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image that can be read ({', '.join(_formats())})") from error
    except ValueError:
        raise
    except Exception as error:  # decoders fail in their own ways on damaged files
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"cannot be read: {reason}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    array = np.asarray(small, dtype=np.uint8)
    return 255 - array if invert else array


def _open_plain(path: Path) -> IO[bytes]:
    """A plain file of at most MAX_BYTES; a pipe or a device might have no end."""
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode) and 0 < info.st_size <= MAX_BYTES:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("not a plain file")
    raise ValueError(f"it is larger than {MAX_BYTES:,} bytes" if info.st_size else "it is empty")


def _formats() -> list[str]:
    """Of FORMATS those that this Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_grey(image: Image.Image, ground: int) -> Image.Image:
    """Mode L; transparent parts show the `ground`.

    In strips, so that besides the decoded image and its grey there is little in memory.
    """
    import numpy as np
    from PIL import Image

    image.load()
    width, height = image.size
    unit = 255.0  # of mode F: white is 1, or else 255
    if image.mode == "F" and max(np.ravel(image.getextrema())) > 1:
        unit = 1.0
    grey = Image.new("L", image.size)
    for top in range(0, height, step := max(1, STRIP // max(width, 1))):
        box = (0, top, width, min(top + step, height))
        grey.paste(_strip_to_grey(image.crop(box), ground, unit), box)
    return grey


def _strip_to_grey(image: Image.Image, ground: int, unit: float) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, also where they come in 32: the upper eight
        levels = np.asarray(image)
        return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":  # from 0 to 1, or to 255
        levels = np.nan_to_num(np.asarray(image)) * unit
        return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layers = image.convert("RGBA").convert("LA")
        flat = Image.new("L", image.size, ground)
        flat.paste(layers.getchannel("L"), mask=layers.getchannel("A"))
        return flat
    return image.convert("L")
