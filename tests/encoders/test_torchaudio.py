"""torchaudio: features are those of the plain models, clip by clip, whatever is in the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torchaudio import pipelines

from mmtransfer.encoders.base import build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.encoders.torchaudio import TorchaudioEncoder
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.base import build_task
from mmtransfer.testing import check_encoder
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import build_strategy

RATE = 1600
SMALL: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(8, 10, 5), (8, 3, 2), (8, 2, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 3,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 24,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.5,
}
LARGE = SMALL | {
    "extractor_mode": "layer_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
}
WAVLM = SMALL | {"encoder_num_buckets": 16, "encoder_max_distance": 40}
FAMILIES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "base": (SMALL, "Wav2Vec2", False),
    "large": (LARGE, "Wav2Vec2", True),
    "wavlm": (WAVLM, "WavLM", False),
}


def small(family: str, **options: Any) -> TorchaudioEncoder:
    torch.manual_seed(0)
    params, kind, normalise = FAMILIES[family]
    return TorchaudioEncoder(params, kind, RATE, normalise, **options).eval()


def plain(family: str, encoder: TorchaudioEncoder) -> Any:
    params, kind, _ = FAMILIES[family]
    build = {"Wav2Vec2": torchaudio.models.wav2vec2_model, "WavLM": torchaudio.models.wavlm_model}
    model = build[kind](**params, aux_num_out=None).eval()
    model.load_state_dict(encoder.network.state_dict())
    return model


def noise(seconds: float, seed: int = 0) -> Waveform:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    return Waveform(samples.astype(np.float32), RATE)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_plain_model_on_each_clip_alone(family: str) -> None:
    encoder = small(family)
    model = plain(family, encoder)
    clips = [noise(0.5), noise(1.25, 1), noise(0.5, 2), noise(2.0, 3)]
    with torch.no_grad():
        features = encoder(**encoder.collate(clips))
        for row, clip in enumerate(clips):
            samples = torch.from_numpy(clip.samples)[None]
            samples = F.layer_norm(samples, samples.shape) if family == "large" else samples
            expected, _ = model(samples)
            assert_close(features.tokens[row, features.mask[row]], expected[0])


def test_lengths_mean_what_they_mean_to_the_plain_model() -> None:
    encoder = small("large")
    model = plain("large", encoder)
    inputs = encoder.collate([noise(0.331), noise(1.1, 1)])
    with torch.no_grad():
        features = encoder(**inputs)
        expected, frames = model(inputs["sound"], inputs["lengths"])
        levels, _ = model.extract_features(inputs["sound"], inputs["lengths"])
        last = model.encoder.transformer.layer_norm(levels[-1])
    assert features.mask.sum(1).tolist() == frames.tolist()
    for row, count in enumerate(frames):
        assert_close(features.tokens[row, :count], expected[row, :count])
        assert_close(features.tokens[row, :count], last[row, :count])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pool", ["none", "mean"])
def test_the_contract_is_kept(family: str, pool: str) -> None:
    encoder = small(family, pool=pool, window_seconds=0.8)
    covered = [id(p) for stage in encoder.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))
    assert len(encoder.stages) == 5
    assert list(encoder.cuts) == ([] if family == "wavlm" else [2, 3, 4])
    clips = [noise(0.3), noise(2.11, 1), noise(0.001, 2), noise(0.8, 3)]
    check_encoder(encoder, clips, tolerance=1e-5)


def test_a_long_clip_is_the_row_of_its_windows() -> None:
    encoder = small("base", window_seconds=0.5)
    clip = noise(1.25)
    whole = encoder(**encoder.collate([clip])).tokens[0]
    cut = [Waveform(clip.samples[i : i + 800], RATE) for i in (0, 800, 1600)]
    parts = encoder(**encoder.collate(cut))
    pieces = [tokens[mask] for tokens, mask in zip(parts.tokens, parts.mask, strict=True)]
    torch.testing.assert_close(whole[: len(torch.cat(pieces))], torch.cat(pieces))


def test_a_bundle_comes_with_its_weights_rate_and_normalisation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle: Any = pipelines.WAV2VEC2_ASR_LARGE_LV60K_960H
    monkeypatch.setattr(bundle, "_params", {**LARGE, "aux_num_out": 7})
    model = torchaudio.models.wav2vec2_model(**bundle._params).eval()
    state = model.state_dict()

    def download(url: str, **options: Any) -> dict[str, Tensor]:
        assert options == {"weights_only": True}
        assert "wav2vec2" in url
        # Published with rows for symbols that the bundle does not use.
        rows = len(bundle._remove_aux_axis)
        aux = {n: torch.cat([t, t[:rows]]) for n, t in state.items() if n.startswith("aux.")}
        return {**state, **aux}

    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", download)
    encoder = build_encoder("torchaudio:WAV2VEC2_ASR_LARGE_LV60K_960H").eval()
    assert (encoder.pretrained, encoder.rate, encoder.width) == (True, 16000, 16)
    clip = noise(1.0)
    model.aux = None
    with torch.no_grad():
        at_16k = torch.from_numpy(clip.at(16000))[None]
        expected, _ = model(F.layer_norm(at_16k, at_16k.shape))
        assert_close(encoder(**encoder.collate([clip])).tokens, expected)

    save_file(state, tmp_path / "own.safetensors")
    file = str(tmp_path / "own.safetensors")
    again = build_encoder("torchaudio:WAV2VEC2_ASR_LARGE_LV60K_960H", weights_file=file)
    assert again.fingerprint() == encoder.fingerprint()


def test_all_speech_bundles_are_known_and_can_be_built_without_weights() -> None:
    with torch.device("meta"):
        for name in ("WAV2VEC2_BASE", "HUBERT_BASE", "WAVLM_BASE", "WAV2VEC2_LARGE_LV60K"):
            encoder = build_encoder(f"torchaudio:{name}?pretrained=false")
            assert encoder.width == (1024 if "LARGE" in name else 768)
            assert encoder.collate.shortest == 400


def test_a_saved_model_comes_back(tmp_path: Path, clip: Callable[..., bytes]) -> None:
    encoder = small("large", pool="mean")
    fusion = build_fusion("concat", {"audio": encoder.width}, 8)
    task = build_task("classification", classes=["a", "b"])
    model = TransferModel({"audio": encoder}, fusion, {"kind": task}).eval()
    model.save_pretrained(tmp_path)
    again = TransferModel.from_pretrained(tmp_path)
    rows = [{"audio": clip(k, seconds=0.3 + 0.2 * k)} for k in range(3)]
    assert again.predict(rows) == model.predict(rows)
    assert again.encoders["audio"].fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_it_trains(strategy: str, clip: Callable[..., bytes]) -> None:
    rows = [{"audio": clip(k, seconds=0.2 + 0.1 * k), "kind": "ab"[k % 2]} for k in range(6)]
    model = build_model({"audio": small("base")}, {"kind": "classification"}, rows, width=8)
    before = {n: p.clone() for n, p in model.encoders.named_parameters()}
    options = TrainingOptions(batch_size=3, workers=0)
    run(model, {"train": rows}, build_strategy(strategy, epochs=1), options)
    moved = {n for n, p in model.encoders.named_parameters() if not torch.equal(p, before[n])}
    assert bool(moved) == (strategy == "full")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchaudio", "torchaudio:<BUNDLE>"),
        ("torchaudio:WAV2VEC_BASE", "unknown torchaudio bundle.*mean 'WAV2VEC2_BASE'"),
        ("torchaudio:HDEMUCS_HIGH_MUSDB", "unknown torchaudio bundle"),
        ("torchaudio:HUBERT_BASE?pools=mean", "no option 'pools'.*mean 'pool'"),
    ],
)
def test_mistakes_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(spec)


def test_mistakes_in_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown pool 'man'.*mean 'mean'"):
        small("base", pool="man")
    with pytest.raises(ValueError, match="unknown kind 'Wavlm'.*mean 'WavLM'"):
        TorchaudioEncoder(SMALL, "Wavlm")
    for seconds in (0, -1, float("nan"), float("inf"), "long", True):
        with pytest.raises(ValueError, match=f"window_seconds must be a number .*{seconds!r}"):
            small("base", window_seconds=seconds)
    with pytest.raises(ValueError, match="at least 0.01875, found 0.018"):
        small("base", window_seconds=0.018)
