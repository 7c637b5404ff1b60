"""Small seeded data sets that stand in for those that recipes would download.

Each is a real problem of transfer in little: what a network learns of many drawn digits, made-up
reviews or spoken words is what the few labelled rows of another task need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFont

from mmtransfer.data.products import ROWS, product_rows, say, speakers
from mmtransfer.data.rows import Rows
from mmtransfer.data.torchvision_sets import few
from mmtransfer.registry import nearest

Splits = dict[str, list[dict[str, Any]]]
LOOKS = ("plain", "haze")
DRAWN = 4  # times too large, then averaged: smooth edges

OPINIONS = {  # words for a good, and for a bad opinion
    "good": "good great lovely superb fine excellent charming brilliant",
    "bad": "bad awful dull poor weak terrible boring dreadful",
}
TOPICS = {  # what is reviewed, and what is said of any such thing
    "films": ("film plot cast ending script scenes score", "saw it on friday with friends"),
    "meals": ("soup menu waiter pasta service dessert table", "we came here late for dinner"),
    "hotels": ("room bed view lobby breakfast pool staff", "stayed two nights on business"),
}
NEGATED = 0.35  # of the opinions are the opposite word after a "not"
SYLLABLES = [consonant + vowel for consonant in "ptksx" for vowel in "aeiou"]


def counts(train: int, quick: bool = False) -> dict[str, int]:
    """Rows of each split; a few of each to see quickly that all runs."""
    if quick:
        return {"train": min(train, 48), "validation": 32, "test": 32}
    return {"train": train, "validation": 100, "test": 400}


def glyphs(
    symbols: str,
    rows: Mapping[str, int],
    label: str = "symbol",
    seed: int = 0,
    look: str = "plain",
    size: int = 28,
) -> Splits:
    """Drawn characters, turned, slanted and noisy: rows of `image` and the column `label`.

    look: "plain" is bright on black, "haze" brighter on bright
    -> splits of `image`, (size, size) uint8, and `label`, the character; characters take turns
    """
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}.{nearest(look, LOOKS)}")
    found: Splits = {}
    for number, (split, count) in enumerate(rows.items()):
        found[split] = []
        for i in range(count):
            rng = default_rng([seed, number, ord(symbols[0]), i])
            symbol = symbols[i % len(symbols)]
            found[split].append({"image": _glyph(symbol, rng, look, size), label: symbol})
    return found


def _glyph(symbol: str, rng: Generator, look: str, size: int) -> np.ndarray:
    side = DRAWN * size
    canvas = Image.new("L", (side, side))
    font = ImageFont.load_default(side * rng.uniform(0.6, 0.95))
    place = side * (0.5 + rng.uniform(-0.08, 0.08, 2))
    ImageDraw.Draw(canvas).text(
        tuple(place.tolist()),
        symbol,
        fill=255,
        font=font,
        anchor="mm",
        stroke_width=int(rng.integers(0, 3 * DRAWN // 2)),
    )
    turn, slant = rng.uniform(-0.4, 0.4), rng.uniform(-0.35, 0.35)
    a, b = np.cos(turn), np.sin(turn) + slant
    d, e = -np.sin(turn), np.cos(turn)
    middle = side / 2
    shift = middle - a * middle - b * middle, middle - d * middle - e * middle
    matrix = (a, b, shift[0], d, e, shift[1])
    canvas = canvas.transform((side, side), Image.Transform.AFFINE, matrix)
    pixels = np.asarray(canvas.reduce(DRAWN), np.float32) / 255
    if look == "haze":
        pixels = 0.4 * pixels + 0.43
    pixels = pixels + rng.uniform(0.05, 0.2) * rng.standard_normal(pixels.shape, np.float32)
    return (255 * pixels.clip(0, 1)).astype(np.uint8)


def photos(domain: str, rows: Mapping[str, int], seed: int = 0) -> Splits:
    """Pictures of the products of `mmtransfer.data.products`, "source" or "target" ones.

    -> splits of `image` (PNG bytes, 32 x 32), `product` and its `shape`, `colour`, `pattern` and
    `mark`; products take turns
    """
    found: Splits = {}
    for split, count in rows.items():
        if f"{domain}/{split}" in ROWS:
            made = product_rows(f"{domain}/{split}", seed=seed, rows=count, columns=["image"])
            found[split] = [row | attributes(row["product"]) for row in made]
    return found


def new_products(labels: int, quick: bool = False, rows: int = 400) -> dict[str, Rows]:
    """The target among `photos`: `image` and `label`, with so many training rows per product."""
    data = photos("target", counts(rows, quick))
    found = {k: [{"image": r["image"], "label": r["product"]} for r in v] for k, v in data.items()}
    return found | {"train": few(found["train"], "label", labels)}


def attributes(product: str) -> dict[str, str]:
    """Shape, colour, pattern and mark out of the name of a product."""
    colour, pattern, shape, _, mark = product.split()
    return {"shape": shape, "colour": colour, "pattern": pattern, "mark": mark}


def reviews(topic: str, rows: Mapping[str, int], label: str = "opinion", seed: int = 0) -> Splits:
    """Made-up reviews of one topic: rows of `text` and `label`, "good" or "bad".

    Opinions stand between words of the topic, some of them as the opposite after a "not".
    """
    if topic not in TOPICS:
        raise ValueError(f"unknown topic {topic!r}.{nearest(topic, TOPICS)}")
    found: Splits = {}
    for number, (split, count) in enumerate(rows.items()):
        found[split] = []
        for i in range(count):
            rng = default_rng([seed, number, list(TOPICS).index(topic), i])
            opinion = ("good", "bad")[i % 2]
            found[split].append({"text": review(topic, opinion, rng), label: opinion})
    return found


def review(topic: str, opinion: str, rng: Generator) -> str:
    """One review with two or three opinions of things of the topic."""
    nouns, filler = (words.split() for words in TOPICS[topic])
    said = []
    for noun in rng.permutation(nouns)[: rng.integers(1, 3)]:
        negated = rng.random() < NEGATED
        word = rng.choice(OPINIONS[_opposite(opinion) if negated else opinion].split())
        said.append(f"{noun} was {'not ' if negated else ''}{word}")
    start = int(rng.integers(len(filler) - 2))
    said.insert(int(rng.integers(len(said) + 1)), " ".join(filler[start : start + 3]))
    return ", ".join(said)


def _opposite(opinion: str) -> str:
    return "bad" if opinion == "good" else "good"


def utterances(
    words: Sequence[str],
    rows: Mapping[str, int],
    seed: int = 0,
    voices: Sequence[int] | None = None,
) -> Splits:
    """Spoken made-up words: rows of `audio` (WAV, one second at 16 kHz), `word` and `speaker`.

    words: of syllables such as "pa" or "xu" (`made_up` draws some)
    voices: which of the 24 speakers; by default all
    """
    everyone = speakers("source/train", seed=0)
    chosen = list(range(len(everyone)) if voices is None else voices)
    found: Splits = {}
    for number, (split, count) in enumerate(rows.items()):
        found[split] = []
        for i in range(count):
            rng = default_rng([seed, number, 2, i])
            voice = chosen[int(rng.integers(len(chosen)))]
            word = words[i % len(words)]
            audio = say([word], everyone[voice], rng)
            found[split].append({"audio": audio, "word": word, "speaker": f"speaker {voice}"})
    return found


def made_up(count: int, seed: int = 0) -> list[str]:
    """So many different words of two syllables."""
    pairs = [first + second for first in SYLLABLES for second in SYLLABLES]
    return [pairs[i] for i in default_rng(seed).permutation(len(pairs))[:count]]
