"""Any model of timm, with its own preprocessing, layer groups and feature levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.following import follow
from mmtransfer.encoders.numbers import check_count
from mmtransfer.encoders.pixels import TransformCollate
from mmtransfer.encoders.weights import read_weights
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

POOLS = ("none", "mean", "first", "head")


@register_encoder("timm")
class TimmEncoder(Encoder):
    """Any timm image model without its head, `timm:<name>`; needs `pip install mmtransfer[timm]`.

    size: side in pixels of the square that the model sees, by default that of its data config
    pool: "none" gives all tokens or the H * W places of the last map, "mean" their mean, "first"
        the class token, "head" the vector that timm's own pooling and head norm make of them
    features_only: the levels `out_indices` of the network instead, pyramid levels of convolutional
        nets, blocks of transformers: one level as tokens, several as their means side by side
    model_args: further arguments of `timm.create_model`, `{"drop_path_rate": 0.1}` say
    data: timm's data config that prepares the pictures, by default the model's own

    Raises `ValueError` for an unknown name or option, with the nearest valid one.
    """

    modality = "image"
    source = "<name>"

    def __init__(
        self,
        name: str,
        size: int | None = None,
        pool: str = "none",
        features_only: bool = False,
        out_indices: int | Sequence[int] = -1,
        model_args: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_pool(pool, features_only)
        if size is not None:
            check_count("size", size)
        self.name, self.size, self.pool = name, size, pool
        self.features_only, self.out_indices = features_only, out_indices
        self.model_args = dict(model_args or {})
        self.data = dict(data or {})
        self._take(create(name, size, self.model_args))

    def _take(self, model: Any) -> None:
        """Keep what the chosen features need of a model without classifier."""
        from timm.data import create_transform, resolve_model_data_config

        # torch 2.11 corrupts memory on CPUs in the backward of FastViT in channels-last order.
        odd = type(model).__name__ == "FastVit"
        self.layout = torch.contiguous_format if odd else torch.channels_last
        self.model = model.to(memory_format=self.layout)
        for name in ("pos_drop", "patch_drop"):
            if hasattr(model, name) and hasattr(model, "patch_embed"):
                follow(getattr(model, name), model.patch_embed)
        if not self.data:
            self.data = resolve_model_data_config(model)
            if self.size is not None:
                self.data["input_size"] = (3, self.size, self.size)
        self.collate = TransformCollate(create_transform(**self.data, is_training=False))
        if self.pool == "first" and not getattr(model, "num_prefix_tokens", 0):
            raise ValueError(f"pool 'first' needs a class token, {self.name!r} has none")
        if self.features_only:
            levels = level_numbers(self.out_indices)
            if not hasattr(model, "forward_intermediates"):
                raise ValueError(f"timm knows no feature levels of {self.name!r}")
            try:
                self.levels = model.prune_intermediate_layers(levels, prune_norm=True)
            except AssertionError as error:
                raise ValueError(f"{self.name!r} has no level {error} of {levels}") from error
        # Some forwards read the weights of their modules: only the gradient tells what is in use.
        training = self.training
        with torch.enable_grad():
            features = self.eval()(torch.zeros(1, *self.data["input_size"]))
            drop_unused(model, features.tokens)
        self.width = features.width
        self.train(training)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        pretrained: bool = True,
        checkpoint: str | None = None,
        size: int | None = None,
        pool: str = "none",
        features_only: bool = False,
        out_indices: int | Sequence[int] = -1,
        model_args: Mapping[str, Any] | None = None,
    ) -> TimmEncoder:
        """A name with timm's weights, `hf-hub:<id>` or `local-dir:<directory>`.

        pretrained: false gives random weights
        checkpoint: a local state dict of the whole model (safetensors or torch), instead
        """
        check_pool(pool, features_only)  # before anything is downloaded
        options = {"pool": pool, "features_only": features_only, "out_indices": out_indices}
        arguments = dict(model_args or {})
        if not pretrained and not checkpoint:
            return cls(source, size, model_args=arguments, **options)  # type: ignore[arg-type]
        model = create(source, size, arguments, pretrained=True, checkpoint=checkpoint)
        if ":" in source:  # saved under a name that needs neither hub nor directory
            source = model.pretrained_cfg["architecture"]
            given = getattr(model, "_model_args", {})
            arguments |= {k: v for k, v in given.items() if k not in ("num_classes", "img_size")}
        encoder = cls(source, size, model_args=arguments, **options)  # type: ignore[arg-type]
        encoder.data = {}
        encoder._take(model)
        encoder.pretrained = True
        return encoder

    @property
    def stages(self) -> list[nn.Module]:
        return [self._stage(group) for group in self._groups()]

    def _stage(self, group: list[nn.Parameter]) -> nn.Module:
        """A group of parameters, and the statistics of batch norm that go with them."""
        stage, own = nn.ParameterList(group), {id(p) for p in group}
        for name, module in self.model.named_modules():
            if any(id(p) in own for p in module.parameters(recurse=False)):
                for buffer, tensor in module.named_buffers(recurse=False):
                    stage.register_buffer(f"{name}.{buffer}".replace(".", "_"), tensor)
        return stage

    def _groups(self) -> list[list[nn.Parameter]]:
        """Parameters by timm's own layer groups, from input to output."""
        from timm.models import group_parameters

        if not hasattr(self.model, "group_matcher"):
            parts = [
                part
                for child in self.model.children()
                for part in (child if isinstance(child, nn.Sequential | nn.ModuleList) else [child])
            ]
            return [found for part in parts if (found := list(part.parameters()))]
        groups = group_parameters(self.model, self.model.group_matcher(), return_values=True)
        return [groups[number] for number in sorted(groups)]

    @property
    def cuts(self) -> Sequence[int]:
        return sorted(self._starts())

    def _starts(self) -> dict[int, int]:
        """Number of the first unit of each stage at which the model can be divided."""
        height, width = self.data["input_size"][1:]
        units = [] if self.features_only or height != width else units_of(self.model)
        group_of = {id(p): k for k, group in enumerate(self._groups()) for p in group}
        starts: dict[int, int] = {}
        reached = 0
        for number, (module, _) in enumerate(units):
            found = {group_of[id(p)] for p in module.parameters()}
            if found and min(found) < reached:
                return {}  # groups that are not in the order of the computation
            if found and min(found) > reached:
                reached = min(found)
                starts[reached] = number
            reached = max([reached, *found])
        return starts

    def forward(self, pixels: Tensor) -> Features:
        """pixels (B, 3, H, W) -> tokens (B, T, D)."""
        x = pixels.contiguous(memory_format=self.layout)
        if not self.features_only:
            return self._pooled(self.model.forward_features(x))
        levels = self.model.forward_intermediates(
            x, indices=self.levels, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        if len(levels) > 1:
            return Features.of(torch.cat([level.mean((2, 3)) for level in levels], 1))
        return self._pooled(levels[0], "NCHW")

    def below(self, depth: int, **inputs: Tensor) -> Features:
        x = inputs["pixels"].contiguous(memory_format=self.layout)
        for _, part in units_of(self.model)[: self._starts()[depth]]:
            x = part(x)
        return Features.of_map(x) if x.ndim == 4 else Features.of(x)

    def above(self, depth: int, activations: Features) -> Features:
        is_map = not hasattr(self.model, "blocks")
        x = activations.as_map() if is_map else activations.tokens
        for _, part in units_of(self.model)[self._starts()[depth] :]:
            x = part(x)
        return self._pooled(x)

    def _pooled(self, x: Any, layout: str | None = None) -> Features:
        if self.pool == "head":
            return Features.of(self.model.forward_head(x))
        if not isinstance(x, Tensor):
            raise ValueError(f"{self.name!r} gives several outputs: use pool=head or features_only")
        if x.ndim == 4:
            layout = layout or getattr(self.model, "output_fmt", "NCHW")
            x = x.flatten(1, 2) if str(layout).endswith("NHWC") else x.flatten(2).transpose(1, 2)
        features = Features.of(x)
        if self.pool == "first":
            return Features.of(features.tokens[:, :1])
        return features.pool() if self.pool == "mean" else features


def check_pool(pool: str, features_only: bool) -> None:
    if pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}.{nearest(pool, POOLS)}")
    if features_only and pool in ("first", "head"):
        raise ValueError(f"pool {pool!r} needs the whole model: leave features_only out")


def level_numbers(chosen: Any) -> list[int]:
    levels = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
    if not levels or any(type(level) is not int for level in levels):
        raise ValueError(f"out_indices must be a whole number or a list of them, found {chosen!r}")
    return levels


def create(
    name: str,
    size: int | None,
    arguments: Mapping[str, Any],
    pretrained: bool = False,
    checkpoint: str | None = None,
) -> Any:
    """timm's model without a classifier.  Raises `ValueError` for what timm does not know."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"timm:{name} needs the package timm: pip install 'mmtransfer[timm]'"
        ) from error
    options: dict[str, Any] = {**arguments, "num_classes": 0}
    plain, _, tag = name.partition(".")
    if ":" not in name:
        if not timm.is_model(plain):
            close = get_close_matches(plain, timm.list_models(), n=8, cutoff=0.4)
            raise ValueError(f"unknown timm model {plain!r}.{nearest(plain, close)}")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{plain}.*")]
        if tag and tag not in tags:
            raise ValueError(f"timm's {plain!r} has no weights {tag!r}.{nearest(tag, tags)}")
        config = timm.get_pretrained_cfg(name)
        if size is not None and config is not None and config.fixed_input_size:
            options["img_size"] = size
        if checkpoint:
            state = read_weights(checkpoint)
            classifier = config.classifier if config is not None else None
            head = state.get(f"{classifier}.weight")
            count = 0 if head is None else len(head)
            # timm loads strictly only where the number of classes is that of the weights.
            options["num_classes"] = count
            options["pretrained_cfg_overlay"] = {"state_dict": state, "num_classes": count}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, TypeError, KeyError) as error:
        where = checkpoint or f"timm:{name}"
        raise ValueError(f"{where} cannot be loaded: {str(error).strip()[:400]}") from error
    if checkpoint:
        model.pretrained_cfg.pop("state_dict", None)
        model.reset_classifier(0)
    return model


def drop_unused(model: nn.Module, tokens: Tensor) -> None:
    """Take off the modules, heads say, that the tokens do not depend on."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(tokens.sum(), parameters, allow_unused=True)
    unused = {id(p) for p, grad in zip(parameters, found, strict=True) if grad is None}
    dropped: list[str] = []
    for name, module in list(model.named_modules()):
        within = any(name.startswith(f"{outer}.") for outer in dropped)
        own = [id(p) for p in module.parameters()]
        container = isinstance(module, nn.ModuleList | nn.ModuleDict)  # somebody walks over it
        if own and not (within or container) and all(number in unused for number in own):
            model.set_submodule(name, nn.Identity())
            dropped.append(name)


def units_of(model: Any) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Modules and functions that one after the other are `forward_features`; none if not known."""
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet
    from timm.models.vision_transformer import VisionTransformer

    parts: list[nn.Module]
    forward = type(model).forward_features
    if forward is VisionTransformer.forward_features:

        def embed(x: Tensor) -> Tensor:
            return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))

        parts = [*model.blocks, model.norm]
        return [(model.patch_embed, embed), *((part, part) for part in parts)]
    if forward is ResNet.forward_features:
        layers = (model.layer1, model.layer2, model.layer3, model.layer4)
        parts = [model.conv1, model.bn1, model.act1, model.maxpool]
        parts += [block for layer in layers for block in layer]
    elif forward is ConvNeXt.forward_features:
        parts = [model.stem]
        for stage in model.stages:
            parts += [stage.downsample, *stage.blocks]
        parts.append(model.norm_pre)
    else:
        parts = []
    return [(part, part) for part in parts]
