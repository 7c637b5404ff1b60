"""An architecture with fewer channels: what can be trained from nothing on one core."""

from __future__ import annotations

from torch import nn
from torchvision import models

from mmtransfer.encoders.numbers import check_count

COLOURS = 3  # input channels, which stay
THINNED = (models.VGG, models.AlexNet, models.ResNet)


def thinned(model: nn.Module, thin: int) -> nn.Module:
    """The same layers with channels divided by `thin`, and random weights (He et al., ICCV 2015).

    Raises `ValueError` for another architecture than VGG, AlexNet and ResNet.
    """
    check_count("thin", thin)
    if not isinstance(model, THINNED):
        valid = ", ".join(cls.__name__ for cls in THINNED)
        raise ValueError(f"a {type(model).__name__} cannot be made thin. Valid: {valid}.")
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            narrow: nn.Module | None = None
            if isinstance(layer, nn.Conv2d):
                inputs = layer.in_channels
                narrow = nn.Conv2d(
                    inputs if inputs == COLOURS else inputs // thin,
                    layer.out_channels // thin,
                    layer.kernel_size,  # type: ignore[arg-type]
                    layer.stride,  # type: ignore[arg-type]
                    layer.padding,  # type: ignore[arg-type]
                    bias=layer.bias is not None,
                )
            elif isinstance(layer, nn.Linear):
                narrow = nn.Linear(layer.in_features // thin, layer.out_features // thin)
            elif isinstance(layer, nn.BatchNorm2d):
                narrow = nn.BatchNorm2d(layer.num_features // thin)
            if narrow is not None:
                setattr(parent, name, initialised(narrow))
    return model


def initialised(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer
