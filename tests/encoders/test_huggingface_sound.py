"""Sound through transformers models: windows, padding, and which frames are real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from mmtransfer.encoders.base import build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.testing import check_encoder

Maker = Callable[..., bytes]


def test_group_norm_does_not_let_clips_change_each_other(
    made: Callable[[str], Any], clip: Maker
) -> None:
    """Unlike in a padded batch of transformers, whose group norm sees the padding."""
    encoder = build_encoder(f"hf:{made('wav2vec2-group').directory}")
    check_encoder(encoder, [clip(0, 0.6, 4000), clip(1, 0.31, 4000), clip(2, 1.1, 4000)])


@pytest.mark.parametrize("name", ["wav2vec2-layer", "wav2vec2-group"])
def test_half_precision_checkpoints_are_trained_in_full(
    name: str, made: Callable[[str], Any], tmp_path: Path, clip: Maker
) -> None:
    kind = made(name)
    AutoModel.from_pretrained(kind.directory).to(torch.bfloat16).save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(kind.directory).save_pretrained(tmp_path)
    encoder = build_encoder(f"hf:{tmp_path}").eval()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder(**encoder.collate([clip(0, 0.5, 4000)])).tokens.dtype == torch.float32


@pytest.mark.parametrize("name", ["wav2vec2-layer", "wav2vec2-group"])
def test_long_clips_are_encoded_window_by_window(name: str, made: Callable[[str], Any]) -> None:
    # Windows of 0.5 s: three for a clip of 1.5 s, each encoded as a clip of its own.
    kind = made(name)
    samples = np.random.default_rng(0).normal(0, 0.1, 6000).astype(np.float32)
    encoder = build_encoder(f"hf:{kind.directory}?window_seconds=0.5").eval()
    with torch.no_grad():
        whole = encoder(**encoder.collate([Waveform(samples, 4000)]))
        parts = [
            encoder(**encoder.collate([Waveform(samples[s : s + 2000], 4000)])).tokens[0]
            for s in (0, 2000, 4000)
        ]
    torch.testing.assert_close(whole.tokens[0], torch.cat(parts), atol=1e-5, rtol=1e-5)
    assert whole.mask.all()


@pytest.mark.parametrize("samples", [1, 2001, 2400])
def test_the_last_sliver_of_a_clip_is_heard(samples: int, made: Callable[[str], Any]) -> None:
    sound = np.full(samples, 0.1, np.float32) * np.random.default_rng(0).normal(size=samples)
    clips = [Waveform(sound.astype(np.float32), 4000), Waveform(np.ones(3000, np.float32), 4000)]
    directory = made("wav2vec2-layer").directory
    encoder = build_encoder(f"hf:{directory}?window_seconds=0.5").eval()
    features = encoder(**encoder.collate(clips))
    assert features.present.all()
    assert torch.isfinite(features.pooled()).all()
    one_window = Waveform(clips[0].samples[:2000], 4000)
    count = encoder(**encoder.collate([one_window])).mask.sum()
    assert (features.mask.sum(1)[0] > count) == (samples > 2000)


def noise(samples: int, rate: int = 16000) -> Waveform:
    values = np.random.default_rng(samples).normal(0, 0.1, samples)
    return Waveform(values.astype(np.float32), rate)


def test_only_frames_of_real_sound_count_for_whisper(made: Callable[[str], Any]) -> None:
    # A mel frame every 160 samples, two of them to a token.
    encoder = build_encoder(made("whisper").spec).eval()
    clips = [noise(16000), noise(8000), noise(8001), noise(8321), noise(30000)]
    features = encoder(**encoder.collate(clips))
    assert features.mask.sum(1).tolist() == [50, 25, 26, 27, 50 + 44]
    pooled = build_encoder(made("whisper").spec, pool="mean").eval()
    alone = features.tokens[1, :25].mean(0)
    torch.testing.assert_close(pooled(**pooled.collate(clips)).tokens[1, 0], alone)


@pytest.mark.parametrize(("name", "longest"), [("whisper", 1), ("ast", 0.655)])
def test_windows_are_no_longer_than_what_the_model_hears(
    name: str, longest: float, made: Callable[[str], Any]
) -> None:
    with pytest.raises(ValueError, match=rf"at most {longest}, found 1.5; longer clips become"):
        build_encoder(f"{made(name).spec}?window_seconds=1.5")
    whole = build_encoder(f"{made(name).spec}?window_seconds={longest}").eval()
    tokens = whole(**whole.collate([noise(round(longest * 16000))]))
    assert tokens.mask.all()


@pytest.mark.parametrize("name", ["wav2vec2-layer", "hubert-group", "wavlm-layer", "whisper"])
def test_no_layer_is_dropped_at_random(name: str, made: Callable[[str], Any]) -> None:
    encoder = build_encoder(made(name).spec).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for attention in encoder.modules():
        if hasattr(attention, "dropout") and isinstance(attention.dropout, float):
            attention.dropout = 0.0
    inputs = encoder.collate([noise(2000, encoder.processor.sampling_rate)])
    expected = encoder.eval()(**inputs).tokens
    encoder.train()
    for _ in range(10):
        torch.testing.assert_close(encoder(**inputs).tokens, expected)
