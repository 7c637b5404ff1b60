"""Auxiliary heads: weights by modality."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.features import RowContext
from mmtransfer.methods.auxiliary_heads import AuxiliaryHeads


def test_weights_scale_what_each_encoder_gets_of_its_own_head(fit):
    none, one, some = (
        fit({"name": "auxiliary_heads", "weight": weight})[1].seen[0]
        for weight in (0.0, 1.0, {"a": 0.25})
    )
    for modality, weight in (("a", 0.25), ("b", 1.0)):
        name = f"encoders.{modality}.layers.0.0.weight"
        assert (one[name] - none[name]).abs().max() > 1e-4
        torch.testing.assert_close(some[name], none[name] + weight * (one[name] - none[name]))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"at least 0, found -1"):
        AuxiliaryHeads({"image": -1.0})
    context = RowContext(0, 0, ["image", "text"])
    with pytest.raises(ValueError, match=r"unknown modality 'imag'.*mean 'image'"):
        AuxiliaryHeads({"imag": 1.0}).on_rows([], context)
