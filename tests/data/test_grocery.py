"""A checkout of the Grocery Store Dataset is read, and what is wrong with one is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtransfer.data.grocery import read_grocery


def test_products_categories_and_photos(checkout: Path) -> None:
    grocery = read_grocery(checkout)
    assert grocery.categories == ["Apple", "Pear", "Milk"]
    lady, _, anjou, milk = grocery.products
    assert (lady.name, lady.category) == ("Pink-Lady", "Apple")
    assert (lady.title, lady.origin) == ("Pink Lady Färsk", "Italy")
    assert milk.origin == "ARLA KO , 1l"
    for product in grocery.products:  # English, of the file or the one next to a wrong path
        assert product.description == ("It is fresh.", "It is sweet!")
    assert anjou.name == "Anjou"
    assert {split: len(photos) for split, photos in grocery.photos.items()} == {
        "train": 4,
        "val": 4,
        "test": 4,
    }
    photo = grocery.photos["val"][3]
    assert photo.path == "val/Packages/Milk/Arla-Milk/Arla-Milk_001.jpg"
    assert (photo.product, photo.category) == (3, 2)
    assert photo.file.is_file()


def test_a_description_may_be_in_the_information_only(checkout: Path) -> None:
    for file in checkout.rglob("Anjou_Description*.txt"):
        file.unlink()
    assert read_grocery(checkout).products[2].description == ("Ein.", "Zwei.")


def test_no_checkout(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{path}.*git clone https://github.com"):
            read_grocery(path)


@pytest.mark.parametrize(
    "name", ["classes.csv", "val.txt", "Anjou_Information.txt", "Anjou_001.jpg"]
)
def test_a_missing_file_is_named(checkout: Path, name: str) -> None:
    next(checkout.rglob(name)).unlink()
    with pytest.raises(FileNotFoundError, match=f"the checkout lacks .*{name}"):
        read_grocery(checkout)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("classes.csv", "Royal-Gala,1,", "Royal-Gala,one,", "classes.csv, line 3: .*two class num"),
        ("classes.csv", "Royal-Gala,1,", "Royal-Gala,7,", "products are not numbered"),
        ("classes.csv", "Coarse Class ID", "Group", "no column 'Coarse Class ID', found Class N"),
        ("train.txt", ", 1, 0", ", 1", "train.txt, line 2: expected 'path, product, category'"),
        ("train.txt", ", 1, 0", ", 1, 2", "line 2: classes.csv has no product 1 of category 2"),
        ("Anjou_Information.txt", "Title:", "Name:", "Anjou_Information.txt: no line 'Title"),
    ],
)
def test_a_wrong_line_is_named(checkout: Path, name: str, old: str, new: str, message: str) -> None:
    file = next(checkout.rglob(name))
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_grocery(checkout)
