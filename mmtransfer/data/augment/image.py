"""Random changes of pictures, out of torchvision's transforms v2.

Crop, mirror and colour use its kernels with numbers of the row's own generator: its classes for
them take a third longer on small pictures, as they draw single torch numbers from a global state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from mmtransfer.data.augment.settings import check_count, check_range, configure
from mmtransfer.encoders.decoding import decode_image

COLOURS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
)
GRAY = 127  # of what a turned picture uncovers: near the mean that encoders subtract


@contextmanager
def seeded_torch(rng: np.random.Generator) -> Iterator[None]:
    """Within, torch's global CPU generator is seeded from `rng`; afterwards it is as it was.

    The classes of transforms v2 draw from there, and so does drop-out in training.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of GPUs too, and nobody puts those back.
        torch.random.default_generator.manual_seed(int(rng.integers(2**63)))
        yield


def random_crop(picture: Image.Image, area: float, rng: np.random.Generator) -> Image.Image:
    """At least this share of the area, sides 3:4 to 4:3 if it fits (Szegedy et al., CVPR 2015).

    It is not resized: the encoder does that, and doing it twice would cost sharpness and time.
    """
    w, h = picture.size
    size = w * h * rng.uniform(area, 1)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    height = min(h, size / min(w, (size * ratio) ** 0.5))
    width, height = max(1, round(size / height)), max(1, round(height))
    top, left = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
    cropped: Image.Image = functional.crop(picture, top, left, height, width)
    return cropped


def random_operations(operations: int = 2, magnitude: int = 9) -> v2.RandAugment:
    """So many random operations of one strength, 0 to 30 (RandAugment, Cubuk et al., 2020).

    They turn, shear and shift the picture and change its colours, whatever `mirror` and `colour`.
    """
    check_count("operations", operations)
    check_count("magnitude", magnitude, 30)
    bilinear = v2.InterpolationMode.BILINEAR
    return v2.RandAugment(operations, magnitude, interpolation=bilinear, fill=GRAY)


class AugmentImage:
    """Random crop, mirror image and colour jitter; on demand RandAugment and the like.

    Whatever would change a label must be left out: writing, say, is not to be mirrored.

    area: smallest share of the picture that a crop keeps, 1 for no crop
    mirror: probability of a left-right flip
    colour: largest relative change of brightness, contrast and saturation
    hue: largest turn of the colour circle, at most 0.5, half of it
    rand_augment: true, or its `operations` and `magnitude`
    trivial_augment: one operation of random strength (TrivialAugment, Müller & Hutter, ICCV 2021)
    erase: probability that a gray rectangle hides a part (random erasing, Zhong et al., AAAI 2020)
    """

    def __init__(
        self,
        area: float = 0.5,
        colour: float = 0.3,
        mirror: float = 0.5,
        hue: float = 0.0,
        rand_augment: bool | dict[str, Any] = False,
        trivial_augment: bool = False,
        erase: float = 0.0,
    ) -> None:
        check_range("area", area, 0.01, 1)
        for name, share in (("colour", colour), ("mirror", mirror), ("erase", erase)):
            check_range(name, share, 0, 1)
        check_range("hue", hue, 0, 0.5)
        self.area, self.colour, self.mirror, self.hue = area, colour, mirror, hue
        operations = configure(random_operations, rand_augment, "rand_augment")
        self.more: list[Any] = [] if operations is None else [operations]
        if trivial_augment:
            bilinear = v2.InterpolationMode.BILINEAR
            self.more.append(v2.TrivialAugmentWide(interpolation=bilinear, fill=GRAY))
        if erase:
            self.more.append(v2.RandomErasing(erase, value=GRAY))

    def __call__(self, value: Any, rng: np.random.Generator) -> Image.Image:
        picture = decode_image(value)
        if self.area < 1:
            picture = random_crop(picture, self.area, rng)
        if rng.random() < self.mirror:
            picture = functional.horizontal_flip(picture)
        if self.colour:
            for adjust in COLOURS:
                picture = adjust(picture, 1 + rng.uniform(-self.colour, self.colour))
        if self.hue:
            picture = functional.adjust_hue(picture, rng.uniform(-self.hue, self.hue))
        if self.more:
            with seeded_torch(rng):
                for change in self.more:
                    picture = change(picture)
        return picture
