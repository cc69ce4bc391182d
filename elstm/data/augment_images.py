"""Augments pictures by shifts, rotations, crops and mirror images, on the device.

The pictures are changed before they are permuted and cut into steps. torchvision's random
transforms draw one set of parameters a call, which would move all pictures of a batch alike. A call
for each picture takes many times as long. So this module defines a transform of its v2 with
parameters for each picture.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from elstm.data.augment import Augmentation
from elstm.errors import UserError


class PictureOptions(Protocol):
    """Lists the options of PictureAugmentation, as elstm.config.data_options has them."""

    shift: int
    rotation: float
    crop: float
    flip: bool
    fill: int


class AffinePerPicture(v2.Transform):
    """Samples each picture of a batch along a separate affine map, bilinearly.

    It does what v2.functional.affine does, with other parameters for each picture.

    Args:
        maps: float32 (B, 2, 3), from `affine_maps`.
        fill: the value of what lies outside of a picture.
    """

    def __init__(self, maps: Tensor, fill: float = 0.0) -> None:
        super().__init__()
        self.maps, self.fill = maps, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Returns the source position of each pixel in its picture, (B, H, W, 2), from -1 to 1."""
        height, width = flat_inputs[0].shape[-2:]
        device = self.maps.device
        x = torch.arange(width, device=device) + (1 - width) / 2
        y = torch.arange(height, device=device)[:, None] + (1 - height) / 2
        # Not as a matrix product, because a GPU may round the factors of one to ten bits.
        m = self.maps[:, :, :, None, None]
        grid = m[:, :, 0] * x + m[:, :, 1] * y + m[:, :, 2]
        return {"grid": grid.permute(0, 2, 3, 1)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Returns pictures (B, C, H, W) of the type of the input."""
        found = F.grid_sample(inpt.float() - self.fill, params["grid"], align_corners=False)
        found += self.fill
        return found if inpt.is_floating_point() else found.round_().to(inpt.dtype)


def affine_maps(
    size: tuple[int, int], *, angle: Tensor, shift: Tensor, part: Tensor, corner: Tensor,
    flip: Tensor,
) -> Tensor:  # fmt: skip
    """Returns the maps of pictures that are cropped, rotated, shifted and mirrored, in this order.

    Args:
        size: rows and columns.
        angle: clockwise, in degrees (N,).
        shift: to the right and down, in pixels (N, 2).
        part: of the width and of the height that the crop keeps, (N,).
        corner: where the crop lies, from 0 (left, top) to 1, (N, 2).
        flip: whether left and right are swapped, bool (N,).

    Returns:
        (N, 2, 3). The pixel at (x, y) comes from map @ (x, y, 1). Here x and y count pixels from
        the middle, and the source picture reaches from -1 to 1 on both axes.
    """
    height, width = size
    cos, sin = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    # The maps are inverse: mirrored, shifted back, rotated back, enlarged into the crop.
    linear = part[:, None, None] * torch.stack((cos, sin, -sin, cos), 1).view(-1, 2, 2)
    # Crops end at the middle of the outermost pixels, so that none fades into what lies outside.
    offset = (1 - part)[:, None] * (corner - 0.5) * torch.tensor([width - 1, height - 1])
    offset = offset - (linear * shift[:, None, :]).sum(2)
    mirror = torch.where(flip, -1.0, 1.0)[:, None]
    linear = torch.stack((linear[:, :, 0] * mirror, linear[:, :, 1]), 2)
    maps = torch.cat((linear, offset[:, :, None]), 2)
    return maps * torch.tensor([2 / width, 2 / height])[:, None]


class PictureAugmentation(Augmentation):
    """Crops, rotates, shifts and mirrors pictures.

    Args:
        size: rows and columns of the pictures.
        channels: 1 or 3; those of a pixel lie side by side.

    Raises:
        UserError: a shift would leave nothing of a picture.
    """

    def __init__(self, options: PictureOptions, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.options, self.size, self.channels = options, size, channels
        if options.shift >= min(size):
            raise UserError(
                f"data.augment.shift={options.shift} would leave nothing of pictures of "
                f"{size[0]} x {size[1]} pixels: at most {min(size) - 1}"
            )

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        # All are drawn, so that one option does not change the draws of another.
        uniform = torch.rand((count, 7), generator=generator, dtype=torch.float64)
        options = self.options
        steps = 2 * options.shift + 1
        area = 1 - (1 - options.crop) * uniform[:, 3]
        maps = affine_maps(
            self.size,
            angle=options.rotation * (2 * uniform[:, 0] - 1),
            shift=(steps * uniform[:, 1:3]).floor() - options.shift,
            part=area.sqrt(),
            corner=uniform[:, 4:6],
            flip=(uniform[:, 6] < 0.5) & options.flip,
        )
        return {"maps": maps.float()}

    def __call__(self, values: Tensor, rows: Tensor) -> Tensor:
        pictures = values.view(len(values), *self.size, self.channels).permute(0, 3, 1, 2)
        change = AffinePerPicture(self.drawn("maps", rows), self.options.fill)
        return change(pictures).permute(0, 2, 3, 1).reshape(values.shape)

    def describe(self) -> str:
        options, parts = self.options, []
        if options.shift:
            parts.append(f"shifted by up to {options.shift} pixels")
        if options.rotation:
            parts.append(f"rotated by up to {options.rotation:g} degrees")
        if options.crop < 1:
            parts.append(f"cropped to {100 * options.crop:g} to 100 % of their area")
        if options.flip:
            parts.append("mirrored by chance")
        return ", ".join(parts)
