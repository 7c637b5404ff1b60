"""The encoder contract."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtransfer.data.augment import AUGMENTATIONS
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features
from mmtransfer.testing.contract import (
    ContractError,
    check_registered,
    check_saved_form,
    require,
    same_numbers,
    saying,
)
from mmtransfer.testing.stages import check_cuts, check_order, check_stages, features_of


def check_encoder(encoder: Encoder, samples: Sequence[Any], tolerance: float = 1e-4) -> None:
    """Verify the encoder contract on at least two raw values.  Raises `ContractError`."""
    require(isinstance(encoder, Encoder), f"{type(encoder).__name__} is no subclass of Encoder")
    require(len(samples) >= 2, "check_encoder needs at least two samples")
    samples = list(samples)
    require(
        isinstance(getattr(encoder, "width", None), int),
        "width must be set to the D of the features, a whole number",
    )
    require(callable(getattr(encoder, "collate", None)), "collate(values) is missing")
    known = (*AUGMENTATIONS, None)
    require(encoder.modality in known, f"modality is {encoder.modality!r}, expected one of {known}")
    check_saved_form(encoder)
    try:
        pickle.dumps(encoder.collate)  # loader workers receive it this way
    except Exception as error:
        raise ContractError(f"collate cannot be pickled for loader workers: {error}") from error
    check_registered(encoder)
    encoder.eval()
    features = _check_features(encoder, samples)
    with torch.no_grad():
        again = features_of(encoder, samples).pooled()
        require(
            same_numbers(again, features.pooled()),
            "features differ from call to call in evaluation mode: is there drop-out without "
            "training=self.training, or batch norm in training mode?",
        )
        for k, sample in enumerate(samples):
            alone = features_of(encoder, [sample], f" of sample {k} alone").pooled()[0]
            gap = float((alone - features.pooled()[k]).abs().max())
            require(
                gap <= tolerance * (1 + float(alone.abs().max())),
                f"sample {k} has other features alone than among others (largest gap {gap:.2g}): "
                "does padding leak, or batch norm run in training mode?",
            )
    check_stages(encoder)
    check_order(encoder, samples)
    check_cuts(encoder, samples, tolerance)
    encoder.zero_grad()
    with saying("the backward pass"):
        features_of(encoder, samples).pooled().square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"parameter {name!r} gets no gradient")
    encoder.zero_grad()
    _check_saving(encoder, samples)


def _check_features(encoder: Encoder, samples: list[Any]) -> Features:
    features = features_of(encoder, samples)
    b, _, d = features.tokens.shape
    require(b == len(samples), f"{len(samples)} samples gave {b} rows of features")
    require(
        d == encoder.width, f"features have width {d}, the encoder says width = {encoder.width}"
    )
    require(
        features.mask.dtype == torch.bool, f"the mask must be bool, found {features.mask.dtype}"
    )
    own = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    require(
        features.tokens.dtype == own,
        f"features are {features.tokens.dtype}, the parameters {own}",
    )
    require(bool(features.present.all()), "a sample that is present has no real token in the mask")
    require(
        bool(torch.isfinite(features.pooled()).all()), "features of real tokens are not all finite"
    )
    return features


def _check_saving(encoder: Encoder, samples: list[Any]) -> None:
    with saying("fingerprint()"):
        mark = encoder.fingerprint()
    require(mark == encoder.fingerprint(), "fingerprint() changes from call to call")
    with tempfile.TemporaryDirectory() as folder, saying("save and load"):
        encoder.save(Path(folder))
        twin = Encoder.load(Path(folder))
    lost = "is an option lost by config() or save()?"
    with saying(f"loading the weights into the reloaded encoder ({lost})"):
        twin.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        again = features_of(twin.eval(), samples, " of the reloaded encoder").pooled()
        expected = features_of(encoder, samples).pooled()
        require(
            same_numbers(again, expected),
            f"the reloaded encoder differs: {lost}",
        )
        require(twin.fingerprint() == mark, "the reloaded encoder has another fingerprint()")
        for name, tensor in _ends(encoder):
            saved = tensor.detach().clone()
            tensor.add_(1.0)
            changed = encoder.fingerprint() != mark
            tensor.copy_(saved)
            require(changed, f"fingerprint() ignores a change of weights ({name!r})")


def _ends(module: nn.Module) -> list[tuple[str, Tensor]]:
    """First and last of the weights; all of them would take long in a large model."""
    weights = [(n, t) for n, t in module.state_dict().items() if t.is_floating_point()]
    return [weights[0], weights[-1]] if weights else []
