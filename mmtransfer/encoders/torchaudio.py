"""torchaudio's wav2vec 2.0, HuBERT and WavLM bundles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.decoding import (
    decode_audio,
    index_windows,
    join_windows,
    part_windows,
    split_windows,
)
from mmtransfer.encoders.following import follow
from mmtransfer.encoders.weights import fill, read_weights
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

KINDS = ("Wav2Vec2", "WavLM")
POOLS = ("none", "mean")


class WaveformCollate:
    """Sounds to `sound (W, L)`, `lengths (W,)` in samples and `windows (B, K)` of each row.

    normalise: each window has mean 0 and variance 1, as the large models were trained
    """

    def __init__(self, rate: int, seconds: float, normalise: bool, shortest: int) -> None:
        self.rate, self.length, self.normalise = rate, round(rate * seconds), normalise
        self.shortest = shortest

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        windows, counts = [], []
        for value in values:
            cut = split_windows(decode_audio(value).at(self.rate), self.length, self.length)
            for samples in cut:
                # A sliver of sound shorter than the receptive field would give no frame at all.
                short = max(0, self.shortest - len(samples))
                window = torch.from_numpy(np.pad(samples, (0, short)))
                windows.append(F.layer_norm(window, window.shape) if self.normalise else window)
            counts.append(len(cut))
        return {
            "sound": pad_sequence(windows, batch_first=True),
            "lengths": torch.tensor([len(window) for window in windows]),
            "windows": index_windows(counts),
        }


@register_encoder("torchaudio")
class TorchaudioEncoder(Encoder):
    """A speech model of torchaudio, `torchaudio:WAV2VEC2_BASE`, `HUBERT_BASE`, `WAVLM_BASE` ...

    model: arguments of `torchaudio.models.wav2vec2_model`, or of `wavlm_model` for kind "WavLM"
    rate: in Hz; sound of any other is resampled
    normalise: give each window mean 0 and variance 1
    pool: "none" gives all frames (50 per second), "mean" their mean
    window_seconds: longer clips are encoded in windows whose frames follow each other

    The features are those of the last layer, what `model(waveforms)` gives without an ASR head.
    Raises `ValueError` for an unknown bundle or option, with the nearest valid one.
    """

    modality = "audio"
    source = "<BUNDLE>"

    def __init__(
        self,
        model: Mapping[str, Any],
        kind: str = "Wav2Vec2",
        rate: int = 16000,
        normalise: bool = False,
        pool: str = "none",
        window_seconds: float = 10.0,
    ) -> None:
        super().__init__()
        for what, chosen, valid in (("kind", kind, KINDS), ("pool", pool, POOLS)):
            if chosen not in valid:
                raise ValueError(f"unknown {what} {chosen!r}.{nearest(chosen, valid)}")
        if not window_seconds > 0:
            raise ValueError(f"window_seconds must be positive, found {window_seconds}")
        # A layer that is skipped at random would leave its parameters without a gradient.
        self.model = {**model, "encoder_layer_drop": 0.0, "aux_num_out": None}
        self.kind, self.rate, self.normalise = kind, rate, normalise
        self.pool, self.window_seconds = pool, window_seconds
        self.network = build(kind, self.model)
        transformer = self.network.encoder.transformer
        follow(transformer.dropout, transformer.pos_conv_embed)
        self.width = model["encoder_embed_dim"]
        shortest = receptive_field(self.network)
        self.collate = WaveformCollate(rate, window_seconds, normalise, shortest)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        pretrained: bool = True,
        weights_file: str | None = None,
        pool: str = "none",
        window_seconds: float = 10.0,
    ) -> TorchaudioEncoder:
        """A bundle of `torchaudio.pipelines` with its weights, which torchaudio downloads.

        pretrained: false gives random weights
        weights_file: a local state dict of the bundle's model (safetensors or torch), instead
        """
        from torchaudio import pipelines
        from torchaudio.pipelines import Wav2Vec2Bundle

        known = {n: b for n, b in vars(pipelines).items() if isinstance(b, Wav2Vec2Bundle)}
        if source not in known:
            raise ValueError(f"unknown torchaudio bundle {source!r}.{nearest(source, known)}")
        bundle: Any = known[source]
        encoder = cls(
            bundle._params,
            bundle._model_type,
            int(bundle.sample_rate),
            bundle._normalize_waveform,
            pool,
            window_seconds,
        )
        if weights_file or pretrained:
            if weights_file:
                state = read_weights(weights_file)
            else:
                # By itself torchaudio would unpickle whatever the file holds.
                state = bundle._get_state_dict({"weights_only": True})
            fill(encoder.network, state, weights_file or source, without=("aux.",))
            encoder.pretrained = True
        return encoder

    @property
    def stages(self) -> list[nn.Module]:
        encoder = self.network.encoder
        transformer = encoder.transformer
        before = [encoder.feature_projection, transformer.pos_conv_embed]
        *layers, last = transformer.layers
        # This norm comes first or last, and torchaudio's flag names the layers, not the model.
        if transformer.layer_norm_first:
            before.append(transformer.layer_norm)
        else:
            last = nn.ModuleList([last, transformer.layer_norm])
        return [self.network.feature_extractor, nn.ModuleList(before), *layers, last]

    @property
    def cuts(self) -> Sequence[int]:
        if self.kind == "WavLM":
            return ()  # its first layer makes the relative positions that all layers read
        return range(2, len(self.stages))

    def forward(self, sound: Tensor, lengths: Tensor, windows: Tensor) -> Features:
        """sound (W, L), lengths (W,), windows (B, K) of each row -> tokens (B, T, width)."""
        return self._pooled(Features(*join_windows(*self._encode(sound, lengths), windows)))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        tokens, mask = self._encode(inputs["sound"], inputs["lengths"], depth)
        return Features(*join_windows(tokens, mask, inputs["windows"]))

    def above(self, depth: int, activations: Features) -> Features:
        length = torch.tensor([round(self.rate * self.window_seconds)])
        tokens, mask, windows = part_windows(activations, int(self._frames(length)))
        tokens = self._layers(tokens, mask, depth - 2, None)
        return self._pooled(Features(*join_windows(tokens, mask, windows)))

    def _encode(
        self, sound: Tensor, lengths: Tensor, depth: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(W, L), (W,) -> tokens (W, T, D) that enter stage `depth`, or leave, and mask (W, T)."""
        frames = self._frames(lengths)  # (W,)
        if self.kind == "Wav2Vec2" and not self._sees_padding():
            tokens = self._run(sound, frames, depth)
        else:
            tokens = self._by_length(sound, lengths, frames, depth)
        # At a cut, each window but the last is full: no padding beyond the longest of them.
        tokens = tokens[:, : int(self._frames(torch.tensor(sound.shape[1])))]
        mask = torch.arange(tokens.shape[1], device=sound.device) < frames.unsqueeze(1)
        return tokens, mask

    def _by_length(
        self, sound: Tensor, lengths: Tensor, frames: Tensor, depth: int | None
    ) -> Tensor:
        """Windows of one length, in quarters of a second, go together.

        Group norm sees padding, WavLM takes no mask: so no other clip changes what a clip is
        padded with.
        """
        quarter = self.rate // 4
        rounded = [math.ceil(n / quarter) * quarter for n in lengths.tolist()]
        sound = F.pad(sound, (0, max(rounded) - sound.shape[1]))
        parts = {}
        for length in sorted(set(rounded), reverse=True):
            chosen = [w for w, n in enumerate(rounded) if n == length]
            which = torch.tensor(chosen, device=sound.device)
            parts[length] = which, self._run(sound[which, :length], frames[which], depth)
        longest = parts[max(rounded)][1]
        tokens = longest.new_zeros(len(rounded), *longest.shape[1:])
        for which, found in parts.values():
            padded = F.pad(found, (0, 0, 0, tokens.shape[1] - found.shape[1]))
            tokens = tokens.index_copy(0, which, padded)
        return tokens

    def _run(self, sound: Tensor, frames: Tensor, depth: int | None) -> Tensor:
        encoder = self.network.encoder
        features, _ = self.network.feature_extractor(sound, None)  # (W, T, C)
        x = encoder.feature_projection(features)
        mask = torch.arange(x.shape[1], device=x.device) < frames.unsqueeze(1)
        if self.kind == "Wav2Vec2":
            x = x * mask.unsqueeze(-1)  # the convolution of the positions must not see padding
        return self._layers(encoder.transformer._preprocess(x), mask, 0, depth)

    def _layers(self, x: Tensor, mask: Tensor, first: int, depth: int | None) -> Tensor:
        """The transformer's layers from `first` on, up to the one that is stage `depth`."""
        transformer = self.network.encoder.transformer
        bias = None
        if self.kind == "Wav2Vec2":
            shape = (len(x), 1, x.shape[1], x.shape[1])
            bias = torch.where(mask, 0.0, -10000.0).to(x.dtype)[:, None, None].expand(shape)
        position = None
        layers = list(transformer.layers)
        for layer in layers[first : None if depth is None else depth - 2]:
            x, position = layer(x, bias, position_bias=position)
        if depth is None and not transformer.layer_norm_first:
            x = transformer.layer_norm(x)
        return x

    def _frames(self, lengths: Tensor) -> Tensor:
        """Samples -> frames that the convolutions make of them."""
        for layer in self.network.feature_extractor.conv_layers:
            lengths = (lengths - layer.kernel_size).div(layer.stride, rounding_mode="floor") + 1
        return lengths.clamp_min(0)

    def _sees_padding(self) -> bool:
        return any(isinstance(m, nn.GroupNorm) for m in self.network.feature_extractor.modules())

    def _pooled(self, features: Features) -> Features:
        return features.pool() if self.pool == "mean" else features


def build(kind: str, model: Mapping[str, Any]) -> Any:
    from torchaudio.models import wav2vec2_model, wavlm_model

    return (wav2vec2_model if kind == "Wav2Vec2" else wavlm_model)(**model)


def receptive_field(network: Any) -> int:
    """Samples that make one frame."""
    samples = 1
    for layer in reversed(network.feature_extractor.conv_layers):
        samples = (samples - 1) * layer.stride + layer.kernel_size
    return samples
