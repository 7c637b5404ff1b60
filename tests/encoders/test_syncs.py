"""Nothing that an encoder does in a training step waits for the device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmtransfer.data.collate import Stored as StoredRow
from mmtransfer.data.collate import activations, collate_stored
from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.encoders.keyword_transformer import KeywordTransformer
from mmtransfer.encoders.torchaudio import TorchaudioEncoder
from mmtransfer.encoders.vector import VectorEncoder
from mmtransfer.features import Features
from mmtransfer.testing import ForbidSyncs

RATE = 1600
SPEECH: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(8, 10, 5), (8, 3, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 24,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
}
KEYWORDS = {
    "sample_rate": RATE,
    "num_samples": 400,
    "frame_length": 100,
    "frame_step": 50,
    "n_fft": 128,
    "n_fft_bins": 60,
    "n_mels": 12,
    "n_mfcc": 6,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 16,
    "layer_norm_eps": 1e-6,
    "num_tokens": 8,
}


def table() -> VectorEncoder:
    encoder = VectorEncoder()
    encoder.fit([{"age": 20, "town": "Ulm"}, {"age": None, "town": "Bonn"}])
    return encoder


def speech(kind: str, **options: Any) -> TorchaudioEncoder:
    extra = {"encoder_num_buckets": 16, "encoder_max_distance": 40} if kind == "WavLM" else {}
    return TorchaudioEncoder(SPEECH | extra | options, kind, RATE, window_seconds=0.5)


OTHERS: dict[str, tuple[str, Callable[[], Encoder]]] = {
    "kwt": ("audio", lambda: KeywordTransformer(KEYWORDS)),
    "torchaudio-base": ("audio", lambda: speech("Wav2Vec2")),
    "torchaudio-large": ("audio", lambda: speech("Wav2Vec2", extractor_mode="layer_norm")),
    "torchaudio-wavlm": ("audio", lambda: speech("WavLM")),
    "spectrogram-cnn": (
        "audio",
        lambda: build_encoder("spectrogram-cnn?n_mels=16&widths=[4,8]", rate=RATE),
    ),
    "torchvision": ("image", lambda: build_encoder("torchvision:resnet18?size=32")),
    "small-cnn": ("image", lambda: build_encoder("small-cnn?size=32&widths=[4,8]")),
    "mlp": ("image", lambda: build_encoder("mlp?size=8&widths=[8,4]")),
    "vector": ("table", table),
}


def assert_no_wait(encoder: Encoder, values: list[Any]) -> None:
    inputs = encoder.train().collate(values)
    with ForbidSyncs():
        encoder(**inputs).pooled().sum().backward()
    for depth in list(encoder.cuts)[:: max(1, len(encoder.cuts) - 1)]:
        with torch.no_grad():
            found = encoder.below(depth, **inputs)
        pairs = zip(found.tokens, found.mask, strict=True)
        rows = [StoredRow(tokens[mask].numpy(), depth) for tokens, mask in pairs]
        stored = activations(rows, list(range(len(rows))))
        with ForbidSyncs():
            encoder.above(depth, stored.features).pooled().sum().backward()


def test_transformers(kind: Any, values: list[Any]) -> None:
    assert_no_wait(build_encoder(kind.spec), values)


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str, picture: Callable[..., bytes]) -> None:
    kind, build = OTHERS[name]
    torch.manual_seed(0)
    draw = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    values: dict[str, list[Any]] = {
        "audio": [Waveform(draw[:n], RATE) for n in (500, 2100, 810, 60)],
        "image": [picture(0, (60, 50)), picture(1, (40, 70))],
        "table": [{"age": 3, "town": "Ulm"}, {"age": None, "town": "Rom"}],
    }
    assert_no_wait(build(), values[kind])


def test_lengths_of_stored_rows_are_those_of_the_mask() -> None:
    rows = [StoredRow(np.ones((n, 2), np.float32)) for n in (3, 1)]
    found = collate_stored([(0, rows[0]), (2, rows[1])], 3)
    assert isinstance(found, Features)
    assert found.lengths == (3, 0, 1) == tuple(found.mask.sum(1).tolist())
    assert found.to("cpu").lengths == found.lengths
    assert found.pool().lengths is None
