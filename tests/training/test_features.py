"""Stored features are those of the values: whatever they depend on names another store."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
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
