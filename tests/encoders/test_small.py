"""mlp, small-cnn and spectrogram-cnn: shapes, padding, cuts, and that they learn."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.encoders.mlp import DenseEncoder
from mmtransfer.encoders.small_cnn import SmallCNN
from mmtransfer.encoders.spectrogram_cnn import SpectrogramCNN
from mmtransfer.model import TransferModel
from mmtransfer.testing import check_encoder
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

Maker = Callable[..., bytes]
RATE = 2000


def tone(pitch: float, seconds: float = 0.5, loudness: float = 0.3) -> Waveform:
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(round(pitch)).normal(0, 0.01, len(time))
    samples = loudness * (np.sin(2 * np.pi * pitch * time) + noise)
    return Waveform(samples.astype(np.float32), RATE)


def sound_encoder(**options: Any) -> SpectrogramCNN:
    torch.manual_seed(0)
    return SpectrogramCNN(RATE, n_mels=16, widths=(4, 6, 8), **options).eval()


def assert_covered(encoder: Encoder) -> None:
    covered = [id(p) for stage in encoder.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))
    assert list(encoder.cuts) == list(range(1, len(encoder.stages)))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_cnn_keeps_the_contract(channels: int, picture: Maker) -> None:
    torch.manual_seed(0)
    encoder = SmallCNN(size=24, channels=channels, widths=(6, 8, 10))
    assert_covered(encoder)
    check_encoder(encoder, [picture(0), picture(1, (90, 30)), picture(2, (10, 9))])
    inputs = encoder.collate([picture(0)])
    assert inputs["pixels"].shape == (1, channels, 24, 24)
    assert encoder(**inputs).tokens.shape == (1, 9, 10)
    mean = build_encoder(f"small-cnn?size=24&channels={channels}&widths=[6,8,10]&pool=mean")
    mean.load_state_dict(encoder.state_dict())
    pooled = mean.eval()(**inputs).tokens[:, 0]
    torch.testing.assert_close(pooled, encoder(**inputs).tokens.mean(1))


def test_small_cnn_at_an_odd_size_divides_too(picture: Maker) -> None:
    check_encoder(SmallCNN(size=29, widths=(4, 5, 6)), [picture(0), picture(1)])


def test_pictures_are_the_middle_square_between_minus_1_and_1() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for encoder in (SmallCNN(size=4, widths=(4,)), DenseEncoder(size=4, widths=[4])):
        found = encoder.collate([buffer.getvalue()])["pixels"]
        assert torch.equal(found, torch.ones(1, 3, 4, 4))


def test_mlp_keeps_the_contract_for_pictures_and_arrays(picture: Maker) -> None:
    torch.manual_seed(0)
    pictures = DenseEncoder(size=8, channels=1, widths=[12, 10, 6])
    assert pictures.modality == "image"
    assert_covered(pictures)
    check_encoder(pictures, [picture(0), picture(1)])
    arrays = DenseEncoder(shape=[3, 5], widths=[8, 4], mean=2.0, deviation=4.0)
    assert arrays.modality is None
    values = [np.random.default_rng(k).normal(size=(3, 5)) for k in range(3)]
    check_encoder(arrays, [*values, values[0].tolist()])
    found = arrays.collate(values[:1])["pixels"][0].numpy()
    np.testing.assert_allclose(found, (values[0] - 2) / 4, rtol=1e-5)
    first, second = (layer[0] for layer in arrays.layers)
    flat = torch.from_numpy(found).flatten()
    expected = second(first(flat).relu()).relu()
    torch.testing.assert_close(arrays.eval()(torch.from_numpy(found)[None]).tokens[0, 0], expected)


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_spectrogram_cnn_keeps_the_contract(pool: str) -> None:
    encoder = sound_encoder(pool=pool)
    assert_covered(encoder)
    clips = [tone(200, 0.5), tone(300, 0.01), tone(500, 1.37), tone(100, 0.2)]
    check_encoder(encoder, clips, tolerance=1e-5)
    assert encoder.width == 8 * 2


def test_batch_mates_do_not_matter_even_in_training() -> None:
    encoder = sound_encoder().train()
    clips = [tone(200, 0.31), tone(300, 1.2), tone(500, 0.05)]
    together = encoder(**encoder.collate(clips))
    for row, clip in enumerate(clips):
        alone = encoder(**encoder.collate([clip]))
        assert alone.mask.all()
        found = together.tokens[row, together.mask[row]]
        torch.testing.assert_close(found, alone.tokens[0], atol=1e-5, rtol=0)


def test_the_whole_clip_is_heard_and_gives_its_share_of_tokens() -> None:
    encoder = sound_encoder(pool="mean")
    clip = tone(200, 1.01)
    before = encoder(**encoder.collate([clip])).tokens
    for start in (0, 1000, 2000):  # the last is the last 10 ms
        changed = clip.samples.copy()
        changed[start:] += 0.2 * np.sin(np.arange(len(changed) - start)).astype(np.float32)
        after = encoder(**encoder.collate([Waveform(changed, RATE)])).tokens
        assert (after - before).abs().max() > 1e-4
    tokens = sound_encoder()
    lengths = [tokens(**tokens.collate([tone(200, s)])).mask.sum() for s in (0.8, 1.6, 3.2)]
    assert lengths[0] * 1.8 <= lengths[1] <= lengths[0] * 2.2
    assert lengths[1] * 1.8 <= lengths[2] <= lengths[1] * 2.2


def test_the_spectrogram_is_that_of_torchaudio_standardised_per_clip() -> None:
    encoder = sound_encoder()
    inputs = encoder.collate([tone(200, 0.5), tone(300, 0.2)])
    longest = int(inputs["frames"].max())
    mask = torch.arange(longest) < inputs["frames"].unsqueeze(1)
    found = encoder.log_mel(inputs["sound"], mask)
    for row, count in enumerate(inputs["frames"].tolist()):
        plain = encoder.spectrogram(inputs["sound"][row]).clamp_min(1e-10).log()[:, :count]
        expected = (plain - plain.mean()) / plain.std(correction=0)
        torch.testing.assert_close(found[row, :, :count], expected, atol=1e-3, rtol=1e-3)
        assert not found[row, :, count:].any()


def test_loudness_does_not_count_and_silence_is_finite() -> None:
    encoder = sound_encoder(pool="mean")

    def features(clip: Waveform) -> Tensor:
        return encoder(**encoder.collate([clip])).tokens

    whole = Waveform(tone(200, 0.432).samples, RATE)  # no frame of it is padded
    louder = Waveform(whole.samples * 3, RATE)
    torch.testing.assert_close(features(louder), features(whole), atol=0.05, rtol=0.05)
    silence = features(Waveform(np.zeros(900, np.float32), RATE))
    silence.sum().backward()
    assert torch.isfinite(silence).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


SPECS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "mlp": ("mlp?shape=[4]&widths=[16]", lambda k: np.full(4, k % 2, np.float32)),
    "small-cnn": (
        "small-cnn?size=8&widths=[8,8]&pool=mean",
        lambda k: np.full((8, 8, 3), 250 * (k % 2), np.uint8),
    ),
    "spectrogram-cnn": (
        f"spectrogram-cnn?rate={RATE}&n_mels=16&widths=[8,8]",
        lambda k: tone(150 + 500 * (k % 2) + k, 0.2 + 0.05 * (k % 4)),
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_they_learn_and_come_back(name: str, tmp_path: Path) -> None:
    spec, value = SPECS[name]
    rows = [{"x": value(k), "kind": "ab"[k % 2]} for k in range(24)]
    model = build_model({"x": spec}, {"kind": "classification"}, rows, width=16)
    options = TrainingOptions(batch_size=8, workers=0)
    frozen = {n: p.clone() for n, p in model.encoders.named_parameters()}
    run(model, {"train": rows}, build_strategy("linear_probe", epochs=1), options)
    assert all(torch.equal(p, frozen[n]) for n, p in model.encoders.named_parameters())
    plan = Strategy([Phase(epochs=10, lr=0.01, encoder_lr=0.01)])
    metrics = run(model, {"train": rows, "test": rows}, plan, options)
    assert metrics["test"]["kind"]["accuracy"] == 1.0
    model.save_pretrained(tmp_path)
    again = TransferModel.from_pretrained(tmp_path)
    assert again.predict(rows[:5]) == model.predict(rows[:5])
    assert again.encoders["x"].fingerprint() == model.encoders["x"].fingerprint()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("small-cnn?size=8", "size must be at least 16, found 8"),
        ("small-cnn?channels=2", r"channels must be 1 \(grey\) or 3 \(RGB\), found 2"),
        ("small-cnn?pool=means", "unknown pool 'means'.*mean 'mean'"),
        ("small-cnn?width=8", "no option 'width'.*mean 'widths'"),
        ("small-cnn?channels=0", r"channels must be 1 \(grey\) or 3 \(RGB\), found 0"),
        ("small-cnn?widths=[]", r"widths must list the widths of at least one layer, found \[\]"),
        ("small-cnn?widths=[8,0]", "widths must be a whole number above zero, found 0"),
        ("small-cnn?widths=[-4]", "widths must be a whole number above zero, found -4"),
        ("mlp?widths=[]", r"widths must list the widths of at least one layer, found \[\]"),
        ("mlp?widths=8", "widths must list the widths of at least one layer, found 8"),
        ("mlp?widths=[8,-1]", "widths must be a whole number above zero, found -1"),
        ("mlp?widths=[2.5]", "widths must be a whole number above zero, found 2.5"),
        ("mlp?channels=-3", r"channels must be 1 \(grey\) or 3 \(RGB\), found -3"),
        ("mlp?dropout=1", r"dropout must lie in \[0, 1\), found 1"),
        ("vector?width=0", "width must be a whole number above zero, found 0"),
        ("vector?hidden=[0]", "hidden must be a whole number above zero, found 0"),
        ("vector?hidden=8", "hidden must list the widths, found 8"),
        ("vector?max_categories=-1", "max_categories must be a whole number above zero, found -1"),
        ("spectrogram-cnn?widths=[0]", "widths must be a whole number above zero, found 0"),
        ("mlp?shape=[3]&deviation=0", "deviation must be a number above zero, found 0"),
        ("mlp?shape=[3]&mean=none", "mean must be a number, found "),
        ("spectrogram-cnn?hop_seconds=1e-5", "hop_seconds must be at least 6.25e-05, found 1e-05"),
        ("spectrogram-cnn?window_seconds=0", "window_seconds must be a number above zero, found 0"),
        ("spectrogram-cnn?n_mels=60", "n_mels must be a multiple of 16.*found 60"),
        ("spectrogram-cnn?pool=means", "unknown pool 'means'.*mean 'mean'"),
        ("spectrogram-cnn:large", "takes no argument, found 'large'"),
    ],
)
def test_mistakes_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(spec)


def test_an_array_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"has shape \(2, 2\), expected \(3,\)"):
        DenseEncoder(shape=[3]).collate([np.zeros((2, 2))])
