"""Which parameters of an encoder train: all of them, biases, norms, or the adapters that it has."""

from __future__ import annotations

import sys
from collections.abc import Collection

from torch import nn

from mmtransfer.encoders.base import Encoder
from mmtransfer.model import TransferModel

PARTS = ("all", "bias", "norm")


def chosen_parameters(encoder: Encoder, parts: str = "all") -> dict[str, nn.Parameter]:
    """The parameters that a choice of `PARTS` names, by name; of adapted encoders the adapters.

    "bias" are all biases (BitFit, Ben Zaken et al., ACL 2022), "norm" scales and shifts of norms.
    """
    adapters = adapter_names(encoder)
    if adapters:
        return {n: p for n, p in encoder.named_parameters() if n in adapters}
    if parts == "norm":
        return {
            f"{name}.{own}".lstrip("."): p
            for name, module in encoder.named_modules()
            if is_norm(module)
            for own, p in module.named_parameters(recurse=False)
        }
    return {n: p for n, p in encoder.named_parameters() if parts == "all" or is_bias(n)}


def is_norm(module: nn.Module) -> bool:
    """By the name of the class: every library has norms of its own (RMSNorm, LayerNorm2d ...)."""
    return "norm" in type(module).__name__.lower()


def is_bias(name: str) -> bool:
    own = name.rpartition(".")[2]
    return own == "bias" or own.endswith("_bias")


def adapter_names(encoder: nn.Module) -> set[str]:
    """Names of the parameters of peft's adapters in an encoder."""
    if "peft" not in sys.modules:  # then nobody can have put any in
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        f"{path}.{own}"
        for path, layer in encoder.named_modules()
        if isinstance(layer, BaseTunerLayer)
        for own, _ in nn.Module.named_parameters(layer)  # type: ignore[arg-type]
        if own.split(".")[0] in layer.adapter_layer_names
    }


def parameter_counts(
    model: TransferModel, trained: Collection[str] | None = None
) -> dict[str, dict[str, int]]:
    """`{part: {"parameters", "trained"}}` of each encoder, "fusion", "heads" and "all" of them.

    trained: names of the parameters that count as trained, by default those with a gradient
    """
    found: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        kind, part, *_ = name.split(".")
        if kind == "unimodal":
            continue
        counted = parameter.requires_grad if trained is None else name in trained
        for of in (part if kind == "encoders" else kind, "all"):
            counts = found.setdefault(of, {"parameters": 0, "trained": 0})
            counts["parameters"] += parameter.numel()
            counts["trained"] += parameter.numel() * counted
    return found
