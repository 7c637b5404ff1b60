"""Pictures and texts to the inputs of transformers models, with the model's own processor."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mmtransfer.encoders.decoding import decode_image, decode_text

#: lengths of texts are multiples of it: the kernels of a CPU are made, and kept, for each length
MULTIPLE = 8


class ImageCollate:
    """Pictures to `pixel_values (B, 3, H, W)` with the model's own processor."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        pictures = [decode_image(value) for value in values]
        return {"pixel_values": self.processor(pictures, return_tensors="pt")["pixel_values"]}


class TextCollate:
    """Texts to `input_ids (B, T)` and `attention_mask (B, T)` with the model's own tokenizer.

    T is a multiple of 8, or `max_tokens`.
    fixed: pad all texts to `max_tokens`, and count the padding as text
    """

    def __init__(self, processor: Any, max_tokens: int, fixed: bool = False) -> None:
        self.processor, self.max_tokens, self.fixed = processor, max_tokens, fixed

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        texts = [decode_text(value) for value in values]
        coded = self.processor(
            texts,
            padding="max_length" if self.fixed else True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
            return_attention_mask=True,
        )
        inputs = {name: coded[name] for name in ("input_ids", "attention_mask")}
        if self.fixed:
            inputs["attention_mask"].fill_(1)
            return inputs
        short = self.padding(inputs["input_ids"].shape[1])
        ends = (short, 0) if self.processor.padding_side == "left" else (0, short)
        fill = {"input_ids": self.processor.pad_token_id, "attention_mask": 0}
        return {name: F.pad(ids, ends, value=fill[name]) for name, ids in inputs.items()}

    def padding(self, length: int) -> int:
        """How many tokens texts of this length are padded with."""
        return 0 if self.fixed else min(-length % MULTIPLE, self.max_tokens - length)


def text_limit(model: Any, processor: Any, max_tokens: int | None) -> int:
    """After how many tokens texts are cut: where positions, tokenizer or user say, the first."""
    limit = getattr(model.config, "max_position_embeddings", 10**6)
    table: Any = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if getattr(table, "padding_idx", None) is not None:
        limit -= table.padding_idx + 1  # RoBERTa counts positions from there
    return min(limit, processor.model_max_length, max_tokens or limit)


def resize_processor(processor: Any, size: int) -> None:
    """Make an image processor give `size` x `size` pixels, resize and crop in proportion."""
    if getattr(processor, "do_center_crop", False):
        old, crop = dict(processor.size), dict(processor.crop_size)["height"]
        key = "shortest_edge" if "shortest_edge" in old else "height"
        edge = round(old[key] * size / crop)
        processor.size = dict.fromkeys(old, edge)
        processor.crop_size = {"height": size, "width": size}
    elif getattr(processor, "crop_pct", None) is not None:
        processor.size = {"shortest_edge": size}  # ConvNext: resizes to size / crop_pct, then crops
    else:
        processor.size = {"height": size, "width": size}
