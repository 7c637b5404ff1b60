"""Augmented sounds: decibels, seconds and masks that are what was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmtransfer.data.augment import AugmentAudio, SpecAugment
from mmtransfer.encoders.decoding import Waveform

SILENT = {"shift": 0.0, "gain": 0.0, "snr": None}


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(seconds: float = 2.0, rate: int = 16000) -> Waveform:
    samples = draws(1).normal(0, 0.1, int(seconds * rate)).astype(np.float32)
    return Waveform(samples, rate)


def test_noise_has_the_ratio_that_was_asked_for():
    sound = noise()
    for seed in range(20):
        louder = AugmentAudio(**SILENT | {"snr": 10.0})(sound, draws(seed))
        added = louder.samples - sound.samples
        ratio = 10 * math.log10(np.mean(sound.samples**2) / np.mean(added**2))
        assert 9.8 < ratio < 40.2
    ten = AugmentAudio(**SILENT | {"snr": 40.0})(sound, draws())
    added = ten.samples - sound.samples
    ratio = 10 * math.log10(np.mean(sound.samples**2) / np.mean(added**2))
    assert ratio == pytest.approx(40, abs=0.2)


def test_gain_is_in_decibels_and_nothing_else_changes():
    sound = noise()
    found = []
    for seed in range(50):
        changed = AugmentAudio(**SILENT | {"gain": 6.0})(sound, draws(seed)).samples
        factor = changed[0] / sound.samples[0]
        assert np.allclose(changed, factor * sound.samples, atol=1e-6)
        found.append(20 * math.log10(factor))
    assert -6.01 < min(found) < -4
    assert 4 < max(found) < 6.01


def test_a_shift_is_silence_in_front_of_the_same_sound():
    sound = noise()
    changed = AugmentAudio(**SILENT | {"shift": 0.2})(sound, draws(3))
    late = len(changed.samples) - len(sound.samples)
    assert 0 < late <= 0.2 * sound.rate
    assert not changed.samples[:late].any()
    assert np.array_equal(changed.samples[late:], sound.samples)
    assert changed.samples.dtype == np.float32


def spectrum(samples: np.ndarray, n_fft: int = 512) -> np.ndarray:
    window = torch.hann_window(n_fft)
    found = torch.stft(
        torch.from_numpy(samples), n_fft, window=window, pad_mode="constant", return_complex=True
    )
    return found.abs().square().numpy()  # (F, T)


def inner(masked: np.ndarray, edge: int) -> np.ndarray:
    """Where a mask is at least `edge` places away from what is kept."""
    near = np.convolve(~masked, np.ones(2 * edge + 1), "same") > 0
    return ~near


@pytest.mark.parametrize("seed", range(8))
def test_masked_times_are_silent_and_masked_bands_have_no_energy(seed):
    sound = noise()
    masks = SpecAugment(time_masks=1, time=0.3, frequency_masks=1, frequency=0.5)
    changed = masks(sound.samples, sound.rate, draws(seed))
    assert changed.shape == sound.samples.shape
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    before, after = spectrum(sound.samples), spectrum(changed)
    frequencies, times = masks.kept(*before.shape, sound.rate, draws(seed))
    silent, stopped = inner(~times, 4), inner(~frequencies, 4)
    assert after[:, silent].sum() <= 1e-6 * before[:, silent].sum() + 1e-12
    assert after[stopped].sum() <= 1e-3 * before[stopped].sum() + 1e-12
    # What is far from every mask is as it was.
    kept = np.outer(inner(frequencies, 4), inner(times, 4))
    assert after[kept].sum() == pytest.approx(before[kept].sum(), rel=0.02)


def test_masks_cover_at_most_what_was_asked_for():
    masks = SpecAugment(time_masks=1, time=0.2, frequency_masks=1, frequency=0.3)
    covered = [masks.kept(4096, 1000, 16000, draws(seed)) for seed in range(200)]
    times = [1 - t.mean() for _, t in covered]
    assert 0.15 < max(times) <= 0.201
    mel = np.log10(1 + np.linspace(0, 8000, 4096) / 700)
    bands = [np.ptp(mel[~f]) / mel[-1] for f, _ in covered if (~f).any()]
    assert 0.25 < max(bands) <= 0.3  # equal widths on the mel scale
    hertz = [(~f).sum() for f, _ in covered]
    assert max(hertz) > 0.4 * 4096  # a high band is wide in hertz


def test_no_masks_give_the_sound_back():
    sound = noise()
    same = SpecAugment(time_masks=0, frequency_masks=0)(sound.samples, sound.rate, draws())
    assert np.allclose(same, sound.samples, atol=1e-6)


@pytest.mark.parametrize("length", [1, 100, 511, 5000])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_clips_of_any_length_and_rate_are_masked(length, rate):
    samples = draws().normal(0, 0.1, length).astype(np.float32)
    changed = SpecAugment()(samples, rate, draws())
    assert changed.shape == (length,)
    assert np.isfinite(changed).all()


def test_masks_do_not_depend_on_the_number_of_threads():
    sound = noise()
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(SpecAugment()(sound.samples, sound.rate, draws()))
    torch.set_num_threads(before)
    assert np.array_equal(*found)
