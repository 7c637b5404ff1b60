"""Seeded stand-ins about people: scans of patients, and users who look, type and speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageFilter

from mmtransfer.data.products import say, speakers
from mmtransfer.data.stand_ins import Splits, photos, review
from mmtransfer.registry import nearest

ORGANS = {"lung": 0.4, "liver": 0.25}  # how much brighter than the tissue a finding is
FINDINGS = ("none", "disc", "ring")
PIXELS = 32
MISSING = 0.1  # of what users give
NOW, LATER = "kipa", "xoto"  # what they say


def scans(rows: Mapping[str, int], organ: str = "lung", share: float = 0.34) -> Splits:
    """Drawn tissue with a bright disc, or a ring, or nothing; a ring is a lesion.

    share: of the scans that show a ring
    -> splits of `image` (PIXELS x PIXELS uint8), `finding`, `fibre` (direction of the tissue) and
    `label` ("lesion" or "healthy")
    """
    if organ not in ORGANS:
        raise ValueError(f"unknown organ {organ!r}.{nearest(organ, ORGANS)}")
    found: Splits = {}
    for number, (split, count) in enumerate(rows.items()):
        found[split] = []
        for i in range(count):
            rng = default_rng([list(ORGANS).index(organ), number, i])
            every = round(1 / share)
            finding = "ring" if i % every == 0 else FINDINGS[int(rng.integers(2))]
            fibre = int(rng.integers(4))
            image = _scan(finding, fibre, ORGANS[organ] * rng.uniform(0.6, 1.2), rng)
            label = "lesion" if finding == "ring" else "healthy"
            row = {"image": image, "finding": finding, "fibre": f"{45 * fibre} degrees"}
            found[split].append(row | {"label": label})
    return found


def _scan(finding: str, fibre: int, contrast: float, rng: Generator) -> np.ndarray:
    coarse = Image.fromarray((255 * rng.random((9, 9))).astype(np.uint8))
    smooth = coarse.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    tissue = np.asarray(smooth.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    y, x = np.mgrid[:PIXELS, :PIXELS].astype(np.float32)
    turn = np.pi * (fibre / 4 + rng.uniform(-0.06, 0.06))
    lines = np.sin(rng.uniform(0.9, 1.3) * (x * np.cos(turn) + y * np.sin(turn)))
    scan = 0.45 + 0.2 * (tissue - 0.5) + 0.06 * lines
    left, top = rng.uniform(8, PIXELS - 8, 2)
    distance, radius = np.hypot(x - left, y - top), rng.uniform(3, 5.5)
    shape = {
        "none": np.zeros_like(scan),
        "disc": 1 / (1 + np.exp(2 * (distance - radius))),
        "ring": np.exp(-(((distance - radius) / 1.2) ** 2)),
    }[finding]
    scan = scan + contrast * shape + 0.05 * rng.standard_normal(scan.shape)
    return (255 * scan.clip(0, 1)).astype(np.uint8)


def users(rows: Mapping[str, int], seed: int = 0) -> Splits:
    """Users who look at a product, type an opinion and say a word: what they do depends on all.

    Of drinks, a good opinion decides; of pantry goods, the word; of care goods, both.
    -> splits of `image`, `text`, `audio` (each missing for one user in ten) and `action`
    """
    found: Splits = {}
    voices = speakers("source/train")
    for number, (split, shown) in enumerate(photos("target", rows, seed).items()):
        found[split] = []
        for i, photo in enumerate(shown):
            rng = default_rng([seed, number, 5, i])
            good, now = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
            topic = ("meals", "hotels")[int(rng.integers(2))]
            voice = voices[int(rng.integers(len(voices)))]
            given: dict[str, Any] = {
                "image": photo["image"],
                "text": review(topic, "good" if good else "bad", rng),
                "audio": say([NOW if now else LATER], voice, rng),
            }
            for name in given:
                if rng.random() < MISSING:
                    given[name] = None
            found[split].append(given | {"action": action(photo["shape"], good, now)})
    return found


def action(shape: str, good: bool, now: bool) -> str:
    """What a user does who looks at a thing of this shape, by opinion and haste."""
    if shape in ("bottle", "can"):
        return "buy" if good else "leave"
    if shape in ("jar", "box"):
        return "buy" if now else "save"
    return "save" if good and not now else "ask" if good else "leave"
