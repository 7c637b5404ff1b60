"""Sound for transformers models: windows, which of their frames are real, runs by length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.encoders.decoding import decode_audio, index_windows, split_windows

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

    Raises `ValueError` for more than the model hears at once.
    """
    frames, longest = fixed_frames(processor), math.inf
    chunk = getattr(processor, "chunk_length", None)
    if frames is not None:
        longest = chunk or (frames - 1) * STEP_SECONDS + FRAME_SECONDS
    if window_seconds is not None and not 0 < window_seconds <= longest:
        raise ValueError(
            f"window_seconds must lie in (0, {longest:g}], found {window_seconds:g}; "
            "longer clips become several windows"
        )
    return round(processor.sampling_rate * (window_seconds or min(chunk or 10.0, longest)))


class AudioCollate:
    """Sounds to `sound (W, ...)`, `sound_mask (W, L)` and `windows (B, K)` of each row.

    A clip longer than `window_seconds` becomes several windows.  L counts samples of a waveform
    and frames of a spectrogram; of other kinds of input there is no mask.
    Raises `ValueError` for windows longer than what the model hears.
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
            # A sliver of sound shorter than the receptive field would give no frame at all.
            windows += [np.pad(w, (0, max(0, rate // 20 - len(w)))) for w in cut]
            counts.append(len(cut))
        options = {"padding": True, "return_attention_mask": True} if raw else {}
        coded = self.processor(windows, sampling_rate=rate, return_tensors="pt", **options)
        inputs = {"sound": coded[self.name], "windows": index_windows(counts)}
        frames = fixed_frames(self.processor)
        if raw:
            inputs["sound_mask"] = coded["attention_mask"]
        elif frames is not None:
            real = torch.tensor([self._frames(len(window)) for window in windows])
            inputs["sound_mask"] = (torch.arange(frames) < real.unsqueeze(1)).long()
        return inputs

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
    sound: Tensor,
    sound_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a model on windows of sound, each as if it were alone.

    hidden_of: the model's inputs as keywords -> (W, T, D)
    -> tokens (W, T, D), those that attention looks at (W, T), those of real sound (W, T)
    """
    name = model.main_input_name
    if sound_mask is None or sound.ndim == 3:  # spectrograms: the model hears their padding too
        hidden = hidden_of(**{name: sound})
        heard = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return hidden, heard, heard if sound_mask is None else _tokens(model.config, sound_mask)
    if takes_mask(processor):
        hidden = hidden_of(**{name: sound}, attention_mask=sound_mask)
        real = model._get_feature_vector_attention_mask(hidden.shape[1], sound_mask).bool()
        return hidden, real, real
    # Group norm sees padding and no mask helps.  Windows of one length, in quarters of a second,
    # go together; so no other clip of the batch changes what a clip is padded with.
    lengths = [_in_quarters(n, processor.sampling_rate) for n in sound_mask.sum(1).tolist()]
    sound = F.pad(sound, (0, max(lengths) - sound.shape[1]))
    hidden, heard = by_length(lengths, lambda which, n: hidden_of(**{name: sound[which, :n]}))
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
        samples = _in_quarters(samples, processor.sampling_rate)
    return int(model._get_feat_extract_output_lengths(samples))


def _in_quarters(samples: int, rate: int) -> int:
    """Samples of the shortest number of quarters of a second that holds so many."""
    quarter = rate // 4
    return math.ceil(samples / quarter) * quarter


def by_length(lengths: list[int], encode: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
    """Run windows of one length together, so that none of them needs padding.

    encode: numbers (N,) of windows and their length -> tokens (N, T', D)
    -> tokens (W, T, D), mask (W, T) of those that there are
    """
    parts = []
    for length in sorted(set(lengths), reverse=True):
        which = torch.tensor([w for w, n in enumerate(lengths) if n == length])
        found = encode(which, length)
        parts.append((which.to(found.device), found))
    longest = parts[0][1]
    tokens = longest.new_zeros(len(lengths), *longest.shape[1:])
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    for which, found in parts:
        short = tokens.shape[1] - found.shape[1]
        tokens = tokens.index_copy(0, which, F.pad(found, (0, 0, 0, short)))
        mask[which, : found.shape[1]] = True
    return tokens, mask
