"""Renders digits as people photograph, scan and draw them: each kind is a function of its shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
    "DejaVuSerif-Bold",
)  # fmt: skip
GRAIN = np.random.default_rng(0).normal(0, 6, (400, 400, 3))
Shape = Image.Image  # mode L, tightly cropped: 255 on the strokes
Kind = Callable[[Shape], Image.Image]


def font_digits(size: int = 200) -> list[tuple[int, Shape]]:
    """Returns 60 digits, in the fonts that matplotlib brings along."""
    found = []
    for digit in range(10):
        for name in FONTS:
            path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
            font = ImageFont.truetype(str(path), round(1.37 * size))
            image = Image.new("L", (2 * size, 2 * size))
            ImageDraw.Draw(image).text((size // 2, size // 4), str(digit), font=font, fill=255)
            found.append((digit, image.crop(image.getbbox())))
    return found


def page(
    size: tuple[int, int], place: tuple[int, int], paper: object = "white", ink: object = "black"
) -> Kind:
    def draw(shape: Shape) -> Image.Image:
        picture = Image.new("RGB", size, paper)
        picture.paste(Image.new("RGB", shape.size, ink), place, shape)
        return picture

    return draw


def tight(ground: int) -> Kind:
    return lambda shape: shape.point(lambda level: abs(ground - level))


def by_exif(orientation: int, stored: Image.Transpose) -> Kind:
    """Returns pictures that lie on their side in the file, as those of a telephone."""

    def draw(shape: Shape) -> Image.Image:
        picture = page((600, 800), (300, 120))(shape).transpose(stored)
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.info["exif"] = exif.tobytes()
        return picture

    return draw


def photograph(shape: Shape) -> Image.Image:
    """Returns a picture with uneven light, grain and a soft focus."""
    y, x = np.mgrid[:400, :400] / 400
    paper = (100 + 110 * x + 30 * y - 40 * (x - 0.5) * (y - 0.4))[..., None] * (1, 0.97, 0.9)
    ink = np.zeros((400, 400, 1))
    ink[150 : 150 + shape.height, 90 : 90 + shape.width, 0] = np.asarray(shape) / 255
    levels = (paper * (1 - 0.75 * ink) + GRAIN).clip(0, 255)
    return Image.fromarray(levels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))


def on_nothing(level: int) -> Kind:
    def draw(shape: Shape) -> Image.Image:
        alpha = Image.new("L", (400, 400))
        alpha.paste(shape, (60, 150))
        picture = Image.new("LA", (400, 400), (level, 0))
        picture.putalpha(alpha)
        return picture

    return draw


def sixteen_bits(shape: Shape) -> Image.Image:
    """Levels to 255 in 16 bits."""
    grey = page((600, 800), (300, 120))(shape).convert("L")
    return Image.fromarray(np.asarray(grey).astype(np.uint16))


def lined(shape: Shape) -> Image.Image:
    picture = page((600, 800), (300, 120), "white", (20, 30, 90))(shape)
    draw = ImageDraw.Draw(picture)
    for y in range(30, 800, 40):
        draw.line([(0, y), (600, y)], fill=(200, 215, 240))
    return picture


def pen(shape: Shape) -> Image.Image:
    """Returns the inner part of the strokes, about a third of their width."""
    edge = shape.filter(ImageFilter.MinFilter(9))
    return page((600, 600), (100, 100))(edge)


KINDS: dict[str, Kind] = {
    "tight crop": tight(255),
    "tight crop, light on dark": tight(0),
    "a third of the page": page((600, 800), (300, 120)),
    "a third of the page, light on dark": page((600, 800), (300, 120), "black", "white"),
    "small in a corner": page((1500, 1200), (1200, 60)),
    "blue ink": page((400, 400), (60, 150), "white", (20, 60, 200)),
    "red ink": page((400, 400), (60, 150), "white", (220, 30, 30)),
    "yellow ink": page((400, 400), (60, 150), "white", (250, 210, 20)),
    "pencil": page((400, 400), (60, 150), (235, 232, 225), (165, 165, 170)),
    "green on black": page((400, 400), (60, 150), "black", (20, 180, 40)),
    "red on blue": page((400, 400), (60, 150), (60, 80, 180), (230, 40, 40)),
    "upside down by EXIF": by_exif(3, Image.Transpose.ROTATE_180),
    "turned right by EXIF": by_exif(6, Image.Transpose.ROTATE_90),
    "turned left by EXIF": by_exif(8, Image.Transpose.ROTATE_270),
    "mirrored by EXIF": by_exif(5, Image.Transpose.TRANSPOSE),
    "photograph": photograph,
    "lined paper": lined,
    "thin strokes": pen,
    "black on nothing": on_nothing(0),
    "white on nothing": on_nothing(255),
    "levels to 255 in 16 bits": sixteen_bits,
}


FAST = ("tight crop", "red on blue", "turned right by EXIF")


def write(kind: str, digits: list[tuple[int, Shape]], folder: Path) -> list[Path]:
    """Writes the pictures of a kind; returns their paths."""
    paths = []
    for number, (_, shape) in enumerate(digits):
        picture = KINDS[kind](shape)
        jpeg = "EXIF" in kind or kind == "photograph"
        path = folder / f"{number:02}.{'jpg' if jpeg else 'png'}"
        exif = {"exif": picture.info["exif"]} if "exif" in picture.info else {}
        picture.save(path, **exif)
        paths.append(path)
    return paths
