"""Mixup and CutMix: pictures, labels, what is left alone, draws that repeat."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmtransfer.data.collate import Stored
from mmtransfer.data.mixing import Mixed
from mmtransfer.features import RowContext
from mmtransfer.methods.base import build_method
from mmtransfer.methods.mixup import CutMix, MixUp
from mmtransfer.tasks.soft import Soft

KINDS = {"photo": "image", "text": "text"}
CLASSES = [f"p{i}" for i in range(12)]
METHODS = pytest.mark.parametrize("method", [MixUp, CutMix])


def some_rows(count: int = 12) -> list:
    return [(i, {"photo": plain(i), "text": f"text {i}", "product": f"p{i}"}) for i in range(count)]


def plain(number: int, size: tuple[int, int] = (30, 20)) -> Image.Image:
    """A picture of one colour of its own."""
    return Image.new("RGB", size, (20 * number, 255 - 20 * number, 100))


def mixed(method, rows, epoch=0, seed=0, kinds=KINDS) -> list:
    found = [(i, dict(row)) for i, row in rows]
    method.on_rows(found, RowContext(seed, epoch, list(kinds), kinds))
    return found


def pixels(value: Mixed) -> np.ndarray:
    return np.asarray(value.blend(value.first, value.second), float)


# -- pictures and labels --------------------------------------------------------------------------


def test_mixup_blends_every_pixel_by_the_share_of_the_label():
    for _, row in mixed(MixUp(rate=1.0, alpha=1.0), some_rows()):
        value, target = row["photo"], row["product"]
        (_, share), (second, rest) = target.parts
        assert share == value.share
        assert share + rest == pytest.approx(1)
        assert second == f"p{value.partner}"
        colours = np.array([value.first.getpixel((0, 0)), value.second.getpixel((0, 0))], float)
        assert np.abs(pixels(value) - (share * colours[0] + rest * colours[1])).max() <= 1


def test_the_area_that_cutmix_leaves_is_the_share_of_the_label():
    large = [
        (i, {"photo": plain(i, size=(200, 150)), "product": f"p{i}"}) for i in range(len(CLASSES))
    ]
    shares = []
    for epoch in range(20):
        for _, row in mixed(CutMix(rate=1.0), large, epoch):
            value, target = row["photo"], row["product"]
            own = (pixels(value) == value.first.getpixel((0, 0))).all(-1)
            share = target.parts[0][1]
            assert own.mean() == pytest.approx(share, abs=0.01)  # to the pixel
            rows, columns = (~own).any(1), (~own).any(0)
            assert (~own).sum() == rows.sum() * columns.sum()  # one rectangle
            shares.append(share)
    assert min(shares) < 0.25
    assert max(shares) > 0.95


@pytest.mark.parametrize("box", [None, (0.5, 0.5, 0.5, 0.5)])
def test_a_share_of_one_is_the_picture_itself(box):
    value = Mixed(plain(3), plain(5, size=(7, 9)), 1.0, 5, box)
    assert np.array_equal(pixels(value), np.asarray(plain(3), float))


def test_the_second_picture_takes_the_size_of_the_first():
    value = Mixed(plain(3, size=(40, 20)), plain(5, size=(7, 90)), 0.5, 5)
    assert pixels(value).shape == (20, 40, 3)


def test_shares_of_a_small_alpha_lie_near_zero_and_one():
    def spread(alpha):
        rows = [row for e in range(40) for _, row in mixed(MixUp(1.0, alpha), some_rows(), e)]
        shares = np.array([row["photo"].share for row in rows])
        return shares.mean(), np.abs(shares - 0.5).mean()

    small, flat = spread(0.1), spread(1.0)
    assert small[0] == pytest.approx(0.5, abs=0.07)
    assert flat[0] == pytest.approx(0.5, abs=0.07)
    assert flat[1] == pytest.approx(0.25, abs=0.03)  # Beta(1, 1) is uniform
    assert small[1] > 0.4


# -- which rows, and what else of them ------------------------------------------------------------


@METHODS
def test_the_rate_is_the_share_of_mixed_rows(method):
    rows = [row for e in range(100) for _, row in mixed(method(rate=0.3), some_rows(), e)]
    share = np.mean([isinstance(row["photo"], Mixed) for row in rows])
    assert share == pytest.approx(0.3, abs=0.04)
    assert not any(isinstance(r["photo"], Mixed) for _, r in mixed(method(rate=0), some_rows()))


@METHODS
def test_what_shows_only_the_first_label_goes_unless_it_is_to_stay(method):
    for alone in (True, False):
        for i, row in mixed(method(rate=0.5, alone=alone), some_rows()):
            gone = alone and isinstance(row["photo"], Mixed)
            assert row["text"] == (None if gone else f"text {i}")
            assert isinstance(row["product"], Soft) == isinstance(row["photo"], Mixed)


@METHODS
def test_a_label_that_either_row_lacks_is_missing(method):
    rows = some_rows()
    rows[4][1]["product"] = None
    rows[7][1]["product"] = float("nan")
    touched = 0
    for epoch in range(10):
        for i, row in mixed(method(rate=1.0), rows, epoch):
            blind = {4, 7} & {i, row["photo"].partner}
            assert (row["product"] is None) == bool(blind)
            touched += bool(blind)
    assert touched > 20


@METHODS
def test_only_pictures_are_mixed_and_only_with_other_pictures(method):
    rows = some_rows()
    rows[1][1]["photo"] = None
    rows[2][1]["photo"] = Stored(np.ones((1, 3), np.float32))
    rows[3] = (~3, rows[3][1])
    before = [dict(row) for _, row in rows]
    for epoch in range(10):
        found = mixed(method(rate=1.0), rows, epoch)
        for k in (1, 2, 3):
            assert found[k][1] == before[k]
        for i, row in found[4:]:
            assert row["photo"].partner not in (1, 2, 3, i)
            assert isinstance(row["photo"].second, Image.Image)  # never half of a mixture
    (lonely,) = mixed(method(rate=1.0), rows[:1])
    assert lonely[1] == before[0]


def test_both_together_mix_a_row_once():
    found = [(i, dict(row)) for i, row in some_rows()]
    context = RowContext(0, 0, list(KINDS), KINDS)
    for method in (MixUp(rate=0.5), CutMix(rate=1.0)):
        method.on_rows(found, context)
    kinds = [row["photo"].box is None for _, row in found if isinstance(row["photo"], Mixed)]
    assert set(kinds) == {True, False}
    halves = [row["photo"].first for _, row in found if isinstance(row["photo"], Mixed)]
    assert all(isinstance(half, Image.Image) for half in halves)


@METHODS
def test_draws_depend_on_seed_epoch_row_and_the_rows_beside_it(method):
    def drawn(rows, **context):
        return {
            i: (v.share, v.partner, v.box) if isinstance(v := row["photo"], Mixed) else None
            for i, row in mixed(method(rate=0.5), rows, **context)
        }

    first = drawn(some_rows())
    assert drawn(some_rows()[::-1]) == first  # in any order
    assert drawn(some_rows(), epoch=1) != first
    assert drawn(some_rows(), seed=1) != first
    fewer = drawn(some_rows()[:6])  # other partners at most
    assert all((fewer[i] is None) == (first[i] is None) for i in range(6))


# -- the column -----------------------------------------------------------------------------------


def test_the_column_of_pictures_is_found_or_asked_for():
    two = {"left": "image", "right": "image"}
    rows = [(i, {"left": plain(i), "right": plain(i)}) for i in range(3)]
    with pytest.raises(ValueError, match="several columns of pictures, left, right"):
        mixed(MixUp(), rows, kinds=two)
    assert all(
        isinstance(row["right"], Mixed) and row["left"] is None
        for _, row in mixed(MixUp(1.0, column="right"), rows, kinds=two)
    )
    with pytest.raises(ValueError, match="'phot' is no column of pictures. Did you mean 'photo'"):
        mixed(MixUp(column="phot"), some_rows())
    texts = [(0, {"text": "a"}), (1, {"text": "b"})]
    assert mixed(MixUp(1.0), texts, kinds={"text": "text"}) == texts  # nothing to mix


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "mixup", "rate": 1.5}, r"must lie in \[0, 1\], found 1.5"),
        ({"name": "cutmix", "alpha": 0}, "alpha must be greater than 0, found 0"),
        ({"name": "cutmix", "alhpa": 1}, "no option 'alhpa'. Did you mean 'alpha'"),
        ("mixupp", "unknown method 'mixupp'. Did you mean 'mixup'"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        build_method(spec)
