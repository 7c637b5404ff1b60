"""Augmented pictures: what each change does, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmtransfer.data.augment import AugmentImage
from mmtransfer.encoders.decoding import decode_image

STILL = {"area": 1.0, "colour": 0.0, "mirror": 0.0}


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth, and different at every place, so that changes show and resizing keeps it."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, x * y], -1) * 255).astype(np.uint8))


def test_a_picture_without_any_change_is_itself():
    changed = AugmentImage(**STILL)(photo(), draws())
    assert np.array_equal(np.asarray(changed), np.asarray(photo()))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (250, 20), (1, 1)])
@pytest.mark.parametrize("area", [0.05, 0.3, 1.0])
def test_a_crop_of_any_picture_has_pixels_and_keeps_its_share(area, size):
    for seed in range(50):
        w, h = AugmentImage(**STILL | {"area": area})(photo(*size), draws(seed)).size
        assert 1 <= w <= size[0]
        assert 1 <= h <= size[1]
        assert (w + 0.5) * (h + 0.5) >= area * size[0] * size[1]


@pytest.mark.parametrize("area", [0.2, 0.7])
def test_a_crop_keeps_its_share_and_is_not_resized(area):
    crop = AugmentImage(**STILL | {"area": area})
    whole = np.asarray(photo())
    shares = []
    for seed in range(50):
        part = np.asarray(crop(photo(), draws(seed)))
        shares.append(part.shape[0] * part.shape[1] / (whole.shape[0] * whole.shape[1]))
        # Its first pixel tells where it is from: no two places have one colour.
        left = int(np.flatnonzero(whole[0, :, 0] == part[0, 0, 0])[0])
        top = int(np.flatnonzero(whole[:, 0, 1] == part[0, 0, 1])[0])
        h, w = part.shape[:2]
        assert np.array_equal(whole[top : top + h, left : left + w], part)
    assert min(shares) >= area - 0.03
    assert min(shares) < (1 + area) / 2 < max(shares)


def test_a_mirror_always_or_never():
    mirrored = AugmentImage(**STILL | {"mirror": 1.0})(photo(), draws())
    assert np.array_equal(np.asarray(mirrored), np.asarray(photo())[:, ::-1])


def test_colours_change_and_places_stay():
    for seed in range(20):
        changed = np.asarray(AugmentImage(**STILL | {"colour": 0.3})(photo(), draws(seed)), float)
        assert changed.shape == (64, 96, 3)
        assert not np.array_equal(changed, np.asarray(photo()))
        # Brightness still rises where it rose: a step along both ramps.
        grey = changed.mean(-1)
        assert (np.diff(grey, axis=1) >= -3).all()
    plain = np.asarray(photo(), float).mean()
    means = [
        np.asarray(AugmentImage(**STILL | {"colour": 0.3})(photo(), draws(s))).mean()
        for s in range(50)
    ]
    assert 0.65 * plain < min(means) < 0.85 * plain
    assert 1.1 * plain < max(means) < 1.35 * plain


def test_a_hue_turns_colours_and_keeps_gray():
    gray = Image.new("RGB", (8, 8), (90, 90, 90))
    change = AugmentImage(**STILL | {"hue": 0.5})
    assert np.array_equal(np.asarray(change(gray, draws())), np.asarray(gray))
    red = np.asarray(change(Image.new("RGB", (8, 8), (200, 0, 0)), draws(1)))
    assert not np.array_equal(red[0, 0], (200, 0, 0))


@pytest.mark.parametrize("name", ["rand_augment", "trivial_augment"])
def test_random_operations_keep_size_and_mode(name):
    changed = [AugmentImage(**STILL | {name: True})(photo(), draws(s)) for s in range(40)]
    assert {(c.size, c.mode) for c in changed} == {((96, 64), "RGB")}
    assert len({c.tobytes() for c in changed}) > 10


def test_rand_augment_grows_with_its_magnitude():
    def distance(**options):
        change = AugmentImage(**STILL, rand_augment=options)
        plain = np.asarray(photo(), float)
        seeds = range(60)
        return np.mean(
            [np.abs(np.asarray(change(photo(), draws(s))) - plain).mean() for s in seeds]
        )

    assert distance(operations=0) == 0
    weak, strong = distance(magnitude=3, operations=1), distance(magnitude=20, operations=1)
    assert 0 < weak < strong < distance(magnitude=20, operations=3)


def test_erasing_hides_one_gray_rectangle():
    changed = np.asarray(AugmentImage(**STILL | {"erase": 1.0})(photo(), draws()))
    hidden = (changed != np.asarray(photo())).any(-1)
    assert 0.01 < hidden.mean() < 0.4
    assert (changed[hidden] == 127).all()


def test_decoding_leaves_the_callers_picture_alone():
    mine = photo()
    found = decode_image(mine)
    found.putpixel((0, 0), (9, 9, 9))
    assert np.array_equal(np.asarray(mine), np.asarray(photo()))
