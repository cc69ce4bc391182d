"""data.augment: what it changes, by which draws, and what it leaves alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as F
from own_data import write_arrays
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torchvision.transforms import InterpolationMode

from elstm.config.data_options import (
    ArraysConfig,
    AugmentPicturesConfig,
    AugmentSeriesConfig,
    DigitsConfig,
)
from elstm.data.augment_images import AffinePerPicture, PictureAugmentation, affine_maps
from elstm.data.load import load_data
from elstm.data.sequences import SequenceData, to_sequences
from elstm.errors import UserError

ALL = AugmentPicturesConfig(shift=2, rotation=20, crop=0.6, flip=True, fill=7)
SERIES = AugmentSeriesConfig(jitter=0.5, scale=0.3, time_mask=0.5)


def digits(augment: AugmentPicturesConfig | None = None, **options: Any) -> SequenceData:
    options = {"pixels_per_step": 8, "batch_size": 32, **options}
    return load_data(
        DigitsConfig(name="digits", augment=augment or AugmentPicturesConfig(), **options)
    )


def arrays(augment: AugmentSeriesConfig | None = None, **options: Any) -> SequenceData:
    return load_data(
        ArraysConfig(
            name="waves", path="waves.npz", batch_size=8, augment=augment or AugmentSeriesConfig(),
            **options,
        )
    )  # fmt: skip


@pytest.fixture
def waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("waves.npz"))


def maps(count: int, **changed: Any) -> torch.Tensor:
    """Maps of pictures of 9 x 13 pixels that change nothing else."""
    plain = {
        "angle": torch.zeros(count), "shift": torch.zeros(count, 2), "part": torch.ones(count),
        "corner": torch.full((count, 2), 0.5), "flip": torch.zeros(count, dtype=torch.bool),
    }  # fmt: skip
    return affine_maps((9, 13), **{**plain, **changed})


def pictures(count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 9, 13), generator=draw, dtype=torch.uint8)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Both are rounded to grey levels, on either side of a half."""
    assert found.dtype == torch.uint8
    assert int((found.int() - expected.int()).abs().max()) <= 1


def test_each_picture_is_moved_as_torchvision_moves_one() -> None:
    angles = torch.tensor([30.0, -50.0, 0.0])
    shifts = torch.tensor([[2.0, -3.0], [0.0, 1.0], [-4.0, 0.0]])
    found = AffinePerPicture(maps(3, angle=angles, shift=shifts))(pictures(3))
    for number, picture in enumerate(pictures(3)):
        expected = F.affine(
            picture, angles[number].item(), shifts[number].int().tolist(), 1.0, [0.0, 0.0],
            InterpolationMode.BILINEAR,
        )  # fmt: skip
        assert_near(found[number], expected)
    light = AffinePerPicture(maps(3, angle=angles, shift=shifts), fill=255)(255 - pictures(3))
    assert_near(light, 255 - found)


def test_mirrors_shifts_and_crops_are_exact() -> None:
    flip = torch.tensor([True, False])
    found = AffinePerPicture(maps(2, flip=flip))(pictures(2))
    assert torch.equal(found[0], F.horizontal_flip(pictures(2)[0]))
    assert torch.equal(found[1], pictures(2)[1])
    part, corner = torch.tensor([0.5]), torch.tensor([[1.0, 0.0]])  # 5 x 7 at the top right
    found = AffinePerPicture(maps(1, part=part, corner=corner))(pictures(1))
    crop = pictures(1)[:, :, :5, 6:].float()
    expected = interpolate(crop, (9, 13), mode="bilinear", align_corners=True)
    assert_near(found, expected.round().byte())


def batches(data: SequenceData, size: int, rank: int = 0, ranks: int = 1) -> dict[int, Any]:
    """The augmented inputs of an epoch by row of the training split, unpacked, with lengths."""
    found: dict[int, Any] = {}
    for rows in data.with_batch_size(size).train_rows(3, 2, rank, ranks):
        x, _ = data.train_batch(rows)
        lengths = torch.full((len(rows),), len(x)) if isinstance(x, torch.Tensor) else None
        if isinstance(x, PackedSequence):
            x, lengths = pad_packed_sequence(x)
        assert lengths is not None
        for column, row in enumerate(rows.tolist()):
            found[row] = x[: int(lengths[column]), column]
    return found


@pytest.mark.usefixtures("waves")
@pytest.mark.parametrize("make", [lambda: digits(ALL), lambda: arrays(SERIES)])
def test_draws_are_those_of_seed_epoch_and_sequence(make: Any) -> None:
    """Checks that batch size, number of processes and earlier draws make no difference."""
    one = batches(make(), 6)
    data = make()
    list(data.train_batches(0, 0))
    torch.manual_seed(5)
    several = batches(data, 3, 1, 2) | batches(data, 3, 0, 2)
    shared = one.keys() & several.keys()
    assert len(shared) > 30
    assert all(torch.equal(one[row], several[row]) for row in shared)
    other = {row: x for row, x in batches(make(), 6).items() if not torch.equal(x, one[row])}
    assert not other
    again = [x for x, _ in data.train_batches(3, 3)]
    assert not any(torch.equal(x.data, y.data) for x, (y, _) in zip(
        again, data.train_batches(4, 3), strict=True))  # fmt: skip


@pytest.mark.usefixtures("waves")
@pytest.mark.parametrize(
    ("plain", "augmented"), [(digits, lambda: digits(ALL)), (arrays, lambda: arrays(SERIES))]
)
def test_nothing_but_training_batches_changes(plain: Any, augmented: Any) -> None:
    one, other = plain(), augmented()
    assert not torch.equal(
        next(one.train_batches(0, 0))[0].data, next(other.train_batches(0, 0))[0].data
    )
    for split in ("train", "val", "test"):
        pairs = zip(one.eval_batches(split, 50), other.eval_batches(split, 50), strict=True)
        assert all(torch.equal(a[0].data, b[0].data) for a, b in pairs)
    (x,), (y,) = one.statistics_batches(1, 40, 0, 0), other.statistics_batches(1, 40, 0, 0)
    assert torch.equal(x.data, y.data)
    assert one.facts().keys() == other.facts().keys()


def test_pictures_are_changed_before_their_pixels_are_permuted() -> None:
    data = digits(ALL, permute=True, pixels_per_step=1)
    rows = next(data.train_rows(0, 0))
    x, _ = data.train_batch(rows)
    assert isinstance(data.augmentation, PictureAugmentation)
    changed = data.augmentation(data.train.images[rows], rows)
    assert torch.equal(x, to_sequences(changed, 1, data.mean, data.std, data.permutation))
    assert not torch.equal(changed, data.train.images[rows])


def test_one_option_does_not_change_the_draws_of_another() -> None:
    found = {}
    for name, augment in (
        ("shift", AugmentPicturesConfig(shift=2)),
        ("both", AugmentPicturesConfig(shift=2, flip=True)),
    ):
        data = digits(augment)
        rows = next(data.train_rows(0, 0))
        found[name] = data.augmentation.drawn("maps", rows)
    assert torch.equal(found["shift"][:, 1], found["both"][:, 1])
    offsets = found["shift"][:, :, 2] * 4  # pixels: 8 of them reach from -1 to 1
    assert set(offsets.flatten().round().tolist()) == {-2, -1, 0, 1, 2}
    torch.testing.assert_close(offsets, offsets.round())
    assert (found["both"][:, 0, 0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.2)


@pytest.mark.usefixtures("waves")
@pytest.mark.parametrize("standardize", [True, False])
def test_series_are_scaled_jittered_and_masked_in_units_of_the_training_split(
    standardize: bool,
) -> None:
    plain = arrays(standardize=standardize)
    steps = torch.cat([v[:n] for v, n in zip(plain.train.values, plain.train.lengths, strict=True)])
    mean, std = steps.mean(0), steps.std(0, correction=0)
    before = {row: plain.example(plain.train, row) for row in range(len(plain.train))}

    def changed(**options: float) -> dict[int, torch.Tensor]:
        found = batches(arrays(AugmentSeriesConfig(**options), standardize=standardize), 2)
        assert all(len(x) == len(before[row]) for row, x in found.items())  # padding stays out
        return found

    noise = [(x - before[row]) / std for row, x in changed(jitter=0.5).items()]
    assert torch.cat(noise).std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.15)
    factors = []
    for row, x in changed(scale=0.3).items():
        factor = (x - mean) / (before[row] - mean)
        torch.testing.assert_close(factor, factor[:1, :1].expand_as(factor), rtol=1e-3, atol=1e-3)
        factors.append(float(factor[0, 0]))
    assert 0.7 <= min(factors) < 0.85 < 1.15 < max(factors) <= 1.3
    widths = set()
    for row, x in changed(time_mask=0.5).items():
        masked = ((x - mean).abs() < 1e-6).all(1)
        assert torch.equal(x[~masked], before[row][~masked])
        (first, *_), (*_, last) = [masked.nonzero().flatten().tolist() or [0]] * 2
        assert masked[first:last].all()
        assert int(masked.sum()) <= len(x) // 2
        widths.add(int(masked.sum()))
    assert {0, 1, 2, 3, 4} <= widths


@pytest.mark.usefixtures("waves")
@pytest.mark.parametrize("make", [lambda: digits(ALL), lambda: arrays(SERIES)])
def test_draws_keep_their_place_for_cuda_graphs(make: Any) -> None:
    data = make()
    places = set()
    for epoch in range(3):
        next(data.train_rows(0, epoch))
        places.add(tuple(draws.data_ptr() for draws in data.augmentation._draws.values()))
    assert len(places) == 1


def test_a_shift_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="would leave nothing of pictures of 8 x 8 pixels: at most"):
        digits(AugmentPicturesConfig(shift=8))


def test_all_off_is_none() -> None:
    data = digits()
    assert data.augmentation is None
    augmented = digits(AugmentPicturesConfig(rotation=1))
    assert augmented.augmentation is not None
    assert dataclasses.replace(augmented, augmentation=None).augmentation is None
