"""Decodes image files of common formats, in any mode and orientation, in bounded memory.

One image at a time is decoded, and none of more than MAX_PIXELS is, so that memory is bounded
whatever size the files declare.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image

MAX_PIXELS = 50_000_000  # 200 MB decoded at 4 bytes a pixel
MAX_BYTES = 200_000_000  # of a file: such an image without compression
STRIP = 1_000_000  # pixels converted at once
# Common formats. Pillow reads forty more, some through other programs (EPS, WMF).
FORMATS = (
    "PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "MPO", "DIB", "ICO", "PCX",
    "PPM", "SGI", "TGA",
)  # fmt: skip
BITS = (8, 10, 12, 14, 16)  # of the grey levels of cameras and scanners
# The operation by EXIF orientation that turns the stored picture upright.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Note = Callable[[str], None]  # receives a message for the user about a picture


def endings() -> set[str]:
    """Returns the file name endings of FORMATS: ".png", ..."""
    known = formats()
    return {ending for ending, name in Image.registered_extensions().items() if name in known}


def formats() -> list[str]:
    """Returns the FORMATS that the installed Pillow supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def read_full(
    path: Path, mode: str, smallest: int | None, ground: int | None, note: Note,
    *, eight_bits: bool = False,
) -> Image.Image:  # fmt: skip
    """Decodes a picture at its full size, upright.

    Args:
        path: the file; of an animation the first frame is taken.
        mode: L for grey, or RGB.
        smallest: a JPEG may be decoded smaller, down to this width and height; None: it may not.
        ground: the grey of transparent parts; None: black below light strokes, else white.
        note: see Note.
        eight_bits: refuses grey levels of more than 8 bits: how they are scaled depends on the
            picture, so that pictures of one set would differ.

    Raises:
        ValueError: it cannot be read; the message is the reason in one line.
    """
    with _decoded(path, mode, smallest, note) as (image, turn):
        if eight_bits and _is_deep(image):
            raise ValueError(
                f"it has grey levels of 16 bits or more ({image.mode}): save it with 8 bits a "
                "channel"
            )
        full = Image.new(mode, image.size)
        for box, strip in _strips(image, ground, note):
            full.paste(strip.convert(mode), box)
    # The decoded image is freed by now.
    return full if turn is None else full.transpose(turn)


def scaled(image: Image.Image, rows: int, columns: int) -> np.ndarray:
    """Returns a picture in another size, each pixel the mean of an area: (rows, columns, ...)."""
    return np.asarray(image.resize((columns, rows), Image.Resampling.BOX))


def read_colours(path: Path, largest: int, ground: int | None, note: Note) -> Image.Image:
    """Decodes a picture to RGB, upright, reduced to at most `largest` pixels a side.

    The other arguments and errors are those of `read_full`.
    """
    with _decoded(path, "RGB", largest, note) as (image, turn):
        factor = -(-max(image.size) // largest)
        width, height = (-(-side // factor) for side in image.size)
        small = Image.new("RGB", (width, height))
        for (_, top, _, _), strip in _strips(image, ground, note, multiple=factor):
            small.paste(strip.convert("RGB").reduce(factor), (0, top // factor))
    return small if turn is None else small.transpose(turn)


@contextmanager
def _decoded(
    path: Path, mode: str, smallest: int | None, note: Note
) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """Opens and decodes a file; returns the image and the operation that turns it upright.

    Any exception of a decoder becomes a ValueError of one line.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        with warnings.catch_warnings(), _open_plain(path) as file:
            warnings.simplefilter("ignore")  # of damaged metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats()) as image:
                if smallest is not None:
                    image.draft(mode, (smallest, smallest))
                image.load()
                # After load: PNG may have EXIF at its end, and TIFF is turned while it is decoded.
                turn = _turn(image, note)
                yield image, turn
                if _has_more_frames(image):
                    note("holds several pictures (an animation or pages): the first was taken")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ValueError(f"it has too many pixels, at most {MAX_PIXELS:,}") from error
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image that can be read ({', '.join(formats())})") from error
    except ValueError as error:
        raise ValueError(_first_line(error)) from error
    except Exception as error:  # decoders fail in their own ways on damaged files
        raise ValueError(f"cannot be read: {_first_line(error)}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _first_line(error: Exception) -> str:
    """Returns the first line of an error, without the file name that the system adds."""
    reason = getattr(error, "strerror", None) or str(error)
    return reason.strip().partition("\n")[0] or type(error).__name__


def _open_plain(path: Path) -> IO[bytes]:
    """Opens a plain file of at most MAX_BYTES; a pipe or a device might have no end."""
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode) and 0 < info.st_size <= MAX_BYTES:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("not a plain file")
    raise ValueError(f"it is larger than {MAX_BYTES:,} bytes" if info.st_size else "it is empty")


def _turn(image: Image.Image, note: Note) -> Image.Transpose | None:
    """Returns the operation that turns the picture upright by its EXIF, TIFF or XMP orientation."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of damaged metadata: SyntaxError, struct.error, ...
        note("has damaged metadata: its orientation is taken as it is stored")
        return None
    return ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame
        return False


def _strips(
    image: Image.Image, ground: int | None, note: Note, *, multiple: int = 1
) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    """Yields (box, strip) from top to bottom, each strip as L or RGB without transparency.

    Little memory is used besides the decoded image and the result.

    Args:
        multiple: the height of all strips but the last is a multiple of it.
    """
    scale = _grey_scale(image, note)
    if ground is None:
        ground = 0 if _ink_is_light(image) else 255
    for box in _boxes(image, multiple):
        strip = image.crop(box)
        if scale is not None:
            yield box, scale(strip, ground)
        elif _is_transparent(strip):
            layers = _with_alpha(strip)
            flat = Image.new("RGB", strip.size, (ground,) * 3)
            flat.paste(layers.convert("RGB"), mask=layers.getchannel("A"))
            yield box, flat
        else:
            yield box, strip


def _boxes(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, int, int, int]]:
    width, height = image.size
    step = max(1, STRIP // max(width, 1) // multiple) * multiple
    for top in range(0, height, step):
        yield 0, top, width, min(top + step, height)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode == "La" or image.has_transparency_data


def _with_alpha(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _ink_is_light(image: Image.Image) -> bool:
    """Returns whether the opaque parts of a picture are light on average."""
    if _is_deep(image) or not _is_transparent(image):
        return True  # there is no ground to choose
    light = weight = 0.0
    for box in _boxes(image):
        layers = _with_alpha(image.crop(box)).convert("LA")
        alpha = np.asarray(layers.getchannel("A"), dtype=np.float32)
        light += float((np.asarray(layers.getchannel("L"), dtype=np.float32) * alpha).sum())
        weight += float(alpha.sum())
    return light >= 127.5 * weight


def _is_deep(image: Image.Image) -> bool:
    """Returns whether a picture has grey levels of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _grey_scale(image: Image.Image, note: Note) -> Callable[[Image.Image, int], Image.Image] | None:
    """Returns a function that converts grey levels of more than 8 bits to 8; None for other modes.

    The file does not record which level is white, so the largest level in the picture decides.
    """
    if not _is_deep(image):
        return None
    low, high, finite = _extremes(image)
    if image.mode == "F":
        return _float_scale(low, high, finite, note)
    if low < 0:
        raise ValueError("its grey levels are below 0 or above 2,147,483,647: save it in 16 bits")
    largest = int(high).bit_length()
    bits = next((bits for bits in BITS if largest <= bits), largest)
    if bits != 16 and high > 0:
        note(f"has grey levels that fit in {bits} bits, though stored in more: taken as {bits}-bit")
    transparent = image.info.get("transparency")  # one level, in PNG

    def scaled(strip: Image.Image, ground: int) -> Image.Image:
        levels = np.asarray(strip)
        grey = (levels >> (bits - 8)).astype(np.uint8)
        if isinstance(transparent, int):
            grey[levels == transparent] = ground
        return Image.fromarray(grey)

    return scaled


def _float_scale(
    low: float, high: float, finite: bool, note: Note
) -> Callable[[Image.Image, int], Image.Image]:
    """Returns a function that converts floating-point grey levels to 8 bits."""
    if not finite:
        note("has pixels that are NaN or infinite: taken as black")
    if low < -0.01 * max(high, 0.0) or high > 65535:
        note(f"has grey levels from {low:g} to {high:g}: taken as from black to white")
    else:
        low = 0.0
        if high > 255:
            bits = next(bits for bits in BITS if high < 2**bits)
            note(f"has grey levels up to {high:g}: taken as {bits}-bit")
            high = 2.0**bits - 1
        else:
            high = 255.0 if high > 1 else 1.0
    span = max(high - low, 1e-30)

    def scaled(strip: Image.Image, ground: int) -> Image.Image:
        levels = np.asarray(strip, dtype=np.float64)
        levels = np.where(np.isfinite(levels), (levels - low) / span, 0.0)
        return Image.fromarray((255 * levels.clip(0, 1)).round().astype(np.uint8))

    return scaled


def _extremes(image: Image.Image) -> tuple[float, float, bool]:
    """Returns the least and the largest finite level, and whether all levels are finite."""
    low, high, finite = float("inf"), float("-inf"), True
    for box in _boxes(image):
        levels = np.asarray(image.crop(box))
        good = np.isfinite(levels)
        if not good.all():
            finite, levels = False, levels[good]
        if levels.size:
            low, high = min(low, float(levels.min())), max(high, float(levels.max()))
    if low > high:
        raise ValueError("none of its pixels is a finite number")
    return low, high, finite
