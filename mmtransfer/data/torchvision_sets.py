"""Classification sets that torchvision downloads, as rows."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, SupportsIndex
from xml.etree.ElementTree import parse

import numpy as np
from numpy.random import default_rng

from mmtransfer.data.rows import Rows, column
from mmtransfer.registry import nearest
from mmtransfer.training.processes import main_process_first

VALIDATION = 0.1  # of the training rows
TARGETS = ("targets", "labels", "_labels")  # what data sets call their labels


class LabelledPictures(Sequence[Mapping[str, Any]]):
    """Rows of `image` (PIL, read on demand) and of labels by column.

    dataset: its items begin with a picture
    labels: {column: label of every item}
    numbers: of the items that are rows, by default all
    """

    def __init__(
        self,
        dataset: Any,
        labels: Mapping[str, Sequence[Any]],
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.dataset, self.labels = dataset, labels
        self.numbers = range(len(dataset)) if numbers is None else numbers
        self.column_names = ["image", *labels]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        number = int(self.numbers[operator.index(index)])
        row = {n: found[number] for n, found in self.labels.items() if n in self.column_names}
        if "image" in self.column_names:
            row["image"] = self.dataset[number][0]
        return row

    def select_columns(self, names: str | Sequence[str]) -> LabelledPictures:
        """The same rows with these columns only: labels alone need no picture decoded."""
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self.column_names:
                raise ValueError(f"no column {name!r}.{nearest(name, self.column_names)}")
        rows = copy(self)
        rows.column_names = names
        return rows

    def take(self, numbers: Sequence[int]) -> LabelledPictures:
        rows = copy(self)
        rows.numbers = [int(self.numbers[i]) for i in numbers]
        return rows


def torchvision_splits(
    name: str,
    root: Path,
    label: str,
    labels: int = 0,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> dict[str, Rows]:
    """Train, validation and test rows of a data set of torchvision, downloaded into `root`.

    name: class in `torchvision.datasets`, such as "FashionMNIST"
    label: the column of its labels
    labels: training rows that stay of each class, 0 for all
    names: of the classes, where another data set has the same ones
    Raises `ValueError` for a name that torchvision does not have.
    """
    from torchvision import datasets

    if name not in datasets.__all__:
        raise ValueError(f"unknown data set {name!r}.{nearest(name, datasets.__all__)}")
    cls = getattr(datasets, name)
    with main_process_first():  # one downloads, the others find it
        if "train" in inspect.signature(cls).parameters:
            sides = [cls(root, train=train, download=True) for train in (True, False)]
        else:
            first = "trainval" if name == "OxfordIIITPet" else "train"
            sides = [cls(root, split=split, download=True) for split in (first, "test")]
    train, test = (LabelledPictures(side, {label: labels_of(side, names)}) for side in sides)
    order = default_rng(seed).permutation(len(train)).tolist()
    held = round(VALIDATION * len(train))
    kept = few(train.take(order[held:]), label, labels)
    return {"train": kept, "validation": train.take(order[:held]), "test": test}


def labels_of(dataset: Any, names: Sequence[str] | None = None) -> list[Any]:
    """The label of every item, by name where there are names."""
    codes = next(getattr(dataset, name) for name in TARGETS if hasattr(dataset, name))
    names = names or getattr(dataset, "classes", None)
    return [names[int(code)] if names else int(code) for code in codes]


def voc_splits(root: Path, objects: Sequence[str]) -> dict[str, Rows]:
    """Photos of VOC 2007 with a yes/no column per object, downloaded into `root`."""
    from torchvision.datasets import VOCDetection

    found: dict[str, Rows] = {}
    for split, part in {"train": "train", "validation": "val", "test": "test"}.items():
        with main_process_first():
            side = VOCDetection(root, "2007", part, download=True)
        shown = [{o.text for o in parse(file).iterfind("object/name")} for file in side.annotations]
        answers = {name: ["yes" if name in seen else "no" for seen in shown] for name in objects}
        found[split] = LabelledPictures(side, answers)
    return found


def few(rows: Any, label: str, count: int, seed: int = 0) -> Any:
    """`count` rows of each label, drawn by the seed, in their order; all for 0.

    rows: a list, or rows with a method `take`
    """
    if not count:
        return rows
    values, seen = list(column(rows, label)), Counter[Any]()
    chosen = []
    for number in default_rng(seed).permutation(len(values)):  # rows may stand by something else
        seen[values[number]] += 1
        if seen[values[number]] <= count:
            chosen.append(int(number))
    chosen.sort()
    return rows.take(np.array(chosen)) if hasattr(rows, "take") else [rows[i] for i in chosen]
