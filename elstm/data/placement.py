"""Converts a picture to the form of the images that a model was trained on.

MNIST's digits are light on dark. Each is cropped, scaled with its aspect kept into a box of 20 x 20
and placed in 28 x 28 pixels so that its centre of mass lies in the middle (LeCun et al. 1998,
"Gradient-based learning applied to document recognition").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elstm.data.image_files import Note, read_colours, read_full, scaled

BOX = 20 / 28  # MNIST's box in its image
WORKING = 512  # pixels a side of the picture in which the content is located
NO_CONTRAST = 16  # grey levels
UNEVEN = 0.4  # of the frame's pixels far from one colour: light falls unevenly
STROKE = 1.8  # pixels of 28: strokes thinner than MNIST's thinnest are widened
CLEAR = 0.1  # of the contrast: so far beyond the middle a vote on the ground counts
SPECK = 0.02  # a part of so much of the largest part's area is noise

INVERTED = "is dark on light and was inverted (--invert no keeps it)"
INVERTED_TO_DARK = "is light on dark and was inverted (--invert no keeps it)"
UNCLEAR = "may be dark on light or light on dark: it was kept as it is (--invert yes inverts it)"
SCALED = "was scaled in full (--fit finds the content and places it as in the training images)"
FLAT = "has no contrast, so its prediction is meaningless"


def read_image(
    path: Path,
    rows: int,
    columns: int,
    *,
    channels: int = 1,
    exact: bool = False,
    eight_bits: bool = False,
    invert: bool | None = False,
    fit: bool = False,
    box: float = BOX,
    dark_ground: bool = True,
    note: Note = lambda text: None,
) -> np.ndarray:
    """Reads a picture as uint8 (rows, columns), or (rows, columns, 3) in colour.

    Args:
        path: an image file (elstm.data.image_files).
        rows: of the result.
        columns: of the result.
        channels: 1 for grey, where 0 is black, or 3 for red, green and blue; `fit` gives grey.
        exact: decodes all pixels of a JPEG before it is scaled, which takes longer.
        eight_bits: see elstm.data.image_files.read_full; not with `fit`.
        invert: None: where light and dark are the other way round than in training.
        fit: places the content as MNIST does, instead of scaling the full picture.
        box: the longer side of the content, as a part of the result's, with `fit`.
        dark_ground: the model was trained on light contents on a dark ground.
        note: see Note.

    Raises:
        ValueError: it cannot be read; the message is the reason in one line.
    """
    ground = None if invert is None else 255 * (invert == dark_ground)
    if fit:
        colours = np.asarray(read_colours(path, WORKING, ground, note))
        ink, light_ground = _ink(colours, None if invert is None else invert == dark_ground)
        if ink is None:
            note(FLAT)
            return np.full((rows, columns), 0 if dark_ground else 255, np.uint8)
        if invert is None and light_ground == dark_ground:
            note(INVERTED if dark_ground else INVERTED_TO_DARK)
        placed = _placed(ink, rows, columns, box)
        return placed if dark_ground else 255 - placed
    smallest = None if exact else max(rows, columns)
    full = read_full(
        path, "L" if channels == 1 else "RGB", smallest, ground, note, eight_bits=eight_bits
    )
    small = scaled(full, rows, columns)
    is_light = has_light_ground(small if channels == 1 else small.mean(2))
    if int(small.max()) - int(small.min()) < NO_CONTRAST:
        note(FLAT)
    else:
        if invert is None and is_light is None:
            note(UNCLEAR)
        if not exact and full.size != (columns, rows):
            note(SCALED)
    if invert is None and is_light == dark_ground:
        note(INVERTED if dark_ground else INVERTED_TO_DARK)
        invert = True
    return 255 - small if invert else small


def read_as_trained(
    path: Path,
    facts: Mapping[str, Any],
    box: float | None,
    *,
    eight_bits: bool = False,
    invert: bool | None = None,
    fit: bool = False,
    note: Note = lambda text: None,
) -> np.ndarray:
    """Reads a picture in the form of the images that a run was trained on; see `read_image`.

    Args:
        facts: of the run's data.
        box: of its published set (`DataSet.box`); None: pictures without a ground, of which none
            is inverted by itself.
    """
    rows, columns = facts["image_size"]
    full = box is None
    return read_image(
        path, rows, columns, channels=facts.get("channels", 1), exact=full, eight_bits=eight_bits,
        # A light frame is not informative in photographs and the like.
        invert=(invert or False) if full else invert, fit=fit, box=box or 1.0,
        dark_ground=full or facts["mean"] < 0.5, note=note,
    )  # fmt: skip


def has_light_ground(image: np.ndarray) -> bool | None:
    """Returns whether a picture is dark on light; None where it is unclear.

    Its frame, its corners and the full picture vote, and two votes have to be clear. The result was
    right for all images that were checked, and for their negatives: the 10,000 test images and
    20,000 training images of MNIST and of Fashion-MNIST, and the 1,797 digits of scikit-learn.

    Args:
        image: (H, W), grey levels.
    """
    image = image.astype(np.float32)
    low, high = float(image.min()), float(image.max())
    if high - low < NO_CONTRAST:
        return None
    corner = max(min(image.shape) // 10, 1)
    votes = [
        (float(part.mean()) - low) / (high - low) - 0.5
        for part in (_frame(image, 1), _corners(image, corner), image)
    ]
    if sum(vote > CLEAR for vote in votes) >= 2:
        return True
    return False if sum(vote < -CLEAR for vote in votes) >= 2 else None


def _frame(image: np.ndarray, width: int) -> np.ndarray:
    """Returns the pixels along the four sides: (N, ...)."""
    inside = np.zeros(image.shape[:2], bool)
    inside[width:-width, width:-width] = True
    return image[~inside]


def _corners(image: np.ndarray, side: int) -> np.ndarray:
    columns = np.concatenate([image[:, :side], image[:, -side:]], axis=1)
    return np.concatenate([columns[:side], columns[-side:]])


def _ink(colours: np.ndarray, light_ground: bool | None) -> tuple[np.ndarray | None, bool]:
    """Finds the strokes by how much their colour differs from the ground's.

    Args:
        colours: (H, W, 3) uint8.
        light_ground: whether the ground is light; None: unknown.

    Returns:
        The strokes, 0 to 1 (H, W), or None where there is no contrast; and whether the ground is
        lighter than they are.
    """
    picture = colours.astype(np.float32)
    ground = _ground(picture, light_ground)
    if light_ground is None:
        difference = np.abs(picture - ground).max(2)
    else:
        difference = (ground - picture if light_ground else picture - ground).max(2).clip(0)
    strongest = float(np.quantile(difference, 0.999))
    if strongest < NO_CONTRAST:
        return None, False
    threshold = max(_otsu(difference), 0.25 * strongest)
    mask = _without_specks(difference > threshold)
    # With the soft edges of the strokes.
    ink = difference * _widened(mask, max(2, max(mask.shape) // 100))
    level = float(np.median(difference[mask]))
    low = min(0.3 * level, threshold)  # noise of the ground
    if light_ground is None:
        light_ground = bool((picture - ground)[mask].mean() < 0)
    return ((ink - low) / (level - low)).clip(0, 1), light_ground


def _ground(picture: np.ndarray, light_ground: bool | None) -> np.ndarray:
    """Returns the ground's colour: (3,), or (H, W, 3) where light falls unevenly on the page."""
    height, width = picture.shape[:2]
    edge = max(1, min(height, width) // 40)
    frame = _frame(picture, edge)
    grey = frame.mean(1)
    middle = (float(grey.min()) + float(grey.max())) / 2
    if light_ground is None:
        light_ground = has_light_ground(picture.mean(2))
    side = frame
    if light_ground is not None:
        side = frame[grey >= middle] if light_ground else frame[grey <= middle]
    ground: np.ndarray = np.median(side, axis=0)
    if _share_far(frame, ground) < UNEVEN:
        return ground
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * y, x**2, y**2], axis=2)
    shade = _shade(_frame(terms, edge), frame)
    if _share_far(frame, _frame(terms, edge) @ shade) > UNEVEN / 2:
        return ground
    near = np.abs(picture - terms @ shade).max(2) < NO_CONTRAST
    return terms @ _shade(terms[near][::7], picture[near][::7])


def _share_far(frame: np.ndarray, ground: np.ndarray) -> float:
    return float((np.abs(frame - ground).max(1) > NO_CONTRAST).mean())


def _shade(terms: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Fits colours by polynomials of the position; strokes, which are outliers, are left out.

    Args:
        terms: (N, 6).
        colours: (N, 3).

    Returns:
        The coefficients, (6, 3).
    """
    kept = np.ones(len(terms), bool)
    for _ in range(5):
        shade: np.ndarray = np.linalg.lstsq(terms[kept], colours[kept], rcond=None)[0]
        far = np.abs(colours - terms @ shade).max(1)
        kept = far <= max(3 * float(np.median(far)), 4)
    return shade


def _otsu(difference: np.ndarray) -> float:
    """Returns the threshold that separates two classes of grey levels best (Otsu 1979)."""
    counts, edges = np.histogram(difference, bins=64)
    centres = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * centres).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = sums / below - (sums[-1] - sums) / above
    return float(edges[1:][np.nanargmax(np.nan_to_num(below * above * apart**2, nan=0.0))])


def _without_specks(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage  # a tenth of a second, for --fit alone

    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    return (areas >= SPECK * areas.max())[parts] & mask


def _widened(ink: np.ndarray, by: int) -> np.ndarray:
    """Widens strokes by `by` pixels on each side."""
    from scipy import ndimage

    wider: np.ndarray = ndimage.maximum_filter(ink, 2 * by + 1)
    return wider


def _placed(ink: np.ndarray, rows: int, columns: int, box: float) -> np.ndarray:
    """Crops, scales and centres strokes: (H, W), 0 to 1 -> uint8 (rows, columns)."""
    top, bottom, left, right = _bounds(ink)
    scale = min(box * rows / (bottom - top), box * columns / (right - left))
    widen = math.ceil((STROKE * rows / 28 / scale - _stroke_width(ink)) / 2)
    if widen > 0:
        ink = _widened(np.pad(ink, widen), widen)
        top, bottom, left, right = _bounds(ink)
        scale = min(box * rows / (bottom - top), box * columns / (right - left))
    height = max(1, round(scale * (bottom - top)))
    width = max(1, round(scale * (right - left)))
    crop = Image.fromarray((255 * ink[top:bottom, left:right]).astype(np.uint8))
    small = np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    small = small * (255 / max(float(small.max()), 1.0))
    mass = max(float(small.sum()), 1.0)
    middle_row = float((small.sum(1) * np.arange(height)).sum()) / mass
    middle_column = float((small.sum(0) * np.arange(width)).sum()) / mass
    first = min(max(round(rows / 2 - middle_row), 0), rows - height)
    left = min(max(round(columns / 2 - middle_column), 0), columns - width)
    placed = np.zeros((rows, columns), np.uint8)
    placed[first : first + height, left : left + width] = small.round()
    return placed


def _bounds(ink: np.ndarray) -> tuple[int, int, int, int]:
    """Returns top, bottom, left and right of the strokes."""
    lines, across = (ink > 0.3).any(1).nonzero()[0], (ink > 0.3).any(0).nonzero()[0]
    return int(lines[0]), int(lines[-1]) + 1, int(across[0]), int(across[-1]) + 1


def _stroke_width(ink: np.ndarray) -> float:
    """Returns the mean width of the strokes in pixels, from their area and their outline."""
    from scipy import ndimage

    mask = np.pad(ink > 0.3, 1)
    outline = int(mask.sum()) - int(ndimage.binary_erosion(mask).sum())
    return 2 * float(mask.sum()) / max(outline, 1)
