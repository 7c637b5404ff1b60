"""The retail set as the parts read it: small photos, the same corrupted, features of all columns.

All of it is computed once, into a directory of arrays (`prepare`), and read from there by every
process (`Retail`).  The corruption is that of one bad camera: blur, a warm cast, little light and
noise, a little different for every photo, drawn by split and row number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from mmtransfer import Encoder, TrainingOptions, TransferModel, build_encoder, build_fusion
from mmtransfer.benchmark.examples import encode_splits
from mmtransfer.data.collate import Collate
from mmtransfer.data.rows import column, load_rows
from mmtransfer.encoders.decoding import decode_image
from mmtransfer.encoders.pixels import SquareCollate
from mmtransfer.features import Batch, Features
from mmtransfer.methods.adabn import adapt_batch_norm
from mmtransfer.tasks.classification import Classification

SPLITS = ("train", "validation", "test")
TARGETS = ("product", "category")
SIZE, SHORT = 64, 73  # pixels; the proportion of MobileNetV2's own resize and crop, 256 to 224
#: of the corruption: radius in pixels, share of each colour that is left, exponent, and deviation
BLUR, CAST, GAMMA, NOISE = 0.6, (1.0, 0.88, 0.7), 1.25, 8.0
#: what the prepared arrays depend on
MARK = [SIZE, SHORT, BLUR, CAST, GAMMA, NOISE]
DONE = "done"


class Photos:
    """Squares of `size` pixels to what MobileNetV2 reads; its own processor takes far longer."""

    def __init__(self, size: int) -> None:
        self.squares = SquareCollate(size, 3)

    def __call__(self, values: list[Any]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.squares(values)["pixels"]}


class Given(Encoder):
    """Vectors (D,) that were computed before; nothing to train."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def collate(self, values: list[Any]) -> dict[str, torch.Tensor]:
        return {"vectors": torch.from_numpy(np.stack(values))}

    def forward(self, vectors: torch.Tensor) -> Features:
        """(B, D) -> tokens (B, 1, D)."""
        return Features.of(vectors)


def image_encoder(shared: Path) -> Encoder:
    """MobileNetV2 at `SIZE` pixels, with its ImageNet weights."""
    encoder = build_encoder(f"hf:{shared / 'models' / 'mobilenet-v2-imagenet'}?size={SIZE}")
    encoder.collate = Photos(SIZE)
    return encoder


def crop(value: Any) -> np.ndarray:
    """The middle of a photo, (SIZE, SIZE, 3) uint8, as the model's processor would take it."""
    photo = decode_image(value)
    share = SHORT / min(photo.size)
    sides = [max(SHORT, round(side * share)) for side in photo.size]
    photo = photo.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    left, top = ((side - SIZE) // 2 for side in sides)
    return np.asarray(photo.crop((left, top, left + SIZE, top + SIZE)))


def corrupted(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A photo (H, W, 3) uint8 as the bad camera takes it."""
    picture = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(BLUR * rng.uniform(0.7, 1.3)))
    light = (np.asarray(picture) / 255) ** (GAMMA * rng.uniform(0.8, 1.2))
    light = light * (np.array(CAST) * rng.uniform(0.9, 1.1, 3))
    noisy = 255 * light + rng.normal(0, NOISE, photo.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def prepare(shared: Path, text: str, work: Path) -> None:
    """Fill `work` with the arrays of all splits; nothing if they are there.

    text: specification of the encoder of the labels
    """
    if (work / DONE).is_file():
        return
    work.mkdir(parents=True, exist_ok=True)
    splits = load_rows(shared / "data" / "retail")
    encoders = {"text": build_encoder(text)}
    encoders["audio"] = build_encoder(f"kwt:{shared / 'models' / 'kwt1-speech-commands'}")
    options = TrainingOptions(progress=False, evaluation_batch_size=128, cache=str(work / "cache"))
    examples, _ = encode_splits(splits, encoders, {}, options)
    for split in SPLITS:
        for name, features in examples[split].pooled().features.items():
            vectors = features.tokens[:, 0].numpy()
            vectors[~features.present.numpy()] = np.nan  # the modality is absent
            np.save(work / f"{split}.{name}.npy", vectors)
        texts = [text or "" for text in column(splits[split], "text")]
        np.save(work / f"{split}.label.npy", np.array(texts))
        for target in TARGETS:
            np.save(work / f"{split}.{target}.npy", list(column(splits[split], target)))
        photos = np.stack([crop(value) for value in column(splits[split], "image")])
        np.save(work / f"{split}.photo.npy", photos)
        draws = (np.random.default_rng([SPLITS.index(split), i]) for i in range(len(photos)))
        shifted = [corrupted(photo, draw) for photo, draw in zip(photos, draws, strict=False)]
        np.save(work / f"{split}.shifted.npy", np.stack(shifted))
    encode_photos(shared, work)
    (work / DONE).touch()


def encode_photos(shared: Path, work: Path) -> None:
    """Pooled features of photos and corrupted photos, as the encoder comes and with AdaBN.

    AdaBN: batch norm by the means and variances of the training photos of each kind.
    """
    for adapted in (False, True):
        for kind in ("photo", "shifted"):
            encoder = image_encoder(shared)
            fusion = build_fusion("concat", {"image": encoder.width}, 8)
            model = TransferModel({"image": encoder}, fusion, {"product": Classification(range(2))})
            if adapted:
                photos = np.load(work / f"train.{kind}.npy")  # by class, and one class misleads
                mixed = np.random.default_rng(0).permutation(len(photos))
                adapt_batch_norm(model, batches(model, photos[mixed]))
            for split in SPLITS:
                found = features(model, np.load(work / f"{split}.{kind}.npy"))
                np.save(work / f"{split}.{kind}_features{'_adabn' if adapted else ''}.npy", found)


def batches(model: TransferModel, photos: np.ndarray, size: int = 64) -> Iterator[Batch]:
    collate = Collate(model.encoders, {})
    numbers = np.array_split(np.arange(len(photos)), max(1, len(photos) // size))
    for chunk in numbers:
        yield collate([(int(i), {"image": photos[i]}) for i in chunk])


@torch.inference_mode()
def features(model: TransferModel, photos: np.ndarray) -> np.ndarray:
    """Pooled features (N, D)."""
    model.eval()
    found = [model.encode("image", b.inputs["image"], len(b)) for b in batches(model, photos)]
    return torch.cat([f.pooled() for f in found]).numpy()


class Retail:
    """The prepared arrays: `rows` puts columns of them together."""

    def __init__(self, work: Path) -> None:
        self.work = work

    @cache  # noqa: B019 - one per process, for as long as it lives
    def array(self, split: str, name: str) -> np.ndarray:
        return np.load(self.work / f"{split}.{name}.npy", mmap_mode="r")

    def size(self, split: str) -> int:
        return len(self.array(split, TARGETS[0]))

    def rows(
        self,
        split: str,
        inputs: Mapping[str, str],
        numbers: Sequence[int] | np.ndarray,
        targets: Sequence[str] = TARGETS,
    ) -> list[dict[str, Any]]:
        """Rows with these numbers; a vector that is not there is None.

        inputs: which array is read as which column, `{"image": "photo", "text": "text"}` say
        """
        arrays = {column: self.array(split, name) for column, name in inputs.items()}
        return [
            {column: present(array[i]) for column, array in arrays.items()}
            | {target: int(self.array(split, target)[i]) for target in targets}
            for i in map(int, numbers)
        ]

    def few(self, per_class: int, seed: int, target: str = "product") -> np.ndarray:
        """Numbers of training rows: of each class so many, or all that there are."""
        labels = np.asarray(self.array("train", target))
        order = np.random.default_rng(seed).permutation(len(labels))
        chosen = [order[labels[order] == c][:per_class] for c in np.unique(labels)]
        return np.sort(np.concatenate(chosen))

    def some(self, split: str, count: int) -> np.ndarray:
        """Numbers of so many rows of a split, always the same."""
        whole = np.random.default_rng(0).permutation(self.size(split))
        return np.sort(whole[:count])


def present(value: Any) -> Any:
    """A value of an array; None for one that stands for nothing."""
    if isinstance(value, str):
        return str(value) or None
    if value.dtype.kind == "f" and np.isnan(value).any():
        return None
    return np.array(value)
