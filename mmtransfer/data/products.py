"""An embedded retail data set: photo, shelf label and spoken description of a product.

Every product is a combination of four hidden attributes (`ATTRIBUTES`). A photo, a label and a
recording each show some of them well and others badly, so no modality is enough on its own. Source
and target are disjoint combinations of the same attribute values: what an encoder learns of shapes,
words and sounds from many source rows is what the few labelled target rows need.

Nothing is downloaded, and row `i` of a split depends on `(seed, split, i)` only.
"""

import io
import itertools
import wave
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw

PIXELS = 32  # width and height of a picture
SAMPLE_RATE = 16_000  # Hz; every recording lasts one second

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("bottle", "can", "jar", "box", "tube", "pouch"),
    "colour": ("red", "orange", "yellow", "green", "blue"),
    "pattern": ("plain", "striped", "dotted", "checked"),
    "mark": ("disc", "triangle", "cross", "bars"),
}
ROWS = {  # rows per split; the target is the task with few labels
    "source/train": 3200,
    "source/validation": 320,
    "target/train": 128,
    "target/validation": 96,
    "target/test": 480,
}
SOURCE_PRODUCTS, TARGET_PRODUCTS = 64, 16
COLUMNS = ("image", "text", "audio")
MISSING = 0.1  # of the labels, and of the recordings

MISLABELLED = 0.15  # of the labels are those of another product
WRITTEN = {"mark": 0.9, "colour": 0.9, "pattern": 0.8, "shape": 0.5}  # how often, in this order
OCR_ERRORS = 0.05  # per character
SPOKEN = {"mark": 0.9, "colour": 0.9, "pattern": 0.7, "shape": 0.5}  # how often, in this order
SNR = (6.0, 24.0)  # dB between the voice and the noise
TINT = 0.2  # standard deviation of the logarithm of the light, per colour channel
MARK_HIDDEN = 0.6  # of the photos have a price tag over the mark


class Product(NamedTuple):
    """One combination of attribute values."""

    shape: str
    colour: str
    pattern: str
    mark: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.pattern} {self.shape} with {self.mark}"

    @property
    def category(self) -> str:
        """Coarser than the product: two shapes in a sober or a festive packaging."""
        style = "festive" if self.pattern in ("dotted", "checked") else "classic"
        return f"{style} {('drinks', 'pantry', 'care')[ATTRIBUTES['shape'].index(self.shape) // 2]}"


class Speaker(NamedTuple):
    """A voice."""

    pitch: float  # Hz
    tract: float  # factor on the formants, above 1 for a short vocal tract
    syllable: float  # seconds


def products(domain: str, *, seed: int = 0) -> list[Product]:
    """The products of `"source"` or `"target"`: disjoint, and the source has every attribute value.

    Raises:
        ValueError: for another domain or a negative seed.
    """
    if domain not in ("source", "target"):
        raise ValueError(f"domain must be 'source' or 'target', got {domain!r}")
    rng = default_rng([_checked(seed), len(ROWS)])
    every = [Product(*values) for values in itertools.product(*ATTRIBUTES.values())]
    while True:  # a source without some value is rare
        order = [every[i] for i in rng.permutation(len(every))]
        source, rest = order[:SOURCE_PRODUCTS], order[SOURCE_PRODUCTS:]
        seen = [set(values) for values in zip(*source, strict=True)]
        if seen == [set(values) for values in ATTRIBUTES.values()]:
            return source if domain == "source" else rest[:TARGET_PRODUCTS]


def speakers(split: str, *, seed: int = 0) -> list[Speaker]:
    """The voices of a split; no two splits share one.

    Raises:
        ValueError: for an unknown split or a negative seed.
    """
    rng = default_rng([_checked(seed), _number(split)])
    low, high = (100, 0.94, 0.1), (200, 1.07, 0.14)
    count = 24 if split == "source/train" else 8
    return [Speaker(*voice) for voice in rng.uniform(low, high, (count, 3)).tolist()]


def product_rows(
    split: str, *, seed: int = 0, rows: int | None = None, columns: Collection[str] = COLUMNS
) -> list[dict[str, Any]]:
    """The first `rows` rows of a split, by default all `ROWS[split]`.

    Products take turns, which balances every prefix, so shuffle before training.

    Args:
        split: a key of `ROWS`.
        seed: of everything: which products, voices, photos, labels and recordings.
        rows: may exceed `ROWS[split]`.
        columns: which of `COLUMNS` to make, for stories that need not all.

    Returns:
        Rows of `image` (PNG bytes, `PIXELS` x `PIXELS` RGB), `text` (str or None), `audio` (WAV
        bytes, one second of 16-bit mono at 16 kHz, or None), `product` and `category` (str).

    Raises:
        ValueError: for an unknown split or a negative seed.
    """
    number = _number(split)
    catalogue, voices = products(split.split("/")[0], seed=seed), speakers(split, seed=seed)
    count = ROWS[split] if rows is None else rows
    return [_row(catalogue, voices, (seed, number, i), columns) for i in range(count)]


def product_data(*, seed: int = 0) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All rows: `{"source": {"train", "validation"}, "target": {"train", "validation", "test"}}`.

    See `product_rows` for the columns.
    """
    data: dict[str, dict[str, list[dict[str, Any]]]] = {"source": {}, "target": {}}
    for split in ROWS:
        domain, part = split.split("/")
        data[domain][part] = product_rows(split, seed=seed)
    return data


def _row(
    catalogue: list[Product],
    voices: list[Speaker],
    key: tuple[int, int, int],
    columns: Collection[str] = COLUMNS,
) -> dict[str, Any]:
    # A stream per column: a change to the photos leaves labels and recordings as they are.
    photo, label, sound = (default_rng([*key, column]) for column in range(3))
    turn, count = key[2], len(catalogue)
    product = labelled = catalogue[turn % count]
    if label.random() < MISLABELLED:
        labelled = catalogue[(turn + int(label.integers(1, count))) % count]
    voice = voices[int(sound.integers(len(voices)))]
    make: dict[str, Callable[[], bytes | str | None]] = {
        "image": lambda: _draw(product, photo),
        "text": lambda: None if label.random() < MISSING else _write(labelled, label),
        "audio": lambda: None if sound.random() < MISSING else _speak(product, voice, sound),
    }
    made: dict[str, Any] = {name: make[name]() for name in columns}
    return made | {"product": product.name, "category": product.category}


def _number(split: str) -> int:
    if split not in ROWS:
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(ROWS)}")
    return list(ROWS).index(split)


def _checked(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return seed


_VOCABULARY = {  # the words of a label, one of which is written, and the sound of the value
    "bottle": ("bottle flask", "pota"),
    "can": ("can tin", "kaki"),
    "jar": ("jar pot", "xaxo"),
    "box": ("box carton", "poku"),
    "tube": ("tube stick", "tuti"),
    "pouch": ("pouch bag", "pexu"),
    "red": ("red crimson", "xese"),
    "orange": ("orange amber", "soto"),
    "yellow": ("yellow lemon", "tepi"),
    "green": ("green olive", "kisi"),
    "blue": ("blue navy", "pusu"),
    "plain": ("plain pure", "tata"),
    "striped": ("striped lined", "sixi"),
    "dotted": ("dotted spotty", "koko"),
    "checked": ("checked tartan", "kete"),
    "disc": ("Orbis Luna", "sapa"),  # a mark is read as its brand
    "triangle": ("Delta Alpina", "pipe"),
    "cross": ("Croix Nordia", "kusa"),
    "bars": ("Rails Trio", "xuto"),
}
_ORIGINS = ("Peru", "Italy", "Ghana", "Japan", "Chile", "Spain")
_SCANNED = {"o": "0", "l": "1", "e": "c", "a": "o", "s": "5", "b": "6", "i": "l", "g": "9"}
_SCANNED |= {"t": "f", "u": "v", "m": "rn", "c": "e", "r": "n", "d": "cl", "0": "O"}


def _write(product: Product, rng: Generator) -> str:
    said = product._asdict()
    words = [
        str(rng.choice(_VOCABULARY[said[attribute]][0].split()))
        for attribute, share in WRITTEN.items()
        if rng.random() < share
    ]
    words += [str(rng.choice(_ORIGINS)), f"{50 * rng.integers(2, 20)}g"]
    text = " ".join(words[i] for i in rng.permutation(len(words)))
    misread = rng.random(len(text)) < OCR_ERRORS
    characters = zip(text, misread.tolist(), strict=True)
    return "".join(_SCANNED.get(c, c) if wrong else c for c, wrong in characters)


_VOWELS = {  # formants in Hz
    "a": (750, 1200, 2500),
    "e": (480, 1900, 2550),
    "i": (280, 2300, 3000),
    "o": (480, 850, 2400),
    "u": (300, 650, 2300),
}
_CONSONANTS = {  # centre and width of the noise in Hz, seconds in which it fades
    "p": (900, 500, 0.015),
    "t": (4000, 1200, 0.015),
    "k": (1900, 500, 0.02),
    "s": (6200, 900, 0.05),
    "x": (2900, 600, 0.05),
}
_SECONDS = np.arange(SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE


def _speak(product: Product, voice: Speaker, rng: Generator) -> bytes:
    said = product._asdict()
    words = [_VOCABULARY[said[a]][1] for a, share in SPOKEN.items() if rng.random() < share]
    return say(words or [_VOCABULARY[product.mark][1]], voice, rng)  # never silence


def say(words: Sequence[str], voice: Speaker, rng: Generator) -> bytes:
    """One second of words of two syllables each, over noise, as WAV bytes.

    A syllable is one of p, t, k, s and x before one of a, e, i, o and u.
    """
    syllables = [word[i : i + 2] for word in words for i in (0, 2)]
    seconds = min(voice.syllable * rng.uniform(0.9, 1.1), 0.98 / len(syllables))
    step = int(SAMPLE_RATE * seconds) // 64 * 64  # samples; smooth numbers make fast transforms
    length = step * len(syllables)

    time = _SECONDS[:length]
    phase = voice.pitch * (1.1 - 0.1 * time) * time  # the pitch falls
    buzz = (2 * (phase - np.floor(phase)) - 1).reshape(-1, step)  # sawtooth, (syllables, step)
    rise = np.minimum(_SECONDS[:step] / 0.02, 1)
    buzz *= rise * rise[::-1]
    hertz = np.fft.rfftfreq(step, 1 / SAMPLE_RATE).astype(np.float32)
    formants = np.array([_VOWELS[syllable[1]] for syllable in syllables], np.float32)[..., None]
    gap = (hertz - voice.tract * formants) / (60 + 0.04 * formants)  # (syllables, 3, frequencies)
    sound = rise[::-1] * np.fft.irfft(np.fft.rfft(buzz) * (1 / (1 + gap**2)).sum(1), step)

    burst = _SECONDS[:1024]  # a consonant is shorter than any syllable
    hertz = np.fft.rfftfreq(burst.size, 1 / SAMPLE_RATE).astype(np.float32)
    consonants = np.array([_CONSONANTS[syllable[0]] for syllable in syllables], np.float32)
    centre, width, fade = consonants.T[..., None]  # (syllables, 1) each
    mouth = np.exp(-(((hertz - voice.tract * centre) / width) ** 2))
    air = np.fft.rfft(rng.standard_normal(burst.size, np.float32))
    sound[:, : burst.size] += 0.5 * np.exp(-burst / fade) * np.fft.irfft(air * mouth, burst.size)

    noise = float(np.sqrt(np.mean(sound**2))) * 10 ** (-rng.uniform(*SNR) / 20)
    signal = noise * rng.standard_normal(SAMPLE_RATE, np.float32)
    start = int(rng.integers(SAMPLE_RATE - length + 1))
    signal[start : start + length] += sound.ravel()
    signal *= rng.uniform(0.3, 0.95) / np.abs(signal).max()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, SAMPLE_RATE, "NONE", ""))
        file.writeframes((signal * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _polygon(corners: str) -> np.ndarray:
    return np.array(corners.split(), float).reshape(-1, 2)  # (corners, xy) in [-1, 1], y down


_OUTLINES = {
    "bottle": _polygon("-.2 -1 .2 -1 .2 -.5 .5 -.2 .5 1 -.5 1 -.5 -.2 -.2 -.5"),
    "can": _polygon("-.6 -.8 -.4 -.95 .4 -.95 .6 -.8 .6 .8 .4 .95 -.4 .95 -.6 .8"),
    "jar": _polygon("-.5 -.9 .5 -.9 .5 -.6 .85 -.4 .85 .7 .6 .9 -.6 .9 -.85 .7 -.85 -.4 -.5 -.6"),
    "box": _polygon("-.85 -.85 .85 -.85 .85 .85 -.85 .85"),
    "tube": _polygon("-.7 -1 .7 -1 .3 .7 .3 1 -.3 1 -.3 .7"),
    "pouch": _polygon("0 -1 .5 -.8 .9 .5 .6 1 -.6 1 -.9 .5 -.5 -.8"),
}
_MARKS = {
    "disc": _polygon("0 -1 .7 -.7 1 0 .7 .7 0 1 -.7 .7 -1 0 -.7 -.7"),
    "triangle": _polygon("0 -1 1 .9 -1 .9"),
    "cross": _polygon("-.3 -1 .3 -1 .3 -.3 1 -.3 1 .3 .3 .3 .3 1 -.3 1 -.3 .3 -1 .3 -1 0 -.3 0"),
    "bars": _polygon("-1 -1 1 -1 1 -.4 -1 -.4 -1 .4 1 .4 1 1 -1 1 -1 .4 .9 .4 .9 -.4 -1 -.4"),
}
_RGB = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.5, 0.1),
    "yellow": (0.9, 0.85, 0.2),
    "green": (0.2, 0.65, 0.25),
    "blue": (0.2, 0.35, 0.85),
}


def _draw(product: Product, rng: Generator) -> bytes:
    side = 2 * PIXELS  # drawn twice too large, then averaged: smooth edges
    centre = side * (0.5 + rng.uniform(-0.06, 0.06, 2))
    radius, angle = side * rng.uniform(0.34, 0.43), rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    def corners(polygon: np.ndarray) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (centre + radius * polygon @ turn).tolist()]

    x = np.arange(side, dtype=np.float32)[:, None]
    y = x[:, None]
    a, b, c, d = (turn / radius).ravel().tolist()
    left, top = centre.tolist()
    u = a * (x - left) + b * (y - top)  # (side, side, 1), as is v:
    v = c * (x - left) + d * (y - top)  # coordinates of the product, upright

    frequency, shift = rng.uniform(8, 11), rng.uniform(0, 6.3)
    across, along = np.sin(frequency * u + shift), np.sin(frequency * v + shift)
    inked = {
        "plain": across > 1,
        "striped": across > 0.2,
        "dotted": across + along > 0.9,
        "checked": across * along > 0,
    }[product.pattern]
    body = np.array(_RGB[product.colour], np.float32) + 0.05 * rng.standard_normal(3, np.float32)
    ink = 0.25 * body + (0.75 if rng.random() < 0.5 else 0.04)  # light or dark
    face = np.where(inked, ink, body) * (1.1 - 0.45 * u**2)
    slope = (rng.uniform(-0.3, 0.3, 2) / side).tolist()
    wall = 0.2 + 0.6 * rng.random(3, np.float32) + (slope[0] * x + slope[1] * y)

    outline = Image.new("L", (side, side))
    ImageDraw.Draw(outline).polygon(corners(_OUTLINES[product.shape]), fill=255)
    canvas = _image(wall)
    canvas.paste(_image(face), mask=outline)
    pen = ImageDraw.Draw(canvas)
    patch, middle = _OUTLINES["box"], np.array([0, 0.25])
    pen.polygon(corners(0.42 * patch + middle), fill=(240, 240, 240))
    pen.polygon(corners(0.33 * _MARKS[product.mark] + middle), fill=(25, 25, 25))
    place = middle if rng.random() < MARK_HIDDEN else rng.uniform(-1, 1, 2)
    red, green, blue = rng.integers(256, size=3).tolist()
    pen.polygon(corners(patch * rng.uniform(0.3, 0.45, 2) + place), fill=(red, green, blue))

    small = np.asarray(canvas.reduce(2), np.float32) / 255  # (PIXELS, PIXELS, RGB)
    small = small * np.exp(TINT * rng.standard_normal(3, np.float32))
    small = small + rng.uniform(0.02, 0.07) * rng.standard_normal(small.shape, np.float32)
    buffer = io.BytesIO()
    _image(small).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values.clip(0, 1)).astype(np.uint8))
