"""Recordings over noise."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

PEAK = 0.7
TINY = 1e-300


def over_noise(samples: np.ndarray, gain: np.ndarray, noise: float, rng: Generator) -> np.ndarray:
    """A waveform (L,) with noise added, then scaled to the peak `PEAK`, as float64.

    gain: (L // 2 + 1,) of the frequencies of white noise from 0 to half the rate, for its colour
    noise: mean square that the noise gets
    """
    white = np.fft.rfft(rng.standard_normal(len(samples)))
    coloured = np.fft.irfft(gain * white, len(samples))
    coloured *= np.sqrt(noise / max(mean_square(coloured), TINY))
    noisy = samples + coloured
    return PEAK * noisy / max(float(np.abs(noisy).max()), TINY)


def mean_square(samples: np.ndarray, snr: float = 0.0) -> float:
    """Of a waveform (L,), or of noise that is `snr` dB below it."""
    return float(np.mean(samples.astype(np.float64) ** 2)) * 10 ** (-snr / 10)
