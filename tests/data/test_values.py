"""Digests tell values apart, and are the same whenever the same value comes again."""

from __future__ import annotations

import copy
import datetime
import threading
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch
from PIL import Image

from mmtransfer.data.rows import fingerprint_column
from mmtransfer.data.values import digest_of_value

LONG = np.zeros(20_000, np.float32)
OTHER = LONG.copy()
OTHER[10_000] = 1


@dataclass
class Cloud:
    points: Any
    names: set[str] = field(default_factory=lambda: {"a", "b", "c"})


def palette(colour: int) -> Image.Image:
    picture = Image.new("P", (4, 4))
    picture.putpalette([colour] * 768)
    return picture


PAIRS = {
    "pandas series": (pandas.Series(LONG), pandas.Series(OTHER)),
    "sparse matrix": tuple(scipy.sparse.csr_matrix(np.eye(3) * k) for k in (1, 2)),
    "array in a dataclass": (Cloud(LONG), Cloud(OTHER)),
    "tensor in a dataclass": (Cloud(torch.tensor(LONG)), Cloud(torch.tensor(OTHER))),
    "palette": (palette(0), palette(255)),
    "pixels": (Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")),
    "size": (Image.new("L", (4, 2)), Image.new("L", (2, 4))),
    "bfloat16": (torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)),
    "number tensor": (torch.tensor(1.0), torch.tensor(2.0)),
    "sparse tensor": (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
    "conjugate": (torch.ones(2) * 1j, (torch.ones(2) * 1j).conj()),
    "array and tensor": (LONG, torch.tensor(LONG)),
    "masked array": tuple(np.ma.MaskedArray([1, 2], [False, m]) for m in (False, True)),
    "array of objects": (np.array(["a" * 99, "b"], object), np.array(["a" * 99, "c"], object)),
    "shape of objects": (np.array([["a", "b"]], object), np.array([["a"], ["b"]], object)),
    "keys": ({1: "a"}, {"1": "a"}),
    "mixed keys": ({1: 2, "a": 3}, {1: 3, "a": 2}),
    "sets": ({"a", "b", "c"}, {"a", "b", "d"}),
    "set and list": ({"a"}, ["a"]),
    "dates": (datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)),
    "decimals": (Decimal("1.0"), Decimal("1.1")),
    "memory": (bytearray(b"a"), memoryview(b"b")),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_values_differ_and_their_copies_do_not(pair):
    first, second = map(digest_of_value, pair)
    assert first != second
    for value, expected in zip(pair, (first, second), strict=True):
        # a memoryview cannot be copied, and of a bytes it is the same value
        again = bytes(value) if isinstance(value, memoryview) else copy.deepcopy(value)
        assert digest_of_value(again) == expected


def test_whether_equal_parts_are_one_object_does_not_matter():
    text = "some words"
    one, two = Cloud([text, text]), Cloud(["some words", "".join(["some", " words"])])
    assert digest_of_value(one) == digest_of_value(two)


def test_the_order_of_entries_does_not_matter():
    assert digest_of_value({"a": 1, "b": 2}) == digest_of_value({"b": 2, "a": 1})


def test_what_nothing_tells_apart_is_refused():
    round_about = Cloud(None)
    round_about.points = round_about
    for value in (threading.Lock(), lambda: 1, round_about):
        with pytest.raises(ValueError, match=r"^column 'x': a value of type \w+ has no digest"):
            fingerprint_column([{"x": value}], "x")
