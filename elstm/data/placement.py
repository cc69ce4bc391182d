"""Brings a picture into the form of the images that a model was trained on.

MNIST's digits are light on dark. Each is cropped, scaled with its aspect kept into a box of 20 x 20
and placed in 28 x 28 pixels so that its centre of mass lies in the middle (LeCun et al. 1998,
"Gradient-based learning applied to document recognition").
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from elstm.data.image_files import Note, read_colours, read_grey

BOX = 20 / 28  # MNIST's box in its image
WORKING = 512  # pixels a side, at which contents are looked for
NO_CONTRAST = 16  # grey levels
CLEAR = 0.1  # of the contrast: so far beyond the middle a vote on the ground counts
SPECK = 0.02  # a part of so much of the largest part's area is noise

INVERTED = "is dark on light and was inverted (--invert no keeps it)"
INVERTED_TO_DARK = "is light on dark and was inverted (--invert no keeps it)"
UNCLEAR = "may be dark on light or light on dark: it was kept as it is (--invert yes inverts it)"
FLAT = "has no contrast: its prediction means nothing"


def read_image(
    path: Path,
    rows: int,
    columns: int,
    *,
    invert: bool | None = False,
    fit: bool = False,
    dark_ground: bool = True,
    note: Note = lambda text: None,
) -> np.ndarray:
    """Reads a picture as uint8 (rows, columns), 0 black, 255 white.

    Args:
        path: an image file (elstm.data.image_files).
        rows: of the result.
        columns: of the result.
        invert: None: where light and dark are the other way round than in training.
        fit: places the content as MNIST does, instead of scaling the full picture.
        dark_ground: the model was trained on light contents on a dark ground.
        note: see Note.

    Raises:
        ValueError: why it cannot be read, in one line.
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
        placed = _placed(ink, rows, columns)
        return placed if dark_ground else 255 - placed
    grey = read_grey(path, max(rows, columns), ground, note)
    small = np.asarray(grey.resize((columns, rows), Image.Resampling.BOX))  # means over areas
    is_light = has_light_ground(small)
    if int(small.max()) - int(small.min()) < NO_CONTRAST:
        note(FLAT)
    elif invert is None and is_light is None:
        note(UNCLEAR)
    if invert is None and is_light == dark_ground:
        note(INVERTED if dark_ground else INVERTED_TO_DARK)
        invert = True
    return 255 - small if invert else small


def has_light_ground(image: np.ndarray) -> bool | None:
    """Returns whether a picture is dark on light; None where that cannot be told.

    Its frame, its corners and all of it vote; two have to be clear. On the 140,000 images of MNIST
    and Fashion-MNIST, and on their negatives, it is always right.

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
        light_ground: what is known of the ground.

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
    ink = difference * _grown(mask, max(2, max(mask.shape) // 100))
    level = float(np.median(difference[mask]))
    low = min(0.3 * level, threshold)  # noise of the ground
    if light_ground is None:
        light_ground = bool(picture[mask].mean() < np.mean(ground))
    return ((ink - low) / (level - low)).clip(0, 1), light_ground


def _ground(picture: np.ndarray, light_ground: bool | None) -> np.ndarray:
    """Returns the ground's colour, (3,)."""
    frame = _frame(picture, max(1, min(picture.shape[:2]) // 40))
    if light_ground is None:
        grey = picture.mean(2)
        light_ground = has_light_ground(grey)
    if light_ground is None:
        return np.median(frame, axis=0)
    grey = frame.mean(1)
    middle = (float(grey.min()) + float(grey.max())) / 2
    side = frame[grey >= middle] if light_ground else frame[grey <= middle]
    return np.median(side, axis=0)


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


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Includes the soft edges of the strokes."""
    from scipy import ndimage

    return ndimage.maximum_filter(mask, 2 * by + 1)


def _placed(ink: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Crops, scales and centres strokes: (H, W), 0 to 1 -> uint8 (rows, columns)."""
    lines, across = (ink > 0.3).any(1).nonzero()[0], (ink > 0.3).any(0).nonzero()[0]
    top, bottom = int(lines[0]), int(lines[-1]) + 1
    left, right = int(across[0]), int(across[-1]) + 1
    scale = min(BOX * rows / (bottom - top), BOX * columns / (right - left))
    height = max(1, round(scale * (bottom - top)))
    width = max(1, round(scale * (right - left)))
    crop = Image.fromarray((255 * ink[top:bottom, left:right]).astype(np.uint8))
    small = np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    small = small * (255 / max(float(small.max()), 1.0))  # thin strokes become faint
    mass = max(float(small.sum()), 1.0)
    middle_row = float((small.sum(1) * np.arange(height)).sum()) / mass
    middle_column = float((small.sum(0) * np.arange(width)).sum()) / mass
    first = min(max(round(rows / 2 - middle_row), 0), rows - height)
    left = min(max(round(columns / 2 - middle_column), 0), columns - width)
    placed = np.zeros((rows, columns), np.uint8)
    placed[first : first + height, left : left + width] = small.round()
    return placed
