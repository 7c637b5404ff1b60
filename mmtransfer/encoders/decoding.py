"""Raw column values to pictures and waveforms."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.features import Features


class Waveform(NamedTuple):
    """Mono sound: `samples (L,)` float32 in [-1, 1] at `rate` Hz."""

    samples: np.ndarray
    rate: int

    def at(self, rate: int) -> np.ndarray:
        """The samples at another rate in Hz, (L * rate / self.rate,)."""
        if rate == self.rate:
            return self.samples
        from torchaudio.functional import resample

        return resample(torch.from_numpy(self.samples), self.rate, rate).numpy()


def is_file(value: str | Path) -> bool:
    """Whether a value is the path of a file; any text may be asked."""
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def _source(value: Any, kind: str) -> io.BytesIO | str:
    """A file-like object or path out of bytes, a path, or `{"bytes", "path"}` (datasets' form)."""
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return io.BytesIO(bytes(value))
    if isinstance(value, str | Path):
        if not is_file(value):
            raise FileNotFoundError(f"no such {kind} file: {str(value)[:200]!r}")
        return str(value)
    raise TypeError(
        f"expected {kind} bytes, a path or {{'bytes', 'path'}}, found {type(value).__name__}"
    )


def decode_image(value: Any) -> Image.Image:
    """An RGB picture from bytes, a path, `{"bytes", "path"}`, a PIL image or a (H, W[, 3]) array.

    Raises `ValueError`/`OSError` for data that is no picture or is truncated.
    """
    if isinstance(value, np.ndarray):
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        value = Image.open(_source(value, "image"))
    value = ImageOps.exif_transpose(value)  # a copy, never the caller's own
    if value.mode.startswith("I;16"):  # convert() would clip, not scale
        value = Image.fromarray((np.asarray(value) // 257).astype(np.uint8))
    return value if value.mode == "RGB" else value.convert("RGB")


def decode_audio(value: Any) -> Waveform:
    """A mono waveform from bytes, a path, `{"bytes", "path"}` or `{"array", "sampling_rate"}`.

    Raises `ValueError` for data that is no sound or holds no finite samples.
    """
    if isinstance(value, Waveform):
        return value
    if isinstance(value, Mapping) and "array" in value:
        samples, rate = np.asarray(value["array"], dtype=np.float32), int(value["sampling_rate"])
    else:
        import soundfile

        try:
            samples, rate = soundfile.read(_source(value, "audio"), dtype="float32")
        except soundfile.LibsndfileError as error:
            raise ValueError(f"not a readable sound file: {error}") from error
    if samples.ndim == 2:
        # soundfile gives (L, channels), datasets (channels, L).
        samples = samples.mean(axis=int(samples.shape[0] > samples.shape[1]))
    if samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError("the clip has no samples" if samples.size == 0 else "samples not finite")
    return Waveform(np.ascontiguousarray(samples, dtype=np.float32), rate)


def decode_text(value: Any) -> str:
    """The text itself.  Raises `TypeError` for anything that is not a string."""
    if not isinstance(value, str):
        raise TypeError(f"expected text (str), found {type(value).__name__}")
    return value


def split_windows(samples: np.ndarray, length: int, hop: int) -> list[np.ndarray]:
    """Cut (L,) into windows of at most `length` samples, one every `hop`; nothing is left out."""
    count = 1 + max(0, -(-(len(samples) - length) // hop))
    return [samples[i * hop : i * hop + length] for i in range(count)]


def index_windows(counts: list[int]) -> Tensor:
    """Windows of each row, given how many it has: (B, K) numbers, -1 where a row has no more."""
    first = torch.tensor([0, *counts]).cumsum(0)[:-1].unsqueeze(1)  # (B, 1)
    slot = torch.arange(max(counts))
    return torch.where(slot < torch.tensor(counts).unsqueeze(1), first + slot, -1)


def join_windows(tokens: Tensor, mask: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Line up the tokens of each row's windows, in time order.

    tokens (W, T, D), mask (W, T), windows (B, K) of `index_windows` -> (B, K * T, D), (B, K * T)
    """
    real = (windows >= 0).unsqueeze(-1)  # (B, K, 1)
    chosen = windows.clamp_min(0)
    joined = torch.where(real.unsqueeze(-1), tokens[chosen], 0)  # (B, K, T, D)
    return joined.flatten(1, 2), (mask[chosen] & real).flatten(1, 2)


# Numbers of windows differ from batch to batch: a compiler would begin anew with each of them.
@torch.compiler.disable
def part_windows(features: Features, size: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """The windows that `join_windows` lined up, of `size` tokens each but for a row's last one.

    -> tokens (W, T, D), mask (W, T), windows (B, K), and how many tokens each window has
    """
    size = min(size, features.tokens.shape[1])
    known = features.lengths  # else the device is waited for
    lengths = features.mask.sum(1).tolist() if known is None else known
    parts = [min(size, length - start) for length in lengths for start in range(0, length, size)]
    short = -features.tokens.shape[1] % size
    tokens = F.pad(features.tokens, (0, 0, 0, short)).unflatten(1, (-1, size))  # (B, K, T, D)
    mask = F.pad(features.mask, (0, short)).unflatten(1, (-1, size))
    real = mask.any(2)  # (B, K)
    number = (real.flatten().cumsum(0) - 1).view_as(real)
    places = torch.arange(real.numel(), device=real.device)
    # Where each window is, without a shape that depends on values; the last place takes the rest.
    target = torch.where(real, number, len(parts)).flatten()
    which = places.new_zeros(len(parts) + 1).scatter(0, target, places)[: len(parts)]
    windows = torch.where(real, number, -1)
    return tokens.flatten(0, 1)[which], mask.flatten(0, 1)[which], windows, parts
