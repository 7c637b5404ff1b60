"""A small convolutional network over log-mel spectrograms, without pretraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.decoding import decode_audio
from mmtransfer.encoders.numbers import check_count, check_seconds, check_widths
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

POOLS = ("none", "mean")


class Block(nn.Module):
    """Convolution, norm over the channels of each place, GELU; halves time and frequency.

    No batch norm: it would see the padding of short clips.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, F, T), zero where mask (B, T) is False -> half of both, rounded up in time."""
        x = self.conv(x).permute(0, 2, 3, 1)  # (B, F, T, C)
        x = F.gelu(self.norm(x)).permute(0, 3, 1, 2)
        # What follows must see behind the end of a clip what it sees there when it is alone.
        x = torch.where(mask[:, None, None], x, 0)
        return F.max_pool2d(F.pad(x, (0, x.shape[3] % 2)), 2), mask[:, ::2]


@register_encoder("spectrogram-cnn")
class SpectrogramCNN(Encoder):
    """Log-mel spectrogram and convolution blocks, for sounds of any length; random weights.

    rate: in Hz; sound of any other is resampled
    n_mels: bands of the spectrogram; each block halves them
    window_seconds, hop_seconds: of the short-time spectrum
    widths: channels of the blocks; each halves the frame rate
    pool: "none" gives the frames of the last block as tokens, "mean" their mean

    A token is what one moment has in all bands: D is the last width times the bands that are left.
    Each clip is standardised by itself, so its loudness does not count.
    """

    modality = "audio"

    def __init__(
        self,
        rate: int = 16000,
        n_mels: int = 64,
        window_seconds: float = 0.025,
        hop_seconds: float = 0.01,
        widths: Sequence[int] = (32, 64, 128, 128),
        pool: str = "none",
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}.{nearest(pool, POOLS)}")
        check_count("rate", rate)
        check_count("n_mels", n_mels)
        check_seconds("window_seconds", window_seconds, rate)
        check_seconds("hop_seconds", hop_seconds, rate)
        check_widths("widths", widths)
        if n_mels % 2 ** len(widths):
            raise ValueError(
                f"n_mels must be a multiple of {2 ** len(widths)}, which {len(widths)} "
                f"blocks halve so often, found {n_mels}"
            )
        self.rate, self.n_mels, self.widths, self.pool = rate, n_mels, list(widths), pool
        self.window_seconds, self.hop_seconds = window_seconds, hop_seconds
        window, hop = round(rate * window_seconds), round(rate * hop_seconds)
        from torchaudio.transforms import MelSpectrogram

        self.spectrogram = MelSpectrogram(
            rate,
            n_fft=2 ** math.ceil(math.log2(window)),
            win_length=window,
            hop_length=hop,
            n_mels=n_mels,
            center=False,
        )
        self.blocks = nn.ModuleList(
            Block(before, after) for before, after in zip([1, *widths], widths, strict=False)
        )
        self.width = self.widths[-1] * self.bands(len(self.widths))
        self.length, self.hop = self.spectrogram.n_fft, hop
        self.collate = FramedCollate(rate, self.length, hop)

    def bands(self, depth: int) -> int:
        """Bands that so many blocks leave."""
        return self.n_mels // 2**depth

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.blocks)

    @property
    def cuts(self) -> Sequence[int]:
        return range(1, len(self.blocks))

    def forward(self, sound: Tensor, frames: Tensor) -> Features:
        """sound (B, L), frames (B,) of each clip -> tokens (B, T, width)."""
        return self._pooled(self._encode(sound, frames, len(self.blocks)))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        return self._encode(inputs["sound"], inputs["frames"], depth)

    def above(self, depth: int, activations: Features) -> Features:
        x = activations.tokens.unflatten(2, (-1, self.bands(depth))).permute(0, 2, 3, 1)
        mask = activations.mask
        return self._pooled(self._run(x, mask, depth, len(self.blocks)))

    def log_mel(self, sound: Tensor, mask: Tensor) -> Tensor:
        """(B, L), (B, T) -> (B, F, T), each clip of mean 0 and variance 1, zero behind its end."""
        # Spectrum and log lose digits in half precision, whatever the precision of the rest.
        with torch.autocast(sound.device.type, enabled=False):
            x = self.spectrogram(sound.float()).clamp_min(1e-10).log()  # (B, F, T)
            real = mask[:, None]
            count = (mask.sum(1) * self.n_mels)[:, None, None]
            mean = torch.where(real, x, 0).sum((1, 2), keepdim=True) / count
            x = torch.where(real, x - mean, 0)
            deviation = (x.square().sum((1, 2), keepdim=True) / count + 1e-5).sqrt()
            return x / deviation

    def _encode(self, sound: Tensor, frames: Tensor, depth: int) -> Features:
        longest = (sound.shape[1] - self.length) // self.hop + 1
        mask = torch.arange(longest, device=sound.device) < frames.unsqueeze(1)
        return self._run(self.log_mel(sound, mask)[:, None], mask, 0, depth)

    def _run(self, x: Tensor, mask: Tensor, start: int, end: int) -> Features:
        for block in list(self.blocks)[start:end]:
            x, mask = block(x, mask)
        return Features(x.permute(0, 3, 1, 2).flatten(2), mask)  # (B, T, C * F)

    def _pooled(self, features: Features) -> Features:
        return features.pool() if self.pool == "mean" else features


class FramedCollate:
    """Sounds to `sound (B, L)` and `frames (B,)`, each clip padded to a whole number of frames.

    length, hop: samples of a frame, and from one to the next
    """

    def __init__(self, rate: int, length: int, hop: int) -> None:
        self.rate, self.length, self.hop = rate, length, hop

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        clips, frames = [], []
        for value in values:
            samples = decode_audio(value).at(self.rate)
            count = 1 + max(0, math.ceil((len(samples) - self.length) / self.hop))
            whole = self.length + (count - 1) * self.hop
            clips.append(torch.from_numpy(np.pad(samples, (0, whole - len(samples)))))
            frames.append(count)
        return {"sound": pad_sequence(clips, batch_first=True), "frames": torch.tensor(frames)}
