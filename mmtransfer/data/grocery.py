"""Photos and products of a checkout of the Grocery Store Dataset (Klasson et al., WACV 2019)."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

SOURCE = "https://github.com/marcusklasson/GroceryStoreDataset"
SPLITS = ("train", "val", "test")
CLASSES = ("Class Name", "Class ID", "Coarse Class Name", "Coarse Class ID", "Product Description")


class Product(NamedTuple):
    """One of the products.

    title, origin: as its shelf label has them, the origin with the amount: "Italy, ca 180g"
    description: its sentences
    """

    name: str
    category: str
    title: str
    origin: str
    description: tuple[str, ...]


class Photo(NamedTuple):
    """A photo; `path` is the one in its list, `product` and `category` are class numbers."""

    file: Path
    path: str
    product: int
    category: int


class Grocery(NamedTuple):
    """What a checkout holds; a class number is a place in `products` or `categories`."""

    products: list[Product]
    categories: list[str]
    photos: dict[str, list[Photo]]


def read_grocery(checkout: str | Path) -> Grocery:
    """All of a checkout but the photos themselves, of which only the being there is looked at.

    Raises:
        FileNotFoundError: where there is no checkout, or a file of it is missing
        ValueError: for a line that is not as expected
    """
    root = Path(checkout).expanduser()
    get = f"get it with: git clone {SOURCE}"
    if not root.is_dir():
        raise FileNotFoundError(f"no such checkout: {root}; {get}")
    data = root / "dataset"
    if not data.is_dir():
        raise FileNotFoundError(f"{root} is no checkout of the Grocery Store Dataset; {get}")
    products, categories = _classes(data)
    numbers = {(k, categories.index(product.category)) for k, product in enumerate(products)}
    photos = {split: _photos(data, split, numbers) for split in SPLITS}
    return Grocery(products, categories, photos)


def _text(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"the checkout lacks {file}; `git checkout -- .` there restores it")
    return file.read_text(encoding="utf-8-sig")


def _classes(data: Path) -> tuple[list[Product], list[str]]:
    """The products, in the order of their class numbers, and the categories."""
    file = data / "classes.csv"
    rows = list(csv.reader(_text(file).splitlines()))
    columns = [_column(file, rows[0] if rows else [], name) for name in CLASSES]
    products, categories = dict[int, Product](), dict[int, str]()
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            name, number, category, coarse, path = (row[k].strip() for k in columns)
            product, group = int(number), int(coarse)
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{file}, line {line}: expected {len(rows[0])} fields with two class "
                f"numbers, found {','.join(row)!r}"
            ) from error
        categories[group] = category
        products[product] = Product(name, category, *_information(data, path))
    for what, found in (("products", products), ("categories", categories)):
        if sorted(found) != list(range(len(found))):
            raise ValueError(f"{file}: the {what} are not numbered from 0 without gaps")
    return [products[k] for k in range(len(products))], [
        categories[k] for k in range(len(categories))
    ]


def _column(file: Path, header: list[str], name: str) -> int:
    for number, heading in enumerate(header):
        if heading.startswith(name):
            return number
    raise ValueError(f"{file}: no column {name!r}, found {', '.join(header) or 'nothing'}")


def _information(data: Path, path: str) -> tuple[str, str, tuple[str, ...]]:
    """Title, origin and description of the product whose description lies at `path`."""
    named = data / path.lstrip("/")
    found = sorted(named.parent.glob("*_Information.txt"))
    lines = _text(found[0] if found else named.parent / f"{named.parent.name}_Information.txt")
    # Of fruit the country is named, of packages the manufacturer.
    values = dict(
        re.findall(r"^(Title|Description|\w+ and volume): *(.*?) *$", lines, re.MULTILINE)
    )
    if not values.get("Title"):
        raise ValueError(f"{found[0]}: no line 'Title: ...'")
    origin = next((value for key, value in values.items() if key.endswith("and volume")), "")
    # Some paths of the table have a slip in their last letters.
    texts = [named, *sorted(named.parent.glob("*_Description*.txt"))]
    text = next((t for t in texts if t.is_file() and not t.stem.endswith("_Swedish")), None)
    description = _text(text) if text is not None else values.get("Description", "")
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(description.split()))
    return values["Title"], origin, tuple(sentence for sentence in sentences if sentence)


def _photos(data: Path, split: str, numbers: set[tuple[int, int]]) -> list[Photo]:
    file = data / f"{split}.txt"
    photos = []
    for line, text in enumerate(_text(file).splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{file}, line {line}"
        fields = re.fullmatch(r"\s*(\S.*?)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text)
        if fields is None:
            raise ValueError(f"{where}: expected 'path, product, category', found {text!r}")
        path, product, category = fields[1], int(fields[2]), int(fields[3])
        if (product, category) not in numbers:
            raise ValueError(
                f"{where}: classes.csv has no product {product} of category {category}"
            )
        if not (data / path).is_file():
            raise FileNotFoundError(f"{where}: the checkout lacks {data / path}")
        photos.append(Photo(data / path, path, product, category))
    return photos
