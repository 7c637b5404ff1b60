"""Calibration error against torchmetrics, temperatures against the ones that were drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from mmtransfer.evaluation.calibration import (
    calibration_error,
    fit_temperature,
    fit_temperatures,
    negative_log_likelihood,
    reliability,
)
from mmtransfer.model import TransferModel
from mmtransfer.temperature import FILE, Temperature


def drawn(rows: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right after a division by the temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, 4, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return temperature * logits, targets


def test_the_error_is_that_of_torchmetrics_and_of_the_bins() -> None:
    logits, targets = drawn(500, 2.0)
    error = calibration_error(logits, targets)
    expected = multiclass_calibration_error(logits.double().softmax(1), targets, 4, n_bins=15)
    assert error == pytest.approx(float(expected), abs=1e-6)
    bins = reliability(logits, targets)
    assert sum(b.rows for b in bins) == 500
    assert {b.accuracy for b in bins if not b.rows} == {None}
    certain = reliability(torch.tensor([[1e3, 0.0]]), torch.tensor([1]))[-1]
    assert (certain.rows, certain.confidence, certain.accuracy) == (1, 1.0, 0.0)
    assert math.isnan(calibration_error(logits[:0], targets[:0]))
    with pytest.raises(ValueError, match="bins .* found 0"):
        reliability(logits, targets, 0)


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_drawn_is_found(truth: float) -> None:
    logits, targets = drawn(4000, truth)
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(truth, rel=0.06)
    grid = np.geomspace(0.7 * truth, 1.4 * truth, 101)
    best = min(negative_log_likelihood(logits / t, targets) for t in grid)
    assert negative_log_likelihood(logits / found, targets) <= best
    if truth != 1:
        scaled = calibration_error(logits / found, targets)
        assert scaled < min(0.03, 0.5 * calibration_error(logits, targets))


def test_temperatures_have_bounds_and_need_rows() -> None:
    logits = torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(1 / 20, rel=1e-3)
    assert fit_temperature(-logits, torch.arange(3)) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match="found none"):
        fit_temperature(logits[:0], torch.zeros(0, dtype=torch.int64))
    some = fit_temperatures({"a": logits, "b": logits[:0]}, {"a": torch.arange(3), "b": None})
    assert list(some.by_task) == ["a"]


def test_a_saved_temperature_calibrates_predictions_and_leaves_labels(
    tmp_path, rows_of, small_model
) -> None:
    rows, model = rows_of(12, 0), small_model()
    plain = model.predict(rows)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()
    Temperature({"label": 0.25}).save(tmp_path)
    loaded = TransferModel.from_pretrained(tmp_path)
    sharper = loaded.predict(rows)
    for before, after in zip(plain, sharper, strict=True):
        assert before["label"]["label"] == after["label"]["label"]
        assert before["label"]["probability"] < after["label"]["probability"]
    loaded.save_pretrained(tmp_path / "copy")
    assert TransferModel.from_pretrained(tmp_path / "copy").predict(rows) == sharper
    loaded.temperature = Temperature()
    loaded.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / FILE).exists()


def test_bad_temperatures_are_refused(tmp_path, small_model) -> None:
    with pytest.raises(ValueError, match="'label' must be a number above zero, found 0"):
        Temperature({"label": 0})
    with pytest.raises(FileNotFoundError, match="no config.json"):
        Temperature().save(tmp_path)
    small_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown task 'labl'.*'label'"):
        Temperature({"labl": 2.0}).save(tmp_path)
    (tmp_path / FILE).write_text("[2.0]")
    with pytest.raises(ValueError, match=r"found \[2.0\]"):
        TransferModel.from_pretrained(tmp_path)
