"""Random changes of sounds: time shift, gain, noise, and masks in time and frequency."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from mmtransfer.data.augment.settings import check_count, check_range, configure
from mmtransfer.encoders.decoding import Waveform, decode_audio

FAINT = 40.0  # decibels: the highest signal-to-noise ratio, at which noise is hardly heard
FRAME = 0.032  # seconds of one Fourier transform


class AugmentAudio:
    """Time shift, gain and white noise; on demand masks.

    shift: longest stretch of silence put in front, in seconds
    gain: largest change of level, in decibels
    snr: lowest signal-to-noise ratio, in decibels up to 40, or None for no noise
    spec_augment: true, or the options of `SpecAugment`
    """

    def __init__(
        self,
        shift: float = 0.2,
        gain: float = 6.0,
        snr: float | None = 10.0,
        spec_augment: bool | dict[str, Any] = False,
    ) -> None:
        check_range("shift", shift, 0, math.inf)
        check_range("gain", gain, 0, 60)
        if snr is not None:
            check_range("snr", snr, -FAINT, FAINT)
        self.shift, self.gain, self.snr = shift, gain, snr
        self.masks = configure(SpecAugment, spec_augment, "spec_augment")

    def __call__(self, value: Any, rng: np.random.Generator) -> Waveform:
        samples, rate = decode_audio(value)
        samples = np.pad(samples, (int(rng.uniform(0, self.shift) * rate), 0))
        samples = samples * 10 ** (rng.uniform(-self.gain, self.gain) / 20)
        if self.snr is not None:
            level = np.sqrt(np.mean(samples**2) + 1e-12)
            noise = rng.standard_normal(len(samples))
            samples = samples + noise * level * 10 ** (-rng.uniform(self.snr, FAINT) / 20)
        samples = samples.astype(np.float32)
        if self.masks is not None:  # last, as noise would fill them up again
            samples = self.masks(samples, rate, rng)
        return Waveform(samples, rate)


class SpecAugment:
    """Masks in time and frequency (SpecAugment, Park et al., Interspeech 2019), in the waveform.

    The paper masks the features of one model; ours differ and some take no features at all.  So
    the masks are laid on a short-time Fourier transform, which is then turned back into sound: a
    masked time is silence and a masked band is filtered out.  There is no time warping, of which
    the paper says that it matters least.

    time_masks, time: how many stretches of time, each at most this share of the clip
    frequency_masks, frequency: how many bands, each at most this share of the mel scale
    """

    def __init__(
        self,
        time_masks: int = 2,
        time: float = 0.1,
        frequency_masks: int = 2,
        frequency: float = 0.2,
    ) -> None:
        check_count("time_masks", time_masks)
        check_count("frequency_masks", frequency_masks)
        check_range("time", time, 0, 1)
        check_range("frequency", frequency, 0, 1)
        self.time_masks, self.time = time_masks, time
        self.frequency_masks, self.frequency = frequency_masks, frequency

    def kept(
        self, bins: int, frames: int, rate: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which frequencies (F,) and which frames (T,) of a spectrum are left."""
        # torchaudio's masks draw from torch's global generator, and take no complex numbers.
        mel = np.log10(1 + np.linspace(0, rate / 2, bins) / 700)  # O'Shaughnessy, 1987
        times = (np.arange(frames) + 0.5) / frames
        return (
            outside_stretches(mel / mel[-1], self.frequency_masks, self.frequency, rng),
            outside_stretches(times, self.time_masks, self.time, rng),
        )

    def __call__(self, samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        """(L,) float32 at `rate` Hz -> (L,)."""
        n_fft = max(16, 2 ** round(math.log2(FRAME * rate)))
        window = torch.hann_window(n_fft)
        spectrum = torch.stft(
            torch.from_numpy(samples),
            n_fft,
            window=window,
            pad_mode="constant",  # to reflect it, a clip would have to be longer than a frame
            return_complex=True,
        )  # (F, T)
        frequencies, times = self.kept(len(spectrum), spectrum.shape[1], rate, rng)
        mask = torch.from_numpy(np.outer(frequencies, times))
        masked = torch.istft(spectrum * mask, n_fft, window=window, length=len(samples))
        return masked.numpy()


def outside_stretches(
    positions: np.ndarray, count: int, widest: float, rng: np.random.Generator
) -> np.ndarray:
    """(N,) bool: which of the positions in [0, 1] lie in none of `count` random stretches."""
    outside = np.ones(len(positions), dtype=bool)
    for _ in range(count):
        width = rng.uniform(0, widest)
        start = rng.uniform(0, 1 - width)
        outside &= (positions < start) | (positions >= start + width)
    return outside
