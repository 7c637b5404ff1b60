"""The classifier that a pretrained encoder had for the classes of its source."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features
from mmtransfer.registry import nearest

#: how classifiers are called in files, by the beginning of their names
NAMES = ("classifier", "cls_classifier", "head", "heads", "fc", "linear")


def load_source_head(encoder: Encoder, source: str | None) -> nn.Linear:
    """A linear layer (B, width) -> logits of the source classes.

    source: a safetensors file with `weight (C, D)` and `bias (C,)`, alone or under the name of a
        classifier; a directory with a `model.safetensors`; None takes the directory from which a
        transformers image model was loaded
    Raises `ValueError` if there is no classifier for features of this width.
    """
    path = _file(encoder, source)
    found = {}
    with safe_open(path, framework="pt") as tensors:
        names = list(tensors.keys())
        for name in names:
            if name != "weight" and not (name.startswith(NAMES) and name.endswith(".weight")):
                continue
            weight = tensors.get_tensor(name).float()
            if weight.ndim == 2 and weight.shape[1] == encoder.width:
                bias = name.removesuffix("weight") + "bias"
                found[name] = weight, tensors.get_tensor(bias) if bias in names else None
    if not found:
        raise ValueError(
            f"{path} holds no classifier over {encoder.width} features: expected `weight` "
            f"(C, {encoder.width}) and `bias` (C,), or the like under {', '.join(NAMES)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{path} holds several classifiers, {', '.join(found)}: give a file with one of them"
        )
    ((weight, bias),) = found.values()
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias if bias is not None else torch.zeros(len(weight)))
    return head


def _file(encoder: Encoder, source: str | None) -> Path:
    model = getattr(encoder, "model", None)
    if source is None:
        config = getattr(model, "config", None)
        source = str(getattr(config, "_name_or_path", ""))
        layout = getattr(encoder, "layout", None)
        fit = encoder.modality == "image" and not (layout is not None and layout.unused)
        if not (fit and source and Path(source).is_dir()):
            raise ValueError(
                f"{type(encoder).__name__} has no source head at hand: give one as a safetensors "
                "file with `weight` and `bias`, or load a transformers image classifier from a "
                "directory"
            )
    path = Path(source).expanduser()
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a classifier of the source")
    return path


def chosen_modality(encoders: dict[str, Encoder], wanted: str | None) -> str:
    """The encoder that has the head: the only one for images if none is named."""
    if wanted is not None:
        if wanted not in encoders:
            raise ValueError(f"unknown modality {wanted!r}.{nearest(wanted, encoders)}")
        return wanted
    images = [name for name, encoder in encoders.items() if encoder.modality == "image"]
    chosen = images if len(images) == 1 else list(encoders)
    if len(chosen) != 1:
        raise ValueError(
            f"which encoder has the source head? Name it as `modality`.{nearest('', encoders)}"
        )
    return chosen[0]


def head_input(encoder: Encoder, features: Features) -> Tensor:
    """(B, D) what a classifier sees: the class token where there is one, else the mean."""
    layout = getattr(encoder, "layout", None)
    if layout is not None and layout.class_token and encoder.modality == "image":
        return torch.where(features.mask[:, :1], features.tokens[:, 0], 0)
    return features.pooled()
