"""Noise has the power and the colour that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

from mmtransfer.data.noise import PEAK, mean_square, over_noise


@pytest.mark.parametrize("snr", [-20.0, 0.0, 13.0])
@pytest.mark.parametrize("length", [4000, 4001])
def test_the_ratio_is_exact(snr: float, length: int) -> None:
    """A tone, and noise only where the tone is not: both can be measured in the mixture."""
    tone = np.sin(2 * np.pi * 10 * np.arange(length) / length).astype(np.float32)
    gain = np.zeros(length // 2 + 1)
    gain[100:1000] = 1
    noisy = over_noise(tone, gain, mean_square(tone, snr), default_rng(0))
    power = np.abs(np.fft.rfft(noisy)) ** 2
    measured = 10 * np.log10(power[10] / power[100:1000].sum())
    assert measured == pytest.approx(snr, abs=0.01)
    assert np.abs(noisy).max() == pytest.approx(PEAK)
    outside = np.delete(power, [10, *range(100, 1000)])
    assert outside.max() < 1e-6 * power.max()


def test_without_noise_only_the_peak_changes() -> None:
    samples = default_rng(1).normal(0, 0.01, 500)
    clean = over_noise(samples, np.ones(251), mean_square(samples, np.inf), default_rng(0))
    np.testing.assert_allclose(clean, samples * PEAK / np.abs(samples).max(), rtol=1e-12)


def test_silence_and_single_samples_stay_finite() -> None:
    for samples in (np.zeros(100), np.ones(1)):
        gain = np.r_[0.0, np.ones(len(samples) // 2)]
        noisy = over_noise(samples, gain, mean_square(samples, 0.0), default_rng(0))
        assert np.isfinite(noisy).all()
