"""Any transformers image, text or audio backbone, by hub id or local directory."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.encoders.base import Encoder, split_stages
from mmtransfer.encoders.decoding import join_windows, part_windows
from mmtransfer.encoders.grouping import by_length
from mmtransfer.encoders.huggingface_collate import (
    ImageCollate,
    TextCollate,
    resize_processor,
    text_limit,
)
from mmtransfer.encoders.huggingface_load import load_pretrained, modality_of, rebuild, strip
from mmtransfer.encoders.huggingface_sound import (
    AudioCollate,
    hear,
    takes_mask,
    window_tokens,
)
from mmtransfer.encoders.huggingface_stages import Layout, divide, entering, layout_of, run_above
from mmtransfer.encoders.numbers import check_count
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

POOLS = ("none", "mean", "first")
SQUARES = ("maps", "grid")  # flows in which tokens are places of a square


@register_encoder("hf")
class HuggingFaceEncoder(Encoder):
    """Any transformers image, text or audio backbone, `hf:<hub id or directory>`.

    pool: "none" gives all tokens, "mean" their mean, "first" the class token (T = 1)
    size: crop size in pixels for images (the resize before it keeps the processor's proportion)
    max_tokens: texts are cut after so many tokens, at the latest where the model's positions end
    window_seconds: longer clips are encoded in windows whose tokens follow each other

    Stages and cuts of the architectures in `huggingface_stages.LAYOUTS` are declared there; others
    have the stages of `split_stages` and no cuts.
    Raises `ValueError` for a model of no known modality or a bad option.
    """

    #: constructor arguments beside model and processor, which are saved with them
    OPTIONS: tuple[str, ...] = ("pool", "size", "max_tokens", "window_seconds")
    model: Any  # of no common type: every architecture has a class of its own

    def __init__(
        self,
        model: Any,
        processor: Any,
        pool: str = "none",
        size: int | None = None,
        max_tokens: int | None = None,
        window_seconds: float | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}.{nearest(pool, POOLS)}")
        self.modality = modality_of(model)
        check_own(self.modality, size=size, max_tokens=max_tokens, window_seconds=window_seconds)
        self.model, self.processor = strip(model), processor
        self.pool, self.size, self.max_tokens = pool, size, max_tokens
        self.window_seconds = window_seconds
        self.layout = layout_of(self.model.config)
        if pool == "first" and self.layout is not None and not self.layout.class_token:
            raise ValueError(
                f"pool 'first' needs a class token, {type(model).__name__} has none. "
                "Valid: none, mean."
            )
        if self.modality == "image":
            if size is not None:
                resize_processor(processor, size)
            self.model.to(memory_format=torch.channels_last)
            self.collate = ImageCollate(processor)
        elif self.modality == "text":
            limit = text_limit(self.model, processor, max_tokens)
            # SigLIP learned from texts padded to one length, whose padding it sees.
            fixed = self.model.config.model_type == "siglip_text_model"
            self.collate = TextCollate(processor, limit, fixed)
        else:
            self.collate = AudioCollate(processor, window_seconds)
        self.width = self._width()

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        pool: str = "none",
        size: int | None = None,
        max_tokens: int | None = None,
        window_seconds: float | None = None,
        tower: str | None = None,
        trust_remote_code: bool = False,
    ) -> HuggingFaceEncoder:
        """Load weights and processor; a local directory never touches the network.

        tower: "vision" or "text", of a model that has both (CLIP, SigLIP)
        """
        model, processor = load_pretrained(source, tower, trust_remote_code)
        encoder = cls(model, processor, pool, size, max_tokens, window_seconds)
        encoder.pretrained = True
        return encoder

    @property
    def stages(self) -> list[nn.Module]:
        if self.layout is None:
            return split_stages(self.model)
        depth = divide(self.model, self.layout)
        return [*depth.stem, *depth.blocks, *depth.tail]

    @property
    def cuts(self) -> Sequence[int]:
        if self.layout is None or self.layout.flow is None:
            return ()
        if self.layout.flow in SQUARES and not self._square:
            return ()
        depth = divide(self.model, self.layout)
        first = len(depth.stem)
        return range(first, first + len(depth.blocks) + len(depth.tail))

    def forward(self, **inputs: Tensor) -> Features:
        """Outputs of the modality's collate -> tokens (B, T, D)."""
        return self._finish(self._encode(None, **inputs))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        """Sounds have one more channel: 1 where a token is sound, 0 where padding is heard too."""
        self._layout(depth)
        return self._encode(self.stages[depth], **inputs)

    def above(self, depth: int, activations: Features) -> Features:
        layout = self._layout(depth)
        if self.modality == "audio":
            return self._finish(self._sound_above(layout, depth, activations))
        if self.modality == "text":
            assert isinstance(self.collate, TextCollate)
            # As long as the texts were: drop-out draws for the padding too.
            short = self.collate.padding(activations.mask.shape[1])
            mask = F.pad(activations.mask, (0, short))
            x = F.pad(activations.tokens, (0, 0, 0, short))
            return self._finish(Features(run_above(self.model, layout, depth, x, mask), mask))
        maps = layout.flow == "maps"
        x = activations.as_map() if maps else activations.tokens
        hidden = run_above(self.model, layout, depth, x)
        tokens = Features.of_map(hidden).tokens if maps else hidden
        present = activations.present.unsqueeze(1)  # an absent row stays absent
        return self._finish(Features(tokens, present.expand(tokens.shape[:2])))

    def _layout(self, depth: int) -> Layout:
        if self.layout is None or depth not in self.cuts:
            raise ValueError(
                f"{type(self.model).__name__} has no cut at depth {depth}; "
                f"its cuts: {list(self.cuts) or '(none)'}"
            )
        return self.layout

    def _encode(self, until: nn.Module | None, **inputs: Tensor) -> Features:
        """All tokens of the model, or what enters the stage `until`."""
        if self.modality == "image":
            return self._image(until, **inputs)
        return (self._text if self.modality == "text" else self._sound)(until, **inputs)

    def _hidden(self, until: nn.Module | None, **inputs: Any) -> Tensor:
        if until is not None:
            return entering(self.model, until, inputs)
        hidden: Tensor = self.model(**inputs).last_hidden_state
        return hidden

    def _finish(self, features: Features) -> Features:
        if self.pool == "first":
            return Features(features.tokens[:, :1], features.mask[:, :1])
        return features.pool() if self.pool == "mean" else features

    def _image(self, until: nn.Module | None, pixel_values: Tensor) -> Features:
        pixels = pixel_values.contiguous(memory_format=torch.channels_last)
        options = {"interpolate_pos_encoding": True} if self._has_positions() else {}
        hidden = self._hidden(until, pixel_values=pixels, **options)
        divided = self.layout is not None and until is not None and self.layout.flow in SQUARES
        if divided and pixels.shape[2] != pixels.shape[3]:
            raise ValueError(f"cuts need square pictures, found {tuple(pixels.shape)}")
        if hidden.ndim == 4:  # (B, D, H, W) of a convolutional network
            hidden = hidden.flatten(2).transpose(1, 2)  # (B, H * W, D)
        return Features.of(hidden)

    def _text(self, until: nn.Module | None, input_ids: Tensor, attention_mask: Tensor) -> Features:
        hidden = self._hidden(until, input_ids=input_ids, attention_mask=attention_mask)
        return Features(hidden, attention_mask.bool())

    def _sound(
        self,
        until: nn.Module | None,
        windows: Tensor,
        sound_mask: Tensor | None = None,
        **sounds: Tensor,
    ) -> Features:
        def hidden_of(**given: Tensor) -> Tensor:
            return self._hidden(until, **given)

        hidden, heard, real = hear(
            self.model, self.processor, hidden_of, list(sounds.values()), sound_mask
        )
        if until is None:
            return Features(*join_windows(hidden, real, windows))
        marked = torch.cat([hidden, real.unsqueeze(-1).to(hidden.dtype)], -1)  # (W, T, D + 1)
        return Features(*join_windows(marked, heard, windows))

    def _sound_above(self, layout: Layout, depth: int, activations: Features) -> Features:
        size = window_tokens(self.model, self.processor, self.window_seconds)
        marked, heard, windows, lengths = part_windows(activations, size)
        x, real = marked[..., :-1], marked[..., -1] > 0.5
        if takes_mask(self.processor):
            hidden = run_above(self.model, layout, depth, x, heard)
        else:
            hidden = by_length(
                x, heard, lengths, lambda group: run_above(self.model, layout, depth, group)
            )
        return Features(*join_windows(hidden, real & heard, windows))

    @cached_property
    def _square(self) -> bool:
        """Whether pictures become squares; a processor that keeps their proportion makes none."""
        height, width = self.collate([Image.new("RGB", (64, 48))])["pixel_values"].shape[2:]
        return bool(height == width)

    def _has_positions(self) -> bool:
        forward = inspect.signature(type(self.model).forward).parameters
        return self.size is not None and "interpolate_pos_encoding" in forward

    def _width(self) -> int:
        config = self.model.config
        if hasattr(config, "hidden_size"):
            return int(config.hidden_size)
        if hasattr(config, "hidden_sizes"):
            return int(config.hidden_sizes[-1])
        # Some configurations do not say: ask the model.
        training = self.model.training
        with torch.no_grad():
            width = self.eval()(**self.collate([Image.new("RGB", (64, 64))])).width
        self.train(training)
        return width

    def identity(self) -> str:
        model = self.model.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "architectures", "dtype"):
            model.pop(name, None)  # say where the weights came from, not what they compute
        if not isinstance(self.collate, TextCollate):
            shown = str(self.processor)
        elif getattr(self.processor, "backend_tokenizer", None) is not None:
            state = json.loads(self.processor.backend_tokenizer.to_str())
            shown = json.dumps(
                {k: v for k, v in state.items() if k not in ("truncation", "padding")}
            )
        else:
            shown = str(sorted(self.processor.get_vocab().items()))
        if isinstance(self.collate, TextCollate):
            coder = self.processor
            shown += f"{self.collate.max_tokens} {coder.truncation_side} {coder.padding_side}"
        return super().identity() + json.dumps(model, sort_keys=True, default=str) + shown

    def config(self) -> dict[str, Any]:
        cls = type(self)
        saved = {name: getattr(self, name) for name in self.OPTIONS}
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "modality": self.modality, **saved}

    def save(self, directory: Path) -> None:
        super().save(directory)
        self.model.config.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    @classmethod
    def restore(cls, directory: Path, config: dict[str, Any]) -> HuggingFaceEncoder:
        options = {k: v for k, v in config.items() if k not in ("class", "modality")}
        return cls(*rebuild(directory, config["modality"]), **options)


def check_own(modality: str, **options: Any) -> None:
    """Raise `ValueError` for an option of another modality, or a count that is not above zero."""
    owners = {"size": "image", "max_tokens": "text", "window_seconds": "audio"}
    for name, value in options.items():
        if value is None:
            continue
        if owners[name] != modality:
            own = [option for option, owner in owners.items() if owner == modality]
            raise ValueError(
                f"{name} is for models of {owners[name]}, this one's modality is {modality}; "
                f"its own: {', '.join(own)}"
            )
        if name != "window_seconds":  # whose bounds depend on the model
            check_count(name, value)
