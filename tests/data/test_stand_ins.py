"""The stand-ins: seeded, different from row to row, and labelled as they are drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmtransfer.data.products import ATTRIBUTES
from mmtransfer.data.stand_in_people import MISSING, ORGANS, action, scans, users
from mmtransfer.data.stand_ins import (
    OPINIONS,
    counts,
    glyphs,
    made_up,
    new_products,
    photos,
    reviews,
    utterances,
)
from mmtransfer.data.values import digest_of_values

ROWS = {"train": 12, "test": 12}
MAKERS = {
    "glyphs": lambda rows: glyphs("0123", rows),
    "hazy": lambda rows: glyphs("0123", rows, look="haze"),
    "photos": lambda rows: photos("target", rows),
    "reviews": lambda rows: reviews("films", rows),
    "utterances": lambda rows: utterances(["paki", "toxu"], rows),
    "scans": lambda rows: scans(rows),
    "users": lambda rows: users(rows),
}


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_seeded_and_no_two_splits_share_one(name):
    made = MAKERS[name]
    data, again, longer = made(ROWS), made(ROWS), made({"train": 14, "test": 12})
    assert digest_of_values(data["train"]) == digest_of_values(again["train"])
    # More rows leave those before them as they are.
    assert digest_of_values(longer["train"][:12]) == digest_of_values(data["train"])
    seen = [digest_of_values([row]) for split in data.values() for row in split]
    assert len(set(seen)) >= (20 if name == "reviews" else 24)


def opinion_of(text: str) -> str:
    """Read as a person would: "not" turns the next word."""
    found = set()
    words = text.replace(",", "").split()
    for before, word in zip(["", *words], words, strict=False):
        for opinion, known in OPINIONS.items():
            if word in known.split():
                other = "bad" if opinion == "good" else "good"
                found.add(other if before == "not" else opinion)
    assert len(found) == 1, text
    return found.pop()


@pytest.mark.parametrize("topic", ["films", "meals", "hotels"])
def test_a_review_says_what_its_label_says(topic):
    rows = reviews(topic, {"train": 200})["train"]
    assert all(opinion_of(row["text"]) == row["opinion"] for row in rows)
    assert sum("not" in row["text"].split() for row in rows) > 40  # words alone do not tell


def test_products_bring_their_attributes_and_few_labels():
    for row in photos("source", {"train": 30})["train"]:
        assert row["product"] == "{colour} {pattern} {shape} with {mark}".format(**row)
        assert all(row[name] in values for name, values in ATTRIBUTES.items())
    target = new_products(labels=2, quick=False, rows=48)
    assert set(Counter(row["label"] for row in target["train"]).values()) == {2}


def test_a_ring_is_brighter_than_the_tissue():
    for organ, contrast in ORGANS.items():
        rows = scans({"train": 300}, organ, share=0.1)["train"]
        ill = [row["image"].mean() for row in rows if row["label"] == "lesion"]
        none = [row["image"].mean() for row in rows if row["finding"] == "none"]
        assert len(ill) == 30
        assert np.sign(contrast) * (np.mean(ill) - np.mean(none)) > 1


def test_users_do_what_the_rule_says_and_lack_some_modalities():
    rows = users({"train": 400})["train"]
    for name in ("image", "text", "audio"):
        assert sum(row[name] is None for row in rows) == pytest.approx(400 * MISSING, abs=20)
    assert {row["action"] for row in rows} == {"buy", "save", "ask", "leave"}
    # Each modality changes what some users do.
    assert action("bottle", True, True) != action("bottle", False, True)
    assert action("jar", True, True) != action("jar", True, False)
    assert action("bottle", True, False) != action("jar", True, False)


def test_words_are_different_and_voices_are_those_asked_for():
    assert len(set(made_up(200))) == 200
    rows = utterances(made_up(3), {"train": 30}, voices=[2, 5])["train"]
    assert {row["speaker"] for row in rows} == {"speaker 2", "speaker 5"}
    assert counts(1000, quick=True)["train"] < 50 < counts(1000)["test"]


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'haze'"):
        glyphs("01", ROWS, look="hazes")
    with pytest.raises(ValueError, match="Did you mean 'films'"):
        reviews("film", ROWS)
    with pytest.raises(ValueError, match="Did you mean 'lung'"):
        scans(ROWS, "lungs")
