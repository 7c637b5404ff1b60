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


def _source(value: Any, kind: str) -> io.BytesIO | str:
    """A file-like object or path out of bytes, a path, or `{"bytes", "path"}` (datasets' form)."""
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return io.BytesIO(bytes(value))
    if isinstance(value, str | Path):
        if not Path(value).is_file():
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
    value = ImageOps.exif_transpose(value)
    if value.mode.startswith("I;16"):  # convert() would clip, not scale
        value = Image.fromarray((np.asarray(value) // 257).astype(np.uint8))
    return value.convert("RGB")


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


def join_windows(tokens: Tensor, mask: Tensor, owner: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Line up the tokens of each row's windows, in time order.

    tokens (W, T, D), mask (W, T), owner (W,) ascending row of each window ->
    (rows, K * T, D), (rows, K * T) with K the largest number of windows of a row.
    """
    windows = torch.arange(len(owner), device=owner.device)
    first = torch.searchsorted(owner, torch.arange(rows, device=owner.device))  # (rows,)
    slot = windows - first[owner]  # (W,) place of the window within its row
    # K bounds the slots; W is used where K would need the device's value on the host.
    most = int(slot.max()) + 1 if slot.device.type == "cpu" else len(owner) - rows + 1
    shape = (rows, most, tokens.shape[1])
    joined = tokens.new_zeros(*shape, tokens.shape[2]).index_put((owner, slot), tokens)
    real = mask.new_zeros(shape).index_put((owner, slot), mask)
    return joined.flatten(1, 2), real.flatten(1, 2)
