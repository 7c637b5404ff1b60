"""KWT against the published values, a front end written out by hand, and long clips."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.encoders.keyword_transformer import MFCC, KeywordTransformer
from mmtransfer.testing import check_encoder

SMALL = {
    "sample_rate": 1000,
    "num_samples": 1000,
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
    "num_tokens": 20,
}


def small(**options: Any) -> KeywordTransformer:
    """An untrained KWT with a front end that hears something."""
    torch.manual_seed(0)
    encoder = KeywordTransformer(SMALL, **options)
    frontend = encoder.frontend
    frontend.window.copy_(torch.hann_window(100))
    frontend.mel.copy_(torch.rand(12, 60))
    frontend.dct.copy_(torch.randn(6, 12) / 10)
    return encoder.eval()


def noise(seconds: float, seed: int = 0, rate: int = 1000) -> Waveform:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate))
    return Waveform(samples.astype(np.float32), rate)


@pytest.fixture(scope="module")
def directory(shared: Path) -> Path:
    return shared / "models" / "kwt1-speech-commands"


@pytest.fixture(scope="module")
def reference(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "reference.safetensors")


@pytest.fixture(scope="module")
def kwt(directory: Path) -> Callable[[str], Encoder]:
    return lambda tokens: build_encoder(f"kwt:{directory}?tokens={tokens}").eval()


def test_the_published_values_come_out(
    kwt: Callable[[str], Any], reference: dict[str, Tensor]
) -> None:
    encoder = kwt("frames")
    values = [Waveform(samples.numpy(), 16000) for samples in reference["waveform"]]
    inputs = encoder.collate(values)
    assert torch.equal(inputs["samples"], reference["waveform"])
    with torch.no_grad():
        mfcc = encoder.frontend(inputs["samples"])
        features = encoder(**inputs)
    assert features.mask.all()
    torch.testing.assert_close(mfcc, reference["mfcc"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.tokens, reference["tokens"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.tokens[:, 0], reference["cls"], atol=1e-4, rtol=0)


def test_the_three_choices_of_tokens_are_views_of_the_same(
    kwt: Callable[[str], Any], reference: dict[str, Tensor]
) -> None:
    values = [Waveform(samples.numpy(), 16000) for samples in reference["waveform"]]
    with torch.no_grad():
        given = {t: kwt(t)(**kwt(t).collate(values)).tokens for t in ("class", "mean", "frames")}
    tokens = reference["tokens"]
    both = torch.cat([tokens[:, :1], tokens[:, 1:].mean(1, keepdim=True)], -1)
    torch.testing.assert_close(given["class"], tokens[:, :1], atol=1e-4, rtol=0)
    torch.testing.assert_close(given["mean"], both, atol=1e-4, rtol=0)
    assert (kwt("class").width, kwt("mean").width) == (64, 128)


def test_the_real_encoder_keeps_the_contract(
    kwt: Callable[[str], Any], clip: Callable[..., bytes]
) -> None:
    check_encoder(kwt("mean"), [clip(0, 0.4), clip(1, 1.7), clip(2, 1.0, 8000)])


@pytest.mark.parametrize("tokens", ["class", "mean", "frames"])
def test_an_untrained_encoder_keeps_the_contract(tokens: str) -> None:
    check_encoder(small(tokens=tokens), [noise(0.3), noise(2.3, 1), noise(1.0, 2)])


def test_the_front_end_is_the_one_written_out_by_hand() -> None:
    generator = np.random.default_rng(0)
    frontend = MFCC(n_mels=5, n_bins=20, n_mfcc=3, frame=32, step=10, n_fft=64)
    window, mel = generator.random(32), generator.random((5, 20))
    dct, x = generator.normal(size=(3, 5)), generator.normal(size=(2, 100))
    for name, value in {"window": window, "mel": mel, "dct": dct}.items():
        frontend.get_buffer(name).copy_(torch.from_numpy(value))
    with torch.no_grad():
        found = frontend(torch.from_numpy(x).float())

    starts = range(0, 100 - 32 + 1, 10)
    assert found.shape == (2, len(starts), 3)
    n, k = np.arange(32), np.arange(20)
    fourier = np.exp(-2j * np.pi * np.outer(k, n) / 64)  # (bins, samples)
    for row in range(2):
        for t, start in enumerate(starts):
            spectrum = np.abs(fourier @ (x[row, start : start + 32] * window))
            expected = dct @ np.log(np.maximum(mel @ spectrum, 1e-12))
            np.testing.assert_allclose(found[row, t].numpy(), expected, atol=1e-4)


def test_silence_is_finite_and_its_gradient_too() -> None:
    encoder = small()
    features = encoder(**encoder.collate([Waveform(np.zeros(1000, np.float32), 1000)]))
    features.pooled().sum().backward()
    assert torch.isfinite(features.tokens).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_the_front_end_keeps_its_precision_under_autocast() -> None:
    encoder = small()
    samples = torch.from_numpy(noise(1.0).samples)[None]
    with torch.no_grad():
        plain = encoder.frontend(samples)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder.frontend(samples), plain)


def test_a_long_clip_gives_one_token_per_window_and_masks_the_rest() -> None:
    encoder = small(tokens="class", hop_seconds=0.5)
    clips = [noise(0.2), noise(1.0, 1), noise(1.01, 2), noise(2.3, 3)]
    inputs = encoder.collate(clips)
    features = encoder(**inputs)
    assert features.mask.sum(1).tolist() == [1, 1, 2, 4]
    # Each token is the class token of its window, cut by hand and padded with zeros.
    last = np.zeros(1000, np.float32)
    last[:800] = clips[3].samples[1500:]
    expected = encoder.encode(torch.from_numpy(last)[None])[0, 0]
    torch.testing.assert_close(features.tokens[3, 3], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hop_seconds", [0.5, 1.0, 0.3])
def test_nothing_of_a_long_clip_is_cut(hop_seconds: float) -> None:
    encoder = small(hop_seconds=hop_seconds)
    clip = noise(2.3)
    before = encoder(**encoder.collate([clip])).pooled()
    for start in range(0, 2300, 100):  # the last is the last 0.1 s
        changed = clip.samples.copy()
        changed[start : start + 100] *= 3
        after = encoder(**encoder.collate([Waveform(changed, 1000)])).pooled()
        assert (after - before).abs().max() > 1e-4, f"samples from {start} on are not heard"


def test_the_end_of_a_real_clip_is_heard(
    kwt: Callable[[str], Any], clip: Callable[..., bytes]
) -> None:
    encoder = kwt("mean")
    samples, _ = soundfile.read(io.BytesIO(clip(seconds=2.3)), dtype="float32")
    quiet = samples.copy()
    quiet[-4800:] = 0  # the last 0.3 s
    with torch.no_grad():
        a, b = (encoder(**encoder.collate([Waveform(s, 16000)])).pooled() for s in (samples, quiet))
    assert (a - b).abs().max() > 1e-2


def test_gradients_reach_every_weight_and_the_front_end_is_constant() -> None:
    encoder = small(tokens="frames")
    features = encoder(**encoder.collate([noise(1.5), noise(0.5, 1)]))
    # Not a plain sum: the last layer norm would give it a gradient of zero.
    (features.pooled() * torch.randn(2, 8)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().max() > 0, f"{name} gets no gradient"
    assert not any(name.startswith("frontend") for name, _ in encoder.named_parameters())


def test_stages_go_from_input_to_output_and_cover_every_parameter() -> None:
    encoder = small()
    assert encoder.stages == [encoder.stem, *encoder.blocks]
    covered = [id(p) for stage in encoder.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))


def test_a_saved_encoder_comes_back_with_its_options(tmp_path: Path) -> None:
    encoder = small(tokens="frames", hop_seconds=0.25)
    encoder.save(tmp_path)
    twin = Encoder.load(tmp_path)
    twin.load_state_dict(encoder.state_dict())
    inputs = twin.collate([noise(1.6)])
    assert inputs["samples"].shape[0] == 4
    assert torch.equal(twin.eval()(**inputs).tokens, encoder(**inputs).tokens)
    assert twin.fingerprint() == encoder.fingerprint()
    assert small(tokens="frames", hop_seconds=0.5).fingerprint() != encoder.fingerprint()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown tokens 'clas'.*mean 'class'"):
        KeywordTransformer(SMALL, tokens="clas")
    bounds = {0: "a number above zero", 1.5: "at most 1", 1e-9: "at least [0-9.e-]+"}
    for hop, expected in bounds.items():
        with pytest.raises(ValueError, match=f"hop_seconds must be {expected}, found {hop}"):
            KeywordTransformer(SMALL, hop_seconds=hop)
    with pytest.raises(FileNotFoundError, match=r"kwt:/no/such: no config\.json"):
        build_encoder("kwt:/no/such")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        build_encoder(f"kwt:{tmp_path}")
