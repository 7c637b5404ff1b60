"""Mixed rows on their way into training: batches, augmentation, faults, learning."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmtransfer.data.augment import AugmentImage
from mmtransfer.data.collate import Collate, ReadError
from mmtransfer.encoders.base import build_encoder
from mmtransfer.features import RowContext
from mmtransfer.methods.mixup import CutMix, MixUp
from mmtransfer.tasks.classification import Classification
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

KINDS = {"photo": "image", "text": "text"}
CLASSES = [f"p{i}" for i in range(12)]
METHODS = pytest.mark.parametrize("method", [MixUp, CutMix])


def some_rows(count: int = 12) -> list:
    return [(i, {"photo": plain(i), "text": f"text {i}", "product": f"p{i}"}) for i in range(count)]


def plain(number: int, size: tuple[int, int] = (30, 20)) -> Image.Image:
    """A picture of one colour of its own."""
    return Image.new("RGB", size, (20 * number, 255 - 20 * number, 100))


def mixed(method, rows, epoch=0, seed=0, kinds=KINDS) -> list:
    found = [(i, dict(row)) for i, row in rows]
    method.on_rows(found, RowContext(seed, epoch, list(kinds), kinds))
    return found


@pytest.fixture(scope="module")
def encoders():
    return {"photo": build_encoder("tiny-vit"), "text": build_encoder("tiny-bert")}


@METHODS
def test_a_batch_is_the_same_from_any_worker(encoders, method):
    tasks = {"product": Classification(CLASSES)}
    collate = Collate(
        encoders, tasks, methods=[method(rate=0.9)], augment={"photo": AugmentImage()}, seed=1
    )

    def batches(workers):
        rows = some_rows()
        loader = torch.utils.data.DataLoader(
            Copies(rows), batch_size=6, collate_fn=collate, num_workers=workers
        )
        return list(loader)

    for here, there in zip(batches(0), batches(2), strict=True):
        for name in here.inputs:
            for key, value in here.inputs[name].values.items():
                assert torch.equal(value, there.inputs[name].values[key])
        assert torch.equal(here.targets["product"], there.targets["product"])
        assert here.targets["product"].shape == (6, len(CLASSES))
        torch.testing.assert_close(here.targets["product"].sum(1), torch.ones(6))


class Copies(torch.utils.data.Dataset):
    """Rows that a collate may change, as those of training are."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int):
        return self.rows[k][0], dict(self.rows[k][1])


def test_without_augmentation_the_encoder_gets_exactly_the_blend(encoders):
    rows = some_rows(6)
    values = [row["photo"] for _, row in mixed(MixUp(rate=1.0), rows)]
    expected = encoders["photo"].collate([v.blend(v.first, v.second) for v in values])
    collate = Collate(encoders, {}, methods=[MixUp(rate=1.0)])
    batch = collate([(i, dict(row)) for i, row in rows])
    assert torch.equal(batch.inputs["photo"].values["pixel_values"], expected["pixel_values"])
    assert "text" not in batch.inputs


def test_both_pictures_are_augmented_each_by_itself(encoders):
    seen = []

    def spy(value, rng):
        seen.append((value.getpixel((0, 0)), int(rng.integers(2**40))))
        return value

    collate = Collate(encoders, {}, methods=[MixUp(rate=1.0)], augment={"photo": spy})
    collate([(i, dict(row)) for i, row in some_rows(2)])
    assert len({colour for colour, _ in seen}) == 2
    assert len({draw for _, draw in seen}) == 4


@pytest.mark.parametrize("on_error", ["raise", "missing"])
def test_an_unreadable_partner_is_named_by_its_own_row(encoders, on_error):
    rows = [(i, dict(row)) for i, row in some_rows(2)]
    rows[1][1]["photo"] = b"broken"
    collate = Collate(encoders, {}, split="train", methods=[MixUp(rate=1.0)], on_error=on_error)
    if on_error == "raise":
        with pytest.raises(ReadError, match="train row 1, column 'photo' cannot be read"):
            collate(rows)
    else:
        batch = collate(rows)
        assert set(batch.unreadable["photo"]) == {1}
        assert "photo" not in batch.inputs


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_training_learns_from_mixed_rows_whatever_the_workers(products, name):
    tasks = {"product": "classification", "category": {"name": "classification"}}
    found = []
    for workers in (0, 2):
        columns = {"image": "tiny-vit", "text": "tiny-bert"}
        model = build_model(columns, tasks, products["train"], dropout=0.1)
        methods = [{"name": name, "rate": 0.5}, "modality_dropout"]
        plan = build_strategy(Strategy([Phase(8, 1e-2, 1e-3)]), methods)
        options = TrainingOptions(
            16, progress=False, augment={"image": {"rand_augment": True}}, workers=workers
        )
        metrics = run(model, products, plan, options)
        losses = [record["train_loss"] for record in metrics["history"]]
        found.append((losses, metrics["test"]))
        assert metrics["strategy"]["methods"][0]["rate"] == 0.5
        assert metrics["test"]["product"]["rows"] == len(products["test"])
    assert found[0] == found[1]
    assert found[0][0][-1] < 0.9 * found[0][0][0]


def test_a_frozen_encoder_trains_unmixed(products):
    tasks = {"product": "classification"}
    losses = []
    for methods in ([], ["mixup", "cutmix"]):
        model = build_model({"image": "tiny-vit"}, tasks, products["train"])
        plan = build_strategy("linear_probe", methods, epochs=2)
        metrics = run(model, products, plan, TrainingOptions(16, progress=False))
        losses.append([record["train_loss"] for record in metrics["history"]])
    assert losses[0] == losses[1]
