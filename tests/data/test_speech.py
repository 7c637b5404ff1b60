"""Voices are not shared between splits, and what is spoken has rate, peak and bytes as promised."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.random import default_rng

from mmtransfer.data import speech
from mmtransfer.data.speech import (
    ACCENTS,
    VARIANTS,
    Voice,
    check_program,
    encode_vorbis,
    mix,
    speak,
    voices,
)

VOICE = Voice("en-us", "f3")


@pytest.mark.parametrize("seed", range(3))
def test_no_voice_is_in_two_splits(seed: int) -> None:
    found = {split: voices(split, seed) for split in ("train", "val", "test")}
    variants = {split: {voice.variant for voice in chosen} for split, chosen in found.items()}
    assert sum(map(len, variants.values())) == len(set.union(*variants.values())) == 75
    assert len(set().union(*found.values())) == 7 * 75
    for split, share in (("train", 0.5), ("val", 0.1), ("test", 0.4)):
        assert len(variants[split]) == pytest.approx(share * 75, abs=1)
        assert set(Counter(voice.variant for voice in found[split]).values()) == {7}
    assert voices("train", seed) == found["train"]
    assert voices("train", seed + 1) != found["train"]


def test_vorbis_has_the_same_bytes_each_time() -> None:
    """libsndfile numbers each stream by the clock; a wrong check sum of a page is unreadable."""
    samples = 0.5 * np.sin(np.arange(30000) / 7)
    plain = io.BytesIO()
    soundfile.write(plain, samples, 16000, format="OGG", subtype="VORBIS")
    first = encode_vorbis(samples)
    assert first == encode_vorbis(samples)
    read, rate = soundfile.read(io.BytesIO(first))
    plain.seek(0)
    np.testing.assert_array_equal(read, soundfile.read(plain)[0])
    assert rate == 16000


def test_a_little_silence_surrounds_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "SNR", (40.0, 40.0))
    said = np.ones(8000, np.float32)
    for seed in range(20):
        mixed = mix(said, default_rng(seed))
        assert 0.1 <= (len(mixed) - len(said)) / 16000 <= 0.6
        assert np.abs(mixed).max() == pytest.approx(0.7)
        loud = np.flatnonzero(mixed > 0.35)
        assert 0.04 < loud[0] / 16000 < 0.31


def test_noise_is_low_passed_between_2_and_25_decibels() -> None:
    said = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    ratios = []
    for seed in range(40):
        mixed = mix(said, default_rng(seed))
        power = np.abs(np.fft.rfft(mixed)) ** 2
        hertz = np.fft.rfftfreq(len(mixed), 1 / 16000)
        tone = np.abs(hertz - 1000) < 60
        ratios.append(10 * np.log10(power[tone].sum() / power[~tone].sum()))
        assert power[hertz > 6000].mean() < 0.1 * power[hertz < 500].mean()
    assert min(ratios) > 1
    assert max(ratios) < 26
    assert np.ptp(ratios) > 15


def test_phrase_voice_speed_and_pitch_reach_the_program(espeak: Path) -> None:
    rng = default_rng(0)
    for _ in range(6):
        speak("-v; rm $HOME", VOICE, rng)
    calls = [line.split("|") for line in espeak.read_text().splitlines()]
    for call in calls:
        assert call[:3:2] == ["-v", "-s"]
        assert call[1] == "en-us+f3"
        assert 140 <= int(call[3]) <= 210
        assert 25 <= int(call[5]) <= 75
        assert call[-2:] == ["--", "-v; rm $HOME"]  # a phrase, whatever it looks like
    assert len({tuple(call[:6]) for call in calls}) == 6
    assert not Path(calls[0][7]).exists()


def test_without_the_program_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install espeak-ng"):
        check_program()


def test_a_voice_that_the_program_lacks_is_named(
    espeak: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_program() == "eSpeak NG text-to-speech: 0.0"
    monkeypatch.setattr(speech, "VARIANTS", (*VARIANTS, "f33"))
    with pytest.raises(ValueError, match="0.0 has no voice variant 'f33'; version 1.51"):
        check_program()


def test_a_failure_of_the_program_is_shown(espeak: Path) -> None:
    program = espeak.parent / "bin" / "espeak-ng"
    program.write_text("#!/bin/sh\necho it broke >&2\nexit 3\n")
    with pytest.raises(ValueError, match="espeak-ng .*en-us.f3.* ended with code 3: it broke"):
        speak("pear", VOICE, default_rng(0))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_the_real_program_speaks_in_all_voices() -> None:
    try:
        check_program()
    except ValueError as error:
        pytest.skip(f"another version: {error}")
    spoken = {speak("pear", Voice(ACCENTS[0], v), default_rng(0)) for v in VARIANTS[:5]}
    spoken |= {speak("pear", Voice(accent, "f2"), default_rng(0)) for accent in ACCENTS}
    assert len(spoken) == 5 + len(ACCENTS)  # it ignores variants that it does not know
    assert speak("pear", VOICE, default_rng(1)) == speak("pear", VOICE, default_rng(1))
    samples, rate = soundfile.read(io.BytesIO(speak("pear", VOICE, default_rng(1))))
    assert rate == 16000
    assert 0.3 < len(samples) / rate < 2
    assert np.abs(samples).max() == pytest.approx(0.7, abs=0.1)
