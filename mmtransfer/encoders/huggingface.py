"""Any transformers image, text or audio backbone, by hub id or local directory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from mmtransfer.encoders.base import Encoder, split_stages
from mmtransfer.encoders.decoding import (
    decode_audio,
    decode_image,
    decode_text,
    index_windows,
    join_windows,
    split_windows,
)
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

POOLS = ("none", "mean", "first")
MODALITIES = {
    "pixel_values": "image",
    "input_ids": "text",
    "input_values": "audio",
    "input_features": "audio",
}
PROCESSORS: dict[str, Any] = {
    "image": transformers.AutoImageProcessor,
    "text": transformers.AutoTokenizer,
    "audio": transformers.AutoFeatureExtractor,
}


class ImageCollate:
    """Pictures to `pixel_values (B, 3, H, W)` with the model's own processor."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        pictures = [decode_image(value) for value in values]
        return {"pixel_values": self.processor(pictures, return_tensors="pt")["pixel_values"]}


class TextCollate:
    """Texts to `input_ids (B, T)` and `attention_mask (B, T)` with the model's own tokenizer."""

    def __init__(self, processor: Any, max_tokens: int) -> None:
        self.processor, self.max_tokens = processor, max_tokens

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        texts = [decode_text(value) for value in values]
        coded = self.processor(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return {name: coded[name] for name in ("input_ids", "attention_mask")}


class AudioCollate:
    """Sounds to `sound (W, ...)`, `sound_mask (W, L)` and `windows (B, K)` of each row.

    A clip longer than `window_seconds` becomes several windows.
    """

    def __init__(self, processor: Any, window_seconds: float) -> None:
        self.processor, self.window_seconds = processor, window_seconds
        self.raw = processor.model_input_names[0] == "input_values" and not hasattr(
            processor, "num_mel_bins"
        )

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        rate = self.processor.sampling_rate
        length = round(rate * self.window_seconds)
        windows, counts = [], []
        for value in values:
            cut = split_windows(decode_audio(value).at(rate), length, length)
            # A sliver of sound shorter than the receptive field would give no frame at all.
            windows += [np.pad(w, (0, max(0, rate // 20 - len(w)))) for w in cut]
            counts.append(len(cut))
        options = {"padding": True, "return_attention_mask": True} if self.raw else {}
        coded = self.processor(windows, sampling_rate=rate, return_tensors="pt", **options)
        inputs = {
            "sound": coded[self.processor.model_input_names[0]],
            "windows": index_windows(counts),
        }
        return {**inputs, "sound_mask": coded["attention_mask"]} if self.raw else inputs


@register_encoder("hf")
class HuggingFaceEncoder(Encoder):
    """Any transformers image, text or audio backbone, `hf:<hub id or directory>`.

    pool: "none" gives all tokens, "mean" their mean, "first" the class token (T = 1)
    size: crop size in pixels for images (the resize before it keeps the processor's proportion)
    max_tokens: texts are cut after so many tokens, at the latest where the model's positions end
    window_seconds: longer clips are encoded in windows whose tokens follow each other

    Raises `ValueError` for a model of no known modality or a bad option.
    """

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
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        pooler = getattr(model, "pooler", None)
        if pooler is not None and any(True for _ in pooler.parameters()):
            model.pooler = None  # feeds no token, so its parameters would never get a gradient
        if getattr(model, "masked_spec_embed", None) is not None:
            # Augmentation is ours, per row and seeded; the model's own draws from global state.
            model.masked_spec_embed = None
            model.config.apply_spec_augment = False
        self.model, self.processor = model, processor
        self.pool, self.size, self.max_tokens = pool, size, max_tokens
        self.window_seconds = window_seconds
        if self.modality == "image":
            if size is not None:
                resize_processor(processor, size)
            model.to(memory_format=torch.channels_last)
            self.collate = ImageCollate(processor)
        elif self.modality == "text":
            limit = getattr(model.config, "max_position_embeddings", 10**6)
            table: Any = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
            if getattr(table, "padding_idx", None) is not None:
                limit -= table.padding_idx + 1  # RoBERTa counts positions from there
            limit = min(limit, processor.model_max_length, max_tokens or limit)
            self.collate = TextCollate(processor, limit)
        else:
            seconds = window_seconds or getattr(processor, "chunk_length", None) or 10.0
            self.collate = AudioCollate(processor, seconds)
        self.width = self._width()

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        pool: str = "none",
        size: int | None = None,
        max_tokens: int | None = None,
        window_seconds: float | None = None,
        trust_remote_code: bool = False,
    ) -> HuggingFaceEncoder:
        """Load weights and processor; a local directory never touches the network."""
        local = Path(source).expanduser()
        if not local.is_dir() and (source[:1] in "./~" or source.count("/") > 1):
            raise FileNotFoundError(f"hf:{source}: no such directory")
        where = str(local) if local.is_dir() else source
        options: dict[str, Any] = {
            "local_files_only": local.is_dir(),
            "trust_remote_code": trust_remote_code,
        }
        before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # its report lists the heads that we leave out
        transformers.logging.disable_progress_bar()
        try:
            model, report = AutoModel.from_pretrained(
                where, output_loading_info=True, dtype=torch.float32, **options
            )
        finally:
            transformers.logging.set_verbosity(before)
            transformers.logging.enable_progress_bar()
        unused = ("pooler", "masked_spec_embed")  # parts that the constructor takes off
        missing = sorted(k for k in report["missing_keys"] if not any(u in k for u in unused))
        if missing:
            raise ValueError(
                f"hf:{source} lacks weights of {type(model).__name__}, "
                f"{len(missing)} tensors, the first {missing[0]!r}"
            )
        processor = PROCESSORS[modality_of(model)].from_pretrained(where, **options)
        encoder = cls(model, processor, pool, size, max_tokens, window_seconds)
        encoder.pretrained = True
        return encoder

    @property
    def stages(self) -> list[nn.Module]:
        parts = split_stages(self.model)
        late = [
            m
            for m in parts
            if getattr(self.model.config, "do_stable_layer_norm", False)
            and m is getattr(getattr(self.model, "encoder", None), "layer_norm", None)
        ]
        return [m for m in parts if m not in late] + late

    def forward(self, **inputs: Tensor) -> Features:
        """Outputs of the modality's collate -> tokens (B, T, D)."""
        features = getattr(self, f"_{self.modality}")(**inputs)
        if self.pool == "first":
            return Features(features.tokens[:, :1], features.mask[:, :1])
        return features.pool() if self.pool == "mean" else features

    def _image(self, pixel_values: Tensor) -> Features:
        options = {"interpolate_pos_encoding": True} if self._has_positions() else {}
        pixels = pixel_values.contiguous(memory_format=torch.channels_last)
        hidden = self.model(pixel_values=pixels, **options).last_hidden_state
        if hidden.ndim == 4:  # (B, D, H, W) of a convolutional network
            hidden = hidden.flatten(2).transpose(1, 2)  # (B, H * W, D)
        return Features.of(hidden)

    def _text(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return Features(out.last_hidden_state, attention_mask.bool())

    def _audio(self, sound: Tensor, windows: Tensor, sound_mask: Tensor | None = None) -> Features:
        if sound_mask is None:
            hidden = self.model(**{self.model.main_input_name: sound}).last_hidden_state
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            return Features(*join_windows(hidden, mask, windows))
        if self.processor.return_attention_mask:
            hidden = self.model(sound, attention_mask=sound_mask).last_hidden_state  # (W, T, D)
        else:
            hidden = self._by_length(sound, sound_mask)
        mask = self.model._get_feature_vector_attention_mask(hidden.shape[1], sound_mask).bool()
        return Features(*join_windows(hidden, mask, windows))

    def _by_length(self, sound: Tensor, sound_mask: Tensor) -> Tensor:
        """(W, L) -> (W, T, D) of models whose group norm sees padding and takes no mask.

        Windows of one length, in quarters of a second, go together; so no other clip of the batch
        changes what a clip is padded with.
        """
        quarter = self.processor.sampling_rate // 4
        lengths = [math.ceil(n / quarter) * quarter for n in sound_mask.sum(1).tolist()]
        sound = F.pad(sound, (0, max(lengths) - sound.shape[1]))
        parts = {}
        for length in sorted(set(lengths), reverse=True):
            which = torch.tensor([w for w, n in enumerate(lengths) if n == length])
            which = which.to(sound.device)
            parts[length] = which, self.model(sound[which, :length]).last_hidden_state
        longest = parts[max(lengths)][1]
        hidden = longest.new_zeros(len(lengths), *longest.shape[1:])
        for which, found in parts.values():
            padded = F.pad(found, (0, 0, 0, hidden.shape[1] - found.shape[1]))
            hidden = hidden.index_copy(0, which, padded)
        return hidden

    def _has_positions(self) -> bool:
        return self.size is not None and hasattr(
            getattr(self.model, "embeddings", None), "interpolate_pos_encoding"
        )

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
        if self.modality != "text":
            shown = str(self.processor)
        elif getattr(self.processor, "backend_tokenizer", None) is not None:
            state = json.loads(self.processor.backend_tokenizer.to_str())
            shown = json.dumps(
                {k: v for k, v in state.items() if k not in ("truncation", "padding")}
            )
        else:
            shown = str(sorted(self.processor.get_vocab().items()))
        return super().identity() + json.dumps(model, sort_keys=True, default=str) + shown

    def config(self) -> dict[str, Any]:
        cls = type(self)
        options = ("pool", "size", "max_tokens", "window_seconds")
        saved = {name: getattr(self, name) for name in options}
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "modality": self.modality, **saved}

    def save(self, directory: Path) -> None:
        super().save(directory)
        self.model.config.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    @classmethod
    def restore(cls, directory: Path, config: dict[str, Any]) -> HuggingFaceEncoder:
        options = {k: v for k, v in config.items() if k not in ("class", "modality")}
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        built = AutoConfig.from_pretrained(directory, **safe)
        model = AutoModel.from_config(built, dtype=torch.float32, trust_remote_code=False)
        processor = PROCESSORS[config["modality"]].from_pretrained(directory, **safe)
        return cls(model, processor, **options)


def modality_of(model: nn.Module) -> str:
    """ "image", "text" or "audio".  Raises `ValueError` for any other or several."""
    config: Any = model.config
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        raise ValueError(f"{type(model).__name__} has several towers; load one of them alone")
    name = str(getattr(model, "main_input_name", None))
    if name not in MODALITIES:
        raise ValueError(f"{type(model).__name__} takes {name!r}.{nearest(name, MODALITIES)}")
    return MODALITIES[name]


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
