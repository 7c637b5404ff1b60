"""Raw values to pictures and sounds: the same content in every form, and nothing is lost."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmtransfer.encoders.decoding import (
    Waveform,
    decode_audio,
    decode_image,
    decode_text,
    index_windows,
    join_windows,
    split_windows,
)

Maker = Callable[..., bytes]


@given(st.integers(1, 500), st.integers(1, 60), st.data())
@settings(deadline=None)
def test_windows_lose_no_sample_and_start_every_hop(
    total: int, length: int, data: st.DataObject
) -> None:
    hop = data.draw(st.integers(1, length))
    windows = split_windows(np.arange(total), length, hop)
    covered: set[int] = set()
    for number, window in enumerate(windows):
        assert 0 < len(window) <= length
        assert window[0] == number * hop
        assert (np.diff(window) == 1).all()
        covered.update(window.tolist())
    assert covered == set(range(total))
    # All windows but the last are full, and the one before the last did not reach the end.
    assert all(len(window) == length for window in windows[:-1])
    assert len(windows) == 1 or windows[-2][-1] < total - 1


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
@settings(deadline=None)
def test_joined_windows_are_each_rows_tokens_in_order(
    counts: list[int], length: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    windows = index_windows(counts)
    tokens = torch.randn(len(owner), length, 2, generator=generator)
    mask = torch.rand(len(owner), length, generator=generator) < 0.7
    joined, real = join_windows(tokens, mask, windows)
    assert joined.shape == (len(counts), max(counts) * length, 2)
    for row, count in enumerate(counts):
        mine = owner == row
        assert torch.equal(joined[row, : count * length], tokens[mine].flatten(0, 1))
        assert torch.equal(real[row, : count * length], mask[mine].flatten())
        assert not real[row, count * length :].any()
    assert real.sum() == mask.sum()


def test_joined_windows_pass_gradients_back_to_every_token() -> None:
    tokens = torch.randn(4, 2, 3, requires_grad=True)
    mask = torch.ones(4, 2, dtype=torch.bool)
    joined, _ = join_windows(tokens, mask, index_windows([1, 3]))
    joined.sum().backward()
    assert torch.equal(tokens.grad, torch.ones_like(tokens))


def test_a_picture_is_the_same_in_every_form(picture: Maker, tmp_path: Path) -> None:
    png = picture(seed=3)
    path = tmp_path / "picture.png"
    path.write_bytes(png)
    opened = Image.open(io.BytesIO(png))
    forms = [
        png,
        bytearray(png),
        memoryview(png),
        str(path),
        path,
        {"bytes": png, "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": png, "path": "no/longer/there.png"},
        opened,
        np.asarray(opened),
    ]
    expected = np.asarray(opened.convert("RGB"))
    for form in forms:
        decoded = decode_image(form)
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (5, 4), "white").convert(mode)
    decoded = decode_image(image)
    assert decoded.mode == "RGB"
    assert (np.asarray(decoded) == 255).all()


def test_a_grey_array_becomes_three_equal_channels() -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert np.array_equal(np.asarray(decode_image(grey)), np.stack([grey] * 3, -1))


def test_a_photo_is_turned_the_way_its_camera_says() -> None:
    # As datasets.Image and transformers' load_image do: telephones store upright photos sideways.
    upright = Image.new("RGB", (6, 4), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see it upright
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", exif=exif)
    assert decode_image(buffer.getvalue()).size == (4, 6)


def test_a_16_bit_picture_keeps_its_contrast() -> None:
    # X-rays and depth maps come as 16-bit PNG; clipping at 255 would make them white.
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    values = np.asarray(decode_image(buffer.getvalue()))[..., 0].astype(int)
    assert np.abs(values - grey / 257).max() <= 1


def test_a_damaged_picture_raises_and_never_becomes_a_blank_one(picture: Maker) -> None:
    png = picture(seed=1)
    for damaged in (b"", b"no picture at all", png[: len(png) // 2]):
        with pytest.raises((ValueError, OSError)):
            decode_image(damaged)


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
def test_a_missing_file_and_a_wrong_type_are_named(decode: Callable[..., object]) -> None:
    with pytest.raises(FileNotFoundError, match="'no/such/file'"):
        decode("no/such/file")
    with pytest.raises(TypeError, match="found int"):
        decode(3)


def test_a_sound_is_the_same_in_every_form(clip: Maker, tmp_path: Path) -> None:
    wav = clip(seed=2, seconds=0.1)
    path = tmp_path / "clip.wav"
    path.write_bytes(wav)
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    forms = [
        wav,
        str(path),
        path,
        {"bytes": wav, "path": None},
        {"bytes": None, "path": str(path)},
        {"array": samples.tolist(), "sampling_rate": rate},
        {"array": samples, "sampling_rate": rate},
        Waveform(samples, rate),
    ]
    for form in forms:
        decoded = decode_audio(form)
        assert decoded.rate == rate
        assert decoded.samples.dtype == np.float32
        assert np.array_equal(decoded.samples, samples)


@pytest.mark.parametrize("channels_first", [False, True])
def test_channels_are_averaged(channels_first: bool) -> None:
    stereo = np.random.default_rng(0).normal(0, 0.1, (800, 2)).astype(np.float32)
    if channels_first:
        decoded = decode_audio({"array": stereo.T, "sampling_rate": 8000})
    else:
        buffer = io.BytesIO()
        soundfile.write(buffer, stereo, 8000, format="WAV", subtype="FLOAT")
        decoded = decode_audio(buffer.getvalue())
    np.testing.assert_allclose(decoded.samples, stereo.mean(1), atol=1e-7)


def test_resampling_keeps_duration_and_pitch() -> None:
    seconds, pitch = 0.5, 440
    tone = np.sin(2 * np.pi * pitch * np.arange(int(44100 * seconds)) / 44100).astype(np.float32)
    resampled = Waveform(tone, 44100).at(16000)
    assert len(resampled) == 16000 * seconds
    assert np.abs(np.fft.rfft(resampled)).argmax() / seconds == pitch
    assert np.abs(resampled[1000:-1000]).max() == pytest.approx(1, abs=0.02)
    assert Waveform(tone, 44100).at(44100) is tone


@pytest.mark.parametrize(
    ("samples", "reason"),
    [([], "no samples"), ([0.0, float("nan")], "not finite"), ([float("inf")], "not finite")],
)
def test_a_sound_without_finite_samples_is_refused(samples: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_audio({"array": samples, "sampling_rate": 16000})


def test_noise_in_place_of_a_sound_file_is_refused(clip: Maker) -> None:
    for damaged in (b"", b"no sound at all", clip()[:20]):
        with pytest.raises(ValueError, match=r"sound file|no samples"):
            decode_audio(damaged)


def test_text_is_text_and_nothing_else() -> None:
    assert decode_text("a label") == "a label"
    for value in (3, b"bytes", 1.5, ["a"]):
        with pytest.raises(TypeError, match=f"found {type(value).__name__}"):
            decode_text(value)
