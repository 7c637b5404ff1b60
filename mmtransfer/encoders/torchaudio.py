"""torchaudio's wav2vec 2.0, HuBERT and WavLM bundles."""

from __future__ import annotations

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
from mmtransfer.encoders.grouping import group_windows, renumbered, stack_groups
from mmtransfer.encoders.numbers import check_seconds
from mmtransfer.encoders.weights import fill, read_weights
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

KINDS = ("Wav2Vec2", "WavLM")
POOLS = ("none", "mean")


class WaveformCollate:
    """Sounds to `sound (W, L)`, `lengths (W,)` in samples and `windows (B, K)` of each row.

    normalise: each window has mean 0 and variance 1, as the large models were trained
    grouped: windows come in groups of one length (`grouping`), of models that see padding
    """

    def __init__(
        self, rate: int, seconds: float, normalise: bool, shortest: int, grouped: bool
    ) -> None:
        self.rate, self.length, self.normalise = rate, round(rate * seconds), normalise
        self.shortest, self.grouped = shortest, grouped

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
        sound, index = pad_sequence(windows, batch_first=True), index_windows(counts)
        lengths = [len(window) for window in windows]
        if not self.grouped:
            return {"sound": sound, "lengths": torch.tensor(lengths), "windows": index}
        groups, order = group_windows(sound, lengths, self.rate)
        ordered = torch.tensor([lengths[w] for w in order])
        return {**groups, "lengths": ordered, "windows": renumbered(index, order)}


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
        # A layer that is skipped at random would leave its parameters without a gradient.
        self.model = {**model, "encoder_layer_drop": 0.0, "aux_num_out": None}
        self.kind, self.rate, self.normalise = kind, rate, normalise
        self.pool, self.window_seconds = pool, window_seconds
        self.network = build(kind, self.model)
        transformer = self.network.encoder.transformer
        follow(transformer.dropout, transformer.pos_conv_embed)
        self.width = model["encoder_embed_dim"]
        shortest = receptive_field(self.network)
        check_seconds("window_seconds", window_seconds, rate, shortest)
        # Group norm sees padding, WavLM takes no mask.
        grouped = kind == "WavLM" or self._sees_padding()
        self.collate = WaveformCollate(rate, window_seconds, normalise, shortest, grouped)

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

    def forward(self, lengths: Tensor, windows: Tensor, **sounds: Tensor) -> Features:
        """sounds (N, L) by group, lengths (W,), windows (B, K) -> tokens (B, T, width)."""
        tokens, mask = self._encode(list(sounds.values()), lengths)
        return self._pooled(Features(*join_windows(tokens, mask, windows)))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        sounds = [value for name, value in inputs.items() if name not in ("lengths", "windows")]
        tokens, mask = self._encode(sounds, inputs["lengths"], depth)
        return Features(*join_windows(tokens, mask, inputs["windows"]))

    def above(self, depth: int, activations: Features) -> Features:
        tokens, mask, windows, _ = part_windows(activations, self._longest)
        tokens = self._layers(tokens, mask, depth - 2, None)
        return self._pooled(Features(*join_windows(tokens, mask, windows)))

    def _encode(
        self, sounds: Sequence[Tensor], lengths: Tensor, depth: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(N, L) by group, (W,) -> tokens (W, T, D) that enter stage `depth`, or leave; mask."""
        frames = self._frames(lengths)  # (W,)
        parts = frames.split([len(sound) for sound in sounds])
        found = [self._run(s, f, depth) for s, f in zip(sounds, parts, strict=True)]
        # At a cut, each window but the last is full: no padding beyond the longest of them.
        tokens = stack_groups(found)[0][:, : self._longest]
        mask = torch.arange(tokens.shape[1], device=tokens.device) < frames.unsqueeze(1)
        return tokens, mask

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

    @property
    def _longest(self) -> int:
        """Frames of a full window."""
        return int(self._frames(round(self.rate * self.window_seconds)))

    def _frames(self, samples: Any) -> Any:
        """Samples, a number or (W,) of it, -> frames that the convolutions make of them."""
        for layer in self.network.feature_extractor.conv_layers:
            samples = (samples - layer.kernel_size) // layer.stride + 1
        return samples.clamp_min(0) if isinstance(samples, Tensor) else max(0, samples)

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
