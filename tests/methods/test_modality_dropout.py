"""Modality drop-out drops at its rate, never everything, and repeats per row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtransfer.features import Draw, RowContext
from mmtransfer.methods.modality_dropout import ModalityDropout

NAMES = ["audio", "image", "text"]


def drop(rate, rows, epoch=0, seed=0):
    numbered = [(i, dict(row)) for i, row in enumerate(rows)]
    ModalityDropout(rate).on_rows(numbered, RowContext(seed, epoch, NAMES))
    return [row for _, row in numbered]


@given(st.floats(0, 0.99), st.sets(st.sampled_from(NAMES), min_size=1), st.integers(0, 99))
def test_a_row_keeps_at_least_one_of_its_modalities_and_its_targets(rate, present, epoch):
    row = {name: (name if name in present else None) for name in NAMES} | {"product": 3}
    (left,) = drop(rate, [row], epoch)
    kept = {name for name in NAMES if left[name] is not None}
    assert kept
    assert kept <= present
    assert left["product"] == 3


def test_the_rate_is_the_share_that_goes_missing():
    rows = drop({"image": 0.3, "text": 0.1}, [dict.fromkeys(NAMES, 1)] * 4000)
    share = {name: sum(row[name] is None for row in rows) / 4000 for name in NAMES}
    assert share["image"] == pytest.approx(0.3, abs=0.03)
    assert share["text"] == pytest.approx(0.1, abs=0.02)
    assert share["audio"] == 0


def test_draws_depend_on_row_epoch_and_seed_alone():
    rows = [dict.fromkeys(NAMES, 1)] * 50
    assert drop(0.5, rows) == drop(0.5, rows)
    assert drop(0.5, rows) != drop(0.5, rows, epoch=1)
    assert drop(0.5, rows) != drop(0.5, rows, seed=1)
    assert drop(0.5, rows)[:20] == drop(0.5, rows[:20])


def test_a_row_that_is_drawn_again_loses_others():
    rows = [(Draw(7, k) if k else 7, dict.fromkeys(NAMES, 1)) for k in range(40)]
    ModalityDropout(0.5).on_rows(rows, RowContext(0, 0, NAMES))
    assert len({tuple(row.items()) for _, row in rows}) > 3
    assert rows[0][1] == drop(0.5, [dict.fromkeys(NAMES, 1)] * 8)[7]  # the first is as ever


def test_a_rate_of_one_is_refused():
    with pytest.raises(ValueError, match="found 1"):
        ModalityDropout(1.0)
