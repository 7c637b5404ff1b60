"""Where stem, blocks and tail of each transformers architecture lie, and how its blocks are run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import masking_utils


class Layout(NamedTuple):
    """Names of the parts of an architecture, from input to output.

    stem, tail: one stage for each entry; modules of one stage are separated by spaces
    blocks: a list of blocks, one stage each
    inner: of a hierarchical network, the lists in each member of `blocks`; the one whose name ends
        with "*" holds the blocks, what lies between joins the block that follows
    flow: how a block is called, see `run`; None where cuts are not possible
    unused: parts that feed no token, so that they would never get a gradient
    class_token: whether the first token is one that stands for all
    """

    stem: tuple[str, ...]
    blocks: str
    tail: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    flow: str | None = "tokens"
    unused: tuple[str, ...] = ()
    class_token: bool = False


_VIT = Layout(("embeddings",), "layers", ("layernorm",), class_token=True)
_BERT = Layout(("embeddings",), "encoder.layer", class_token=True)
_RESNET = Layout(("embedder",), "encoder.stages", inner=("layers*",), flow="maps")
_CONVNEXT = Layout(
    ("embeddings",),
    "encoder.stages",
    inner=("downsampling_layer", "layers*"),
    flow="maps",
    unused=("layernorm",),
)
_WAV2VEC2 = Layout(
    ("feature_extractor", "feature_projection encoder.pos_conv_embed encoder.layer_norm"),
    "encoder.layers",
    ("adapter",),
)
# The pre-norm variant applies the same-named norm behind the blocks.
_STABLE = _WAV2VEC2._replace(
    stem=("feature_extractor", "feature_projection encoder.pos_conv_embed"),
    tail=("encoder.layer_norm", "adapter"),
)

#: by `config.model_type`
LAYOUTS: dict[str, Layout] = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": Layout(
        ("embeddings",), "encoder.layer", ("layernorm",), flow="bare", class_token=True
    ),
    "swin": Layout(
        ("embeddings",),
        "encoder.layers",
        ("layernorm",),
        inner=("blocks*", "downsample"),
        flow="grid",
    ),
    "clip_vision_model": Layout(
        ("embeddings pre_layrnorm",),
        "encoder.layers",
        unused=("post_layernorm",),
        class_token=True,
    ),
    "siglip_vision_model": Layout(
        ("embeddings",), "encoder.layers", ("post_layernorm",), unused=("head",)
    ),
    "resnet": _RESNET,
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "mobilenet_v2": Layout(("conv_stem",), "layer", ("conv_1x1",), flow="maps"),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": Layout(("embeddings",), "transformer.layer", class_token=True),
    "modernbert": Layout(
        ("embeddings",), "layers", ("final_norm",), flow="rotary", class_token=True
    ),
    "clip_text_model": Layout(
        ("embeddings",), "encoder.layers", ("final_layer_norm",), flow="causal"
    ),
    "siglip_text_model": Layout(
        ("embeddings",), "encoder.layers", ("final_layer_norm",), unused=("head",)
    ),
    "wav2vec2": _WAV2VEC2,
    "hubert": _WAV2VEC2,
    "wavlm": _WAV2VEC2._replace(flow=None),  # the first block makes a bias for all others
    "audio-spectrogram-transformer": _VIT,
    "whisper": Layout(("conv1 conv2 embed_positions",), "layers", ("layer_norm",)),
}


def layout_of(config: Any) -> Layout | None:
    """The layout of an architecture, or None for one that the table does not know."""
    layout = LAYOUTS.get(config.model_type)
    if layout is not None and getattr(config, "do_stable_layer_norm", False):
        layout = layout._replace(stem=_STABLE.stem, tail=_STABLE.tail)
    if layout is not None and getattr(config, "add_adapter", False):
        layout = layout._replace(flow=None)  # it shortens the sequence
    return layout


class Chain(nn.Sequential):
    """Modules that make one stage, in the order in which they run."""


def _chain(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else Chain(*modules)


def parts_of(stage: nn.Module) -> list[nn.Module]:
    """The modules of a stage that the model itself calls."""
    return list(stage) if isinstance(stage, Chain) else [stage]


class Depth(NamedTuple):
    """The stages of a model: `[*stem, *blocks, *tail]`."""

    stem: list[nn.Module]
    blocks: list[nn.Module]
    tail: list[nn.Module]


def divide(model: nn.Module, layout: Layout) -> Depth:
    """The stages of `model`; parts without parameters, or taken off, are left out."""

    def named(names: tuple[str, ...]) -> Iterator[nn.Module]:
        for entry in names:
            found = [_get(model, name) for name in entry.split()]
            kept = [m for m in found if m is not None and any(True for _ in m.parameters())]
            if kept:
                yield _chain(kept)

    return Depth(list(named(layout.stem)), list(_blocks(model, layout)), list(named(layout.tail)))


def _blocks(model: nn.Module, layout: Layout) -> Iterator[nn.Module]:
    outer: Any = model.get_submodule(layout.blocks)
    if not layout.inner:
        yield from outer
        return
    waiting: list[nn.Module] = []
    for member in outer:
        for name in layout.inner:
            found = getattr(member, name.rstrip("*"))
            is_list = isinstance(found, nn.ModuleList | nn.Sequential)
            for module in found if is_list else [found] if found is not None else []:
                waiting.append(module)
                if name.endswith("*"):
                    yield _chain(waiting)
                    waiting = []


def _get(model: nn.Module, name: str) -> nn.Module | None:
    found: Any = model
    for step in name.split("."):
        found = getattr(found, step, None)
    return found


def run_above(
    model: Any, layout: Layout, depth: int, x: Tensor, mask: Tensor | None = None
) -> Tensor:
    """What a model gives for `x`, which enters its stage number `depth`."""
    stem, blocks, tail = divide(model, layout)
    x = _run(model, str(layout.flow), blocks[depth - len(stem) :], x, mask)
    for part in tail[max(0, depth - len(stem) - len(blocks)) :]:
        x = part(x)
    return x


def _run(model: Any, flow: str, blocks: list[nn.Module], x: Tensor, mask: Tensor | None) -> Tensor:
    """Run blocks as the model itself would.

    flow: "maps" for x (B, D, H, W); for x (B, T, D) and mask (B, T) or None, which is all True:
        "tokens" (any may look at any), "bare" (so too, but blocks of some versions take no mask),
        "causal", "grid" (T square cells), "rotary" (ModernBERT)
    """
    if flow in ("maps", "bare"):
        for part in (p for block in blocks for p in parts_of(block)):
            x = part(x)
        return x
    if flow == "grid":
        for part in (p for block in blocks for p in parts_of(block)):
            side = math.isqrt(x.shape[1])
            found = part(x, (side, side))
            x = found[0] if isinstance(found, tuple) else found
        return x
    given = {"config": model.config, "inputs_embeds": x, "attention_mask": mask}
    if flow == "rotary":
        return _run_rotary(model, blocks, x, given)
    if flow == "causal":
        allowed = masking_utils.create_causal_mask(**given, past_key_values=None)
        for block in blocks:
            x = block(x, allowed, is_causal=True)
        return x
    allowed = masking_utils.create_bidirectional_mask(**given)
    for block in blocks:
        x = block(x, allowed)
    return x


def _run_rotary(model: Any, blocks: list[nn.Module], x: Tensor, given: dict[str, Any]) -> Tensor:
    allowed = {
        "full_attention": masking_utils.create_bidirectional_mask(**given),
        "sliding_attention": masking_utils.create_bidirectional_sliding_window_mask(**given),
    }
    positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    angles = {kind: model.rotary_emb(x, positions, kind) for kind in allowed}
    for block in blocks:
        kind: Any = block.attention_type
        x = block(x, attention_mask=allowed[kind], position_embeddings=angles[kind])
    return x


class _Reached(Exception):  # noqa: N818
    """Leaves a forward pass as soon as what enters a module is known."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def entering(model: nn.Module, stage: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """What enters `stage` in `model(**inputs)`; nothing from there on is computed."""

    def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = parts_of(stage)[0].register_forward_pre_hook(leave, with_kwargs=True)
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.tensor
    finally:
        handle.remove()
    raise RuntimeError(f"{type(model).__name__} never calls {type(stage).__name__}")
