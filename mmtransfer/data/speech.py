"""Spoken phrases by espeak-ng, in many voices over noise."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from mmtransfer.data.noise import mean_square, over_noise
from mmtransfer.encoders.decoding import decode_audio

PROGRAM = "espeak-ng"
RATE = 16_000  # Hz, of what comes out
SPEED = (140, 210)  # words per minute
PITCH = (25, 75)  # of 0 to 99
SNR = (2.0, 25.0)  # dB between the voice and the noise
CUTOFF = 1400.0  # Hz, above which the noise falls
SILENCE = (0.05, 0.3)  # seconds before and after
TIMEOUT = 60  # seconds that one phrase may take
SHARES = {"train": 0.5, "val": 0.1, "test": 0.4}  # of the variants

ACCENTS = (
    *("en", "en-us", "en-029"),  # not en-gb, the name under which espeak-ng ignores variants
    *("en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp"),
)
#: what makes a speaker; of the variants variants of espeak-ng 1.51 but robots, whispers, twins
_NAMES = (
    "adam Alex Alicia Andrea Andy anika antonio aunty belinda benjamin boris caleb david Denis "
    "Diogo ed edward edward2 f1 f2 f3 f4 f5 Gene Gene2 grandma grandpa gustave Henrique Hugo "
    "iven iven2 iven3 iven4 Jacky john kaukovalta klatt2 klatt3 klatt4 klatt5 Lee linda m1 m2 m3 "
    "m4 m5 m6 m7 m8 marcelo Marco Mario max Michael michel miguel Mike Nguyen norbert pablo "
    "paul pedro quincy rob robert sandro shelby steph steph2 steph3 travis victor zac"
)
VARIANTS = tuple(_NAMES.split())


class Voice(NamedTuple):
    """An accent of English and a variant of the voice."""

    accent: str
    variant: str


def voices(split: str, seed: int = 0) -> list[Voice]:
    """All accents of the variants that a split has; no two splits share a variant."""
    order = default_rng([seed, 0]).permutation(len(VARIANTS))
    ends = np.rint(np.cumsum([0, *SHARES.values()]) * len(VARIANTS)).astype(int)
    number = list(SHARES).index(split)
    chosen = sorted(order[ends[number] : ends[number + 1]])
    return [Voice(accent, VARIANTS[k]) for k in chosen for accent in ACCENTS]


def check_program() -> str:
    """The version of espeak-ng.

    Raises `FileNotFoundError` where it is not installed, `ValueError` where it lacks a voice:
    it would then silently speak in another one.
    """
    if shutil.which(PROGRAM) is None:
        raise FileNotFoundError(
            f"no program {PROGRAM} on the PATH: install it with `apt-get install espeak-ng`, "
            "`dnf install espeak-ng` or `brew install espeak-ng`"
        )
    version = _run("--version").decode(errors="replace").partition("  ")[0].strip()
    for kind, needed in (("en", ACCENTS), ("variant", VARIANTS)):
        listed = _run(f"--voices={kind}").decode(errors="replace").split()
        found = [*listed, *(word.rpartition("/")[2] for word in listed)]
        for name in needed:
            if name not in found:
                what = "accent" if kind == "en" else "voice variant"
                raise ValueError(f"{version} has no {what} {name!r}; version 1.51 has all")
    return version


def speak(phrase: str, voice: Voice, rng: Generator) -> bytes:
    """A phrase as Ogg Vorbis at 16 kHz, in random speed and pitch, over noise.

    Raises `ValueError` where espeak-ng fails.
    """
    speed, pitch = rng.integers(SPEED[0], SPEED[1] + 1), rng.integers(PITCH[0], PITCH[1] + 1)
    with tempfile.TemporaryDirectory(prefix="espeak-") as directory:
        file = Path(directory) / "said.wav"  # to standard output it writes no length
        name = f"{voice.accent}+{voice.variant}"
        _run("-v", name, "-s", str(speed), "-p", str(pitch), "-w", str(file), "--", phrase)
        said = decode_audio(file).at(RATE)
    return encode_vorbis(mix(said, rng))


def mix(said: np.ndarray, rng: Generator) -> np.ndarray:
    """A waveform (L,) at 16 kHz with a little silence around it, over low-passed noise."""
    before, after = (int(RATE * seconds) for seconds in rng.uniform(*SILENCE, 2))
    padded = np.pad(said.astype(np.float64), (before, after))
    gain = 1 / np.hypot(1, np.fft.rfftfreq(len(padded), 1 / RATE) / CUTOFF)  # 6 dB per octave
    return over_noise(padded, gain, mean_square(said, rng.uniform(*SNR)), rng)


def encode_vorbis(samples: np.ndarray) -> bytes:
    """Ogg Vorbis of a waveform (L,) at 16 kHz, the same bytes each time."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="OGG", subtype="VORBIS")
    return _with_serial(buffer.getvalue())


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _with_serial(stream: bytes, serial: int = 0) -> bytes:
    """An Ogg stream with this serial number, which libsndfile draws by the clock (RFC 3533)."""
    pages, start = [], 0
    while start < len(stream):
        lengths = stream[start + 27 : start + 27 + stream[start + 26]]
        end = start + 27 + len(lengths) + sum(lengths)
        page = bytearray(stream[start:end])
        page[14:18] = serial.to_bytes(4, "little")
        page[22:26] = bytes(4)
        # The polynomial of zlib's CRC, with the bits in the other order and nothing inverted.
        crc = zlib.crc32(bytes(page).translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        page[22:26] = int(f"{crc:032b}"[::-1], 2).to_bytes(4, "little")
        pages.append(bytes(page))
        start = end
    return b"".join(pages)


def _run(*arguments: str) -> bytes:
    """What espeak-ng writes to standard output.  Raises `ValueError` where it fails."""
    call = [PROGRAM, *arguments]
    done = subprocess.run(call, capture_output=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ValueError(f"{' '.join(call)} ended with code {done.returncode}: {said[:500]}")
    return done.stdout
