"""Sound for transformers models: windows, which of their frames are real, runs by length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.encoders.decoding import decode_audio, index_windows, split_windows
from mmtransfer.encoders.grouping import group_windows, in_quarters, renumbered, stack_groups
from mmtransfer.encoders.numbers import check_seconds

# The frames of Kaldi's filter banks, which AST hears: 25 ms, one every 10 ms.
FRAME_SECONDS, STEP_SECONDS = 0.025, 0.010


def takes_mask(processor: Any) -> bool:
    """Whether the model was trained with a mask over the padding of its sounds."""
    return bool(processor.return_attention_mask) and is_waveform(processor)


def is_waveform(processor: Any) -> bool:
    """Whether a processor gives samples, not the frames of a spectrogram."""
    return processor.model_input_names[0] == "input_values" and not hasattr(
        processor, "num_mel_bins"
    )


def fixed_frames(processor: Any) -> int | None:
    """Frames of the spectrograms of a processor that brings all sounds to one length, or None."""
    if hasattr(processor, "nb_max_frames"):  # Whisper
        return int(processor.nb_max_frames)
    if processor.model_input_names[0] == "input_values" and not is_waveform(processor):  # AST
        return int(processor.max_length)
    return None


def window_samples(processor: Any, window_seconds: float | None) -> int:
    """Samples of a window of the length wanted, or of the usual one.

    Raises `ValueError` for more than the model hears at once, and for less than 0.05 s.
    """
    frames, longest, rate = fixed_frames(processor), math.inf, processor.sampling_rate
    chunk = getattr(processor, "chunk_length", None)
    if frames is not None:
        longest = chunk or (frames - 1) * STEP_SECONDS + FRAME_SECONDS
    if window_seconds is None:
        window_seconds = min(chunk or 10.0, longest)
    check_seconds("window_seconds", window_seconds, rate, shortest_samples(rate))
    if window_seconds > longest:
        raise ValueError(
            f"window_seconds must be at most {longest:g}, found {window_seconds:g}; "
            "longer clips become several windows"
        )
    return round(rate * window_seconds)


def shortest_samples(rate: int) -> int:
    """A twentieth of a second: less than the receptive field would give no frame at all."""
    return rate // 20


class AudioCollate:
    """Sounds to `sound (W, ...)`, `sound_mask (W, L)` and `windows (B, K)` of each row.

    A clip longer than `window_seconds` becomes several windows.  L counts samples of a waveform
    and frames of a spectrogram; of other kinds of input there is no mask.  For models whose group
    norm sees padding, which no mask helps, windows come in groups of one length (`grouping`).
    Raises `ValueError` for windows longer than what the model hears, or of less than 0.05 s.
    """

    def __init__(self, processor: Any, window_seconds: float | None) -> None:
        self.processor = processor
        self.name = processor.model_input_names[0]
        self.window = window_samples(processor, window_seconds)

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        rate, length, raw = self.processor.sampling_rate, self.window, is_waveform(self.processor)
        windows, counts = [], []
        for value in values:
            cut = split_windows(decode_audio(value).at(rate), length, length)
            windows += [np.pad(w, (0, max(0, shortest_samples(rate) - len(w)))) for w in cut]
            counts.append(len(cut))
        options = {"padding": True, "return_attention_mask": True} if raw else {}
        coded = self.processor(windows, sampling_rate=rate, return_tensors="pt", **options)
        if raw and not takes_mask(self.processor):
            return self._grouped(coded[self.name], coded["attention_mask"], index_windows(counts))
        inputs = {"sound": coded[self.name], "windows": index_windows(counts)}
        frames = fixed_frames(self.processor)
        if raw:
            inputs["sound_mask"] = coded["attention_mask"]
        elif frames is not None:
            real = torch.tensor([self._frames(len(window)) for window in windows])
            inputs["sound_mask"] = (torch.arange(frames) < real.unsqueeze(1)).long()
        return inputs

    def _grouped(self, sound: Tensor, mask: Tensor, windows: Tensor) -> dict[str, Tensor]:
        groups, order = group_windows(sound, mask.sum(1).tolist(), self.processor.sampling_rate)
        longest = groups["sound"].shape[1]
        mask = F.pad(mask, (0, longest - mask.shape[1]))[order]
        return {**groups, "windows": renumbered(windows, order), "sound_mask": mask}

    def _frames(self, samples: int) -> int:
        """Frames of the spectrogram that hold sound."""
        rate = self.processor.sampling_rate
        if hasattr(self.processor, "hop_length"):
            return math.ceil(samples / self.processor.hop_length)
        return 1 + (samples - round(FRAME_SECONDS * rate)) // round(STEP_SECONDS * rate)


def hear(
    model: Any,
    processor: Any,
    hidden_of: Callable[..., Tensor],
    sounds: Sequence[Tensor],
    sound_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a model on windows of sound, each as if it were alone.

    hidden_of: the model's inputs as keywords -> (W, T, D)
    sounds: groups of windows, longest first; several where no mask helps against padding
    -> tokens (W, T, D), those that attention looks at (W, T), those of real sound (W, T)
    """
    name = model.main_input_name
    if sound_mask is None or sounds[0].ndim == 3:  # spectrograms: the model hears their padding too
        hidden = hidden_of(**{name: sounds[0]})
        heard = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return hidden, heard, heard if sound_mask is None else _tokens(model.config, sound_mask)
    if takes_mask(processor):
        hidden = hidden_of(**{name: sounds[0]}, attention_mask=sound_mask)
        real = model._get_feature_vector_attention_mask(hidden.shape[1], sound_mask).bool()
        return hidden, real, real
    hidden, heard = stack_groups([hidden_of(**{name: sound}) for sound in sounds])
    real = model._get_feature_vector_attention_mask(hidden.shape[1], sound_mask).bool()
    return hidden, heard, real


def _tokens(config: Any, frames: Tensor) -> Tensor:
    """Tokens that hold sound (W, T) bool, of Whisper or AST, given such frames (W, L)."""
    if config.model_type == "whisper":
        return frames[:, ::2].bool()  # its second convolution has a stride of 2
    count = 1 + (frames.shape[1] - config.patch_size) // config.time_stride
    bands = 1 + (config.num_mel_bins - config.patch_size) // config.frequency_stride
    patches = frames[:, :: config.time_stride][:, :count].repeat(1, bands)  # band by band
    special = torch.ones_like(frames[:, :2])  # class and distillation token
    return torch.cat([special, patches], 1).bool()


def window_tokens(model: Any, processor: Any, window_seconds: float | None) -> int:
    """How many tokens a full window has."""
    if model.config.model_type == "whisper":
        return int(model.config.max_source_positions)
    if fixed_frames(processor) is not None:
        return int(model.embeddings.position_embeddings.shape[1])
    samples = window_samples(processor, window_seconds)
    if not takes_mask(processor):
        samples = in_quarters(samples, processor.sampling_rate)
    for kernel, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples
