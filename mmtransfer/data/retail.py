"""Retail data: photo, shelf label and spoken request, from a checkout of the Grocery Store Dataset.

The photos and their splits are those of the data set (Klasson et al., WACV 2019). Beside each comes
what a camera might read off the shelf label, made of the product's information in the data set, and
what a shopper might say, spoken by espeak-ng. Labels are misread, of a neighbouring product, or
missing; requests are noisy, mostly vague, or missing: no modality tells the product on its own.
"""

from __future__ import annotations

import io
import operator
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import pyarrow as pa
from numpy.random import Generator, default_rng
from PIL import Image, ImageOps

from mmtransfer.data.building import check_free, write_set
from mmtransfer.data.grocery import SPLITS, Grocery, Product, read_grocery
from mmtransfer.data.speech import RATE, check_program, speak, voices
from mmtransfer.features import Row

SIDE, QUALITY = 192, 80  # short side of a photo in pixels, and of JPEG

UNLABELLED = 0.10  # photos without a label
NEIGHBOUR = 0.15  # of the labels are those of another product
DESCRIBED = 0.30  # of the labels have a sentence of the description
DROPPED = 0.35  # of the words
CONFUSED, DELETED, INSERTED = 0.05, 0.025, 0.01  # per character

UNSPOKEN = 0.10  # photos without a recording
SPECIFIC = 0.25  # of the requests name the product, the others its category
PHRASES = (
    "{}",
    "where is the {}",
    "where can I find the {}",
    "do you have {}",
    "I am looking for {}",
    "I would like some {}",
    "can you show me the {}",
    "how much is the {}",
    "is there any {} left",
)
CONFUSIONS = {
    **{"o": "0", "l": "1", "e": "c", "a": "o", "s": "5", "b": "6", "i": "l", "g": "9", "t": "f"},
    **{"u": "v", "n": "m", "m": "n", "h": "n", "c": "e", "r": "n", "d": "cl", "y": "v", "w": "vv"},
    **{"O": "0", "I": "l", "S": "5", "B": "8", "G": "6", "E": "F", "D": "O", "C": "G", "Z": "2"},
    **{"0": "O", "1": "l", "5": "S", "8": "6", "6": "b", "2": "Z"},
}


def write_retail(
    checkout: str | Path, directory: str | Path, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Write train.parquet, val.parquet and test.parquet; -> what `set.json` says.

    Columns: `image` (JPEG), `text` (or None), `audio` (Ogg Vorbis at 16 kHz, or None), `product`
    and `category` (class numbers, with their names). A row depends on the checkout, the seed, its
    split and its number only; the bytes of photos and recordings also on the versions of Pillow,
    espeak-ng and libsndfile.

    Raises:
        FileExistsError: where a set lies in the directory, unless `overwrite`
        FileNotFoundError: without a checkout, a file of it, or espeak-ng
        ValueError: for a file of the checkout that is not as expected
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")
    check_free(directory, list(SPLITS), overwrite)
    grocery, version = read_grocery(checkout), check_program()
    splits = {split: RetailRows(grocery, split, seed) for split in SPLITS}
    options = {"seed": seed, "speech": version}
    return write_set("retail", splits, _schema(grocery), directory, options, overwrite)


class RetailRows(Sequence[Row]):
    """Rows of one split, each made when it is read."""

    def __init__(self, grocery: Grocery, split: str, seed: int = 0) -> None:
        self.products, self.photos = grocery.products, grocery.photos[split]
        self.voices, self.seed = voices(split, seed), [seed, 1, SPLITS.index(split)]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: SupportsIndex) -> Row:  # type: ignore[override]
        number = range(len(self))[operator.index(index)]
        photo = self.photos[number]
        product = self.products[photo.product]
        seen, said = (default_rng([*self.seed, number, kind]) for kind in (1, 2))
        return {
            "image": {"bytes": shrink(photo.file), "path": photo.path.replace("/", "_")},
            "text": read_label(product, self.products, seen),
            "audio": self._request(product, said),
            "product": photo.product,
            "category": photo.category,
        }

    def _request(self, product: Product, rng: Generator) -> dict[str, Any] | None:
        if rng.random() < UNSPOKEN:
            return None
        name = product.name if rng.random() < SPECIFIC else product.category
        phrase = PHRASES[rng.integers(len(PHRASES))].format(name.replace("-", " ").lower())
        voice = self.voices[rng.integers(len(self.voices))]
        return {"bytes": speak(phrase, voice, rng), "path": None}


def shrink(file: Path) -> bytes:
    """A photo with a short side of `SIDE` pixels, as JPEG.  Raises `ValueError` for no picture."""
    try:
        with Image.open(file) as photo:
            picture = ImageOps.exif_transpose(photo).convert("RGB")
    except OSError as error:
        raise ValueError(f"{file} is no readable picture: {error}") from error
    scale = SIDE / min(picture.size)
    width, height = (max(SIDE, round(scale * length)) for length in picture.size)
    buffer = io.BytesIO()
    picture.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def read_label(product: Product, products: Sequence[Product], rng: Generator) -> str | None:
    """What is read off the label that hangs by a product; None without a readable one."""
    if rng.random() < UNLABELLED:
        return None
    if rng.random() < NEIGHBOUR:
        others = [other for other in products if other.name != product.name]
        alike = [other for other in others if other.category == product.category] or others
        product = alike[rng.integers(len(alike))] if alike else product
    text = f"{product.title} {product.origin}"
    if product.description and rng.random() < DESCRIBED:
        text += f" {product.description[rng.integers(len(product.description))]}"
    words = [word for word in text.split() if rng.random() >= DROPPED]
    return misread(" ".join(words), rng).strip() or None


def misread(text: str, rng: Generator) -> str:
    """A text with characters confused, deleted and inserted."""
    read = []
    for character in text:
        if rng.random() < CONFUSED:
            character = CONFUSIONS.get(character, character)
        if rng.random() >= DELETED:
            read.append(character)
        if rng.random() < INSERTED:
            read.append(string.ascii_lowercase[rng.integers(26)])
    return "".join(read)


def _schema(grocery: Grocery) -> pa.Schema:
    import datasets

    features = {
        "image": datasets.Image(decode=False),
        "text": datasets.Value("string"),
        "audio": datasets.Audio(sampling_rate=RATE, decode=False),
        "product": datasets.ClassLabel(names=[product.name for product in grocery.products]),
        "category": datasets.ClassLabel(names=grocery.categories),
    }
    return datasets.Features(features).arrow_schema
