"""Random changes of training values, per modality, seeded per row."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from mmtransfer.encoders.decoding import Waveform, decode_audio, decode_image, decode_text


class AugmentImage:
    """Random crop (area and aspect ratio, Szegedy et al., 2015), mirror image, colour jitter.

    area: smallest share of the picture that a crop keeps
    colour: largest relative change of brightness, contrast and saturation
    mirror: probability of a left-right flip
    """

    def __init__(self, area: float = 0.5, colour: float = 0.3, mirror: float = 0.5) -> None:
        self.area, self.colour, self.mirror = area, colour, mirror

    def __call__(self, value: Any, rng: np.random.Generator) -> Image.Image:
        picture = decode_image(value)
        w, h = picture.size
        area = w * h * rng.uniform(self.area, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        cw, ch = min(w, round((area * ratio) ** 0.5)), min(h, round((area / ratio) ** 0.5))
        x, y = rng.integers(0, w - cw + 1), rng.integers(0, h - ch + 1)
        picture = picture.crop((int(x), int(y), int(x) + cw, int(y) + ch))
        if rng.random() < self.mirror:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhance in enhancers:
            picture = enhance(picture).enhance(1 + rng.uniform(-self.colour, self.colour))
        return picture


class AugmentText:
    """Each word is left out with probability `drop`; one word always stays."""

    def __init__(self, drop: float = 0.1) -> None:
        self.drop = drop

    def __call__(self, value: Any, rng: np.random.Generator) -> str:
        words = decode_text(value).split()
        kept = [word for word in words if rng.random() >= self.drop]
        return " ".join(kept or words[:1])


class AugmentAudio:
    """Time shift, gain and white noise.

    shift: longest stretch of silence put in front, in seconds
    gain: largest change of level, in decibels; snr: lowest signal-to-noise ratio, in decibels
    """

    def __init__(self, shift: float = 0.2, gain: float = 6.0, snr: float = 10.0) -> None:
        self.shift, self.gain, self.snr = shift, gain, snr

    def __call__(self, value: Any, rng: np.random.Generator) -> Waveform:
        samples, rate = decode_audio(value)
        samples = np.pad(samples, (int(rng.uniform(0, self.shift) * rate), 0))
        samples = samples * 10 ** (rng.uniform(-self.gain, self.gain) / 20)
        level = np.sqrt(np.mean(samples**2) + 1e-12)
        noise = rng.standard_normal(len(samples)) * level * 10 ** (-rng.uniform(self.snr, 40) / 20)
        return Waveform((samples + noise).astype(np.float32), rate)


AUGMENTATIONS = {"image": AugmentImage, "text": AugmentText, "audio": AugmentAudio}
