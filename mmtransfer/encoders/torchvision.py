"""Any classification model of torchvision, with its weights and their own transforms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import Permute
from torchvision.transforms._presets import ImageClassification

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.numbers import check_count
from mmtransfer.encoders.pixels import TransformCollate
from mmtransfer.encoders.thin import thinned
from mmtransfer.encoders.weights import fill, read_weights
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

LAYERS = ("map", "penultimate")
POOLS = ("none", "mean", "first", "flatten")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
AUXILIARY = ("AuxLogits", "aux1", "aux2")


class Embedding(nn.Module):
    """What a ViT does before its first block: patches, class token, positions."""

    def __init__(self, vit: models.VisionTransformer) -> None:
        super().__init__()
        self.conv_proj, self.dropout = vit.conv_proj, vit.encoder.dropout
        self.class_token, self.pos_embedding = vit.class_token, vit.encoder.pos_embedding

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_proj(pixels).flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        return self.dropout(x + self.pos_embedding)


class ClassToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


@register_encoder("torchvision")
class TorchvisionEncoder(Encoder):
    """Any torchvision classifier without its head, `torchvision:<name>[:<weights>]`.

    weights: member of the model's weights enum: its transforms prepare the pictures
    size: side in pixels of the square that the model sees, by default that of the transforms
    layer: "map" gives the last feature map as tokens (of a ViT: all tokens), "penultimate" the
        vector that the last layer of the classifier reads, with the dense layers of AlexNet, VGG
        and MobileNetV3 in between
    pool: of a map: "none" gives the H * W tokens, "mean" their mean, "flatten" all of them as one
        vector, "first" a ViT's class token
    thin: a VGG, AlexNet or ResNet with so many times fewer channels, for studies without weights

    Raises `ValueError` for an unknown name, weights or option, with the nearest valid one.
    """

    modality = "image"
    source = "<name>[:<weights>]"

    def __init__(
        self,
        name: str,
        weights: str = "DEFAULT",
        size: int | None = None,
        layer: str = "map",
        pool: str = "none",
        thin: int = 1,
    ) -> None:
        super().__init__()
        for what, chosen, valid in (("layer", layer, LAYERS), ("pool", pool, POOLS)):
            if chosen not in valid:
                raise ValueError(f"unknown {what} {chosen!r}.{nearest(chosen, valid)}")
        member = weights_of(name, weights)
        self.name, self.weights, self.size = name, member.name, size
        self.layer, self.pool, self.thin = layer, pool, thin
        preset = prepare(name, member, size)
        self.preset, self.collate = preset, TransformCollate(preset)
        # Nothing of a model that is thinned is kept.
        with torch.device("meta") if thin > 1 else contextlib.nullcontext():
            model = architecture(name, preset.crop_size[0])
        self._take(model if thin == 1 else thinned(model, thin))

    def _take(self, model: nn.Module) -> None:
        """Keep what the chosen layer needs of a whole classifier."""
        self.is_map = not isinstance(model, models.VisionTransformer)
        if self.pool == "first" and self.is_map:
            raise ValueError(f"pool 'first' needs a class token, {self.name!r} has none")
        units = trunk_units(model)
        if self.layer == "penultimate":
            units += dense_units(model)
        trunk: Any = nn.ModuleList(grouped(units))
        self.trunk = trunk.to(memory_format=torch.channels_last)
        training = self.training
        with torch.no_grad():
            side = self.preset.crop_size[0]
            self.width = self.eval()(torch.zeros(1, 3, side, side)).width
        self.train(training)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        weights_file: str | None = None,
        size: int | None = None,
        layer: str = "map",
        pool: str = "none",
        thin: int = 1,
    ) -> TorchvisionEncoder:
        """`name` alone has random weights; `name:weights` downloads them through torchvision.

        weights_file: a local state dict of the whole classifier (safetensors or torch), instead
        """
        name, _, weights = source.partition(":")
        if thin != 1 and (weights or weights_file):
            raise ValueError(f"there are no weights for {name!r} with {thin} times fewer channels")
        encoder = cls(name, weights or "DEFAULT", size, layer, pool, thin)
        if weights or weights_file:
            member = weights_of(name, encoder.weights)
            if weights_file:
                state, where = read_weights(weights_file), weights_file
            else:
                # By itself torchvision would unpickle whatever the file holds.
                state = member.get_state_dict(progress=False, check_hash=True, weights_only=True)
                where = str(member)
            model = architecture(name, encoder.preset.crop_size[0])
            fill(model, adapted(model, state), where, without=spare_names(model))
            encoder._take(model)
            encoder.pretrained = True
        return encoder

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.trunk)

    @property
    def cuts(self) -> Sequence[int]:
        return range(1, len(self.trunk))

    def forward(self, pixels: Tensor) -> Features:
        """pixels (B, 3, size, size) -> tokens (B, T, D)."""
        return self._pooled(self._run(pixels, 0, len(self.trunk)))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        return as_tokens(self._run(inputs["pixels"], 0, depth))

    def above(self, depth: int, activations: Features) -> Features:
        x = activations.as_map() if self.is_map else activations.tokens
        return self._pooled(self._run(x, depth, len(self.trunk)))

    def _run(self, x: Tensor, start: int, end: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        for stage in list(self.trunk)[start:end]:
            x = stage(x)
        return x

    def _pooled(self, x: Tensor) -> Features:
        features = as_tokens(x)
        if self.pool == "first":
            return Features.of(features.tokens[:, :1])
        if self.pool == "flatten":
            return Features.of(features.tokens.flatten(1))
        return features.pool() if self.pool == "mean" else features

    def identity(self) -> str:
        return super().identity() + repr(self.preset)


def as_tokens(x: Tensor) -> Features:
    """Maps (B, D, H, H), tokens (B, T, D) or vectors (B, D) as features."""
    return Features.of_map(x) if x.ndim == 4 else Features.of(x)


def weights_of(name: str, weights: str) -> Any:
    """A member of a model's weights enum.  Raises `ValueError` with the nearest valid name."""
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"unknown torchvision model {name!r}.{nearest(name, known)}")
    enum = models.get_model_weights(name)
    valid = [*enum.__members__]
    if weights not in valid:
        raise ValueError(f"{name!r} has no weights {weights!r}.{nearest(weights, valid)}")
    return enum[weights]


def prepare(name: str, member: Any, size: int | None) -> ImageClassification:
    """The transforms of a weights enum; at another size, resize and crop in proportion."""
    preset = member.transforms()
    if size is not None:
        check_count("size", size)
        edge = round(preset.resize_size[0] * size / preset.crop_size[0])
        preset.resize_size, preset.crop_size = [edge], [size]
    if name in ("googlenet", "inception_v3"):
        # Pretrained, they turn ImageNet's scaling into this one in their forward; we leave it out.
        preset.mean, preset.std = [0.5] * 3, [0.5] * 3
    return preset


def architecture(name: str, size: int) -> nn.Module:
    """The whole classifier with random weights, without auxiliary heads."""
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": size}
    elif name.startswith("maxvit"):
        options = {"input_size": (size, size)}
    elif name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    return models.get_model(name, weights=None, **options)


def adapted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names, and with the positions, that the model has now."""
    if isinstance(model, models.VisionTransformer):
        state = models.vision_transformer.interpolate_embeddings(
            model.image_size, model.patch_size, state
        )
    if isinstance(model, models.DenseNet):  # published before names could hold no dot
        old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
        state = {old.sub(r"\1", name): tensor for name, tensor in state.items()}
    return state


def spare_names(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of what is left out: the last layer and the auxiliary heads."""
    last = [n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    return (f"{last[-1]}.", *(f"{name}." for name in AUXILIARY))


def trunk_units(model: Any) -> list[nn.Module]:
    """The parts of a classifier from the pixels to its last feature map, one after the other."""
    if isinstance(model, models.VisionTransformer):
        return [Embedding(model), *model.encoder.layers, model.encoder.ln]
    if isinstance(model, models.SwinTransformer):
        # Its blocks want (B, H, W, D); every stage begins and ends with (B, D, H, W).
        first, *later = model.features
        outside = Permute([0, 3, 1, 2])
        blocks = [nn.Sequential(Permute([0, 2, 3, 1]), part, outside) for part in later]
        norm = nn.Sequential(Permute([0, 2, 3, 1]), model.norm, outside)
        blocks[-1] = nn.Sequential(*blocks[-1], *norm)
        return [nn.Sequential(first, outside), *blocks]
    if isinstance(model, models.MaxVit):
        return [model.stem, *model.blocks]
    if isinstance(model, models.RegNet):
        return [model.stem, *model.trunk_output]
    if isinstance(model, models.MNASNet):
        return [*model.layers]
    if isinstance(model, models.DenseNet):
        return [*model.features, nn.ReLU()]
    if hasattr(model, "features"):
        return [*model.features]
    if isinstance(
        model, models.ShuffleNetV2 | models.ResNet | models.GoogLeNet | models.Inception3
    ):
        left = ("avgpool", "dropout", "fc", *AUXILIARY)
        return [part for name, part in model.named_children() if name not in left]
    raise ValueError(f"no stages are known of torchvision's {type(model).__name__}")


def dense_units(model: Any) -> list[nn.Module]:
    """The parts from the last feature map to what the last layer of the classifier reads."""
    if isinstance(model, models.VisionTransformer):
        return [ClassToken(), *model.heads[:-1]]
    pool = getattr(model, "avgpool", nn.AdaptiveAvgPool2d(1))
    dense = getattr(model, "classifier", None)
    parts = list(dense)[:-1] if isinstance(dense, nn.Sequential) else []
    if isinstance(model, models.SqueezeNet):  # its classifier is a convolution and a mean
        parts = []
    if not any(isinstance(part, nn.Flatten) for part in parts):
        parts = [nn.Flatten(), *parts]
    # What is stored at a cut is a map of one pixel there.
    flat = [nn.Sequential(nn.Flatten(), p) if isinstance(p, nn.Linear) else p for p in parts]
    return [pool, *flat]


def grouped(units: list[nn.Module]) -> list[nn.Module]:
    """Units as stages: norms, and what has no parameters, belong to the unit before them."""
    stages: list[list[nn.Module]] = []
    for unit in units:
        trained = any(True for _ in unit.parameters()) and not isinstance(unit, NORMS)
        if stages and not trained:
            stages[-1].append(unit)
        else:
            stages.append([unit])
    return [nn.Sequential(*stage) for stage in stages]
