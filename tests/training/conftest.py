"""Small data and models on which training is quick."""

from __future__ import annotations

import pytest

from mmtransfer.data.products import product_rows

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert"}


@pytest.fixture(scope="session")
def products():
    """Few rows of the embedded target set, some values missing, one label unknown."""
    rows = {
        "train": product_rows("target/train", rows=40),
        "validation": product_rows("target/validation", rows=19),
        "test": product_rows("target/test", rows=21),
    }
    classes = {r["product"] for r in rows["train"]}
    for split in ("validation", "test"):
        assert {r["product"] for r in rows[split]} <= classes
    rows["train"][3]["product"] = None
    rows["train"][5]["category"] = float("nan")
    return rows
