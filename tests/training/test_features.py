"""Stored features are those of the values: whatever they depend on names another store."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.data.augment.image import AugmentImage
from mmtransfer.encoders.base import build_encoder
from mmtransfer.training.features import Extraction, stored_features
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.setup import make_accelerator
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy


def trainer_of(products, columns, phase, **changed) -> Trainer:
    model = build_model(columns, {"product": "classification"}, products["train"], "gated", 16)
    phase.apply(model)
    options = TrainingOptions(**{"batch_size": 16, "progress": False, **changed})
    return Trainer(model, products["train"], None, Strategy([phase]), options)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("phase", [Phase(1), Phase(1, encoder_lr=1e-3)], ids=["store", "evaluate"])
def test_values_are_read_in_full_precision(products, monkeypatch, workers, phase):
    """A product of matrices, as in a spectrogram, is rounded inside of autocast."""

    def read(precision: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        trainer = trainer_of(
            products, {"image": "tiny-vit"}, phase, precision=precision, workers=workers
        )
        encoder = trainer.model.encoders["image"]
        collate, seen = encoder.collate, []

        def filtered(values):
            pixels = collate(values)["pixel_values"]
            return {"pixel_values": pixels @ torch.full((32, 32), 1 / 3)}

        def see(module, positional, named):
            seen.append(named["pixel_values"].clone())

        monkeypatch.setattr(encoder, "collate", filtered)
        encoder.register_forward_pre_hook(see, with_kwargs=True)
        found = trainer.collect(products["validation"])
        return seen, found.logits["product"]

    (plain, exact), (half, rounded) = read("no"), read("bf16")
    assert not torch.equal(exact, rounded)
    assert [pixels.dtype for pixels in half] == [torch.float32] * len(plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, half, strict=True))


def directory_of(
    products, *, name="image", weights=0, data="digest", depth=0, pooled=False, view=None, **options
) -> str:
    """Name of the store of a few pictures."""
    torch.manual_seed(weights)
    encoder, augment = build_encoder("tiny-vit"), None if view is None else AugmentImage()
    rows = [{name: row["image"]} for row in products["train"][:4]]
    wanted = Extraction(name, encoder, rows, "train", data, depth, pooled, augment, view or 0)
    chosen = TrainingOptions(progress=False, **options)
    return stored_features(wanted, chosen, make_accelerator(chosen, None))[0].directory.name


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {"name": "picture"}),
        ({}, {"data": "other"}),
        ({}, {"weights": 1}),
        ({}, {"depth": 1}),
        ({"depth": 1}, {"depth": 2}),
        ({}, {"pooled": True}),
        ({}, {"view": 0}),
        ({"view": 0}, {"view": 1}),
        ({"view": 0}, {"seed": 1}),
        ({"view": 0, "augment": True}, {"augment": {"image": {"mirror": 0.0}}}),
        ({}, {"on_error": "missing"}),
        ({}, {"precision": "bf16"}),
        ({}, {"feature_precision": "bf16"}),
    ],
    ids=str,
)
def test_whatever_features_depend_on_names_another_store(products, given, changed):
    first = directory_of(products, **given)
    assert directory_of(products, **given) == first
    assert directory_of(products, **given | changed) != first


@pytest.mark.parametrize("changed", [{"seed": 1}, {"batch_size": 3}, {"workers": 1}], ids=str)
def test_what_features_do_not_depend_on_finds_the_same_store(products, changed):
    assert directory_of(products, **changed) == directory_of(products)
