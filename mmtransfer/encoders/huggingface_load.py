"""Transformers models and their processors, from a hub id, a directory or a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

from mmtransfer.encoders.following import follow, follow_rate
from mmtransfer.encoders.huggingface_attention import attend_without_waiting
from mmtransfer.encoders.huggingface_stages import layout_of
from mmtransfer.registry import nearest

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
TOWERS = ("vision", "text")


def load_pretrained(
    source: str, tower: str | None = None, trust_remote_code: bool = False, prefix: str = "hf"
) -> tuple[Any, Any]:
    """Model and processor of a hub id or directory; a directory never touches the network.

    tower: "vision" or "text" of a model that has both
    prefix: how messages name the source
    Raises `FileNotFoundError` for a missing directory, `ValueError` for missing weights or towers.
    """
    local = Path(source).expanduser()
    if not local.is_dir() and (source[:1] in "./~" or source.count("/") > 1):
        raise FileNotFoundError(f"{prefix}:{source}: no such directory")
    where = str(local) if local.is_dir() else source
    options: dict[str, Any] = {
        "local_files_only": local.is_dir(),
        "trust_remote_code": trust_remote_code,
    }
    has_towers = _has_towers(AutoConfig.from_pretrained(where, **options))
    if tower is not None and tower not in TOWERS:
        raise ValueError(f"unknown tower {tower!r}.{nearest(tower, TOWERS)}")
    if has_towers and tower is None:
        raise ValueError(
            f"{prefix}:{source} has two towers: choose {prefix}:{source}?tower=vision for images "
            f"or {prefix}:{source}?tower=text for texts"
        )
    if tower is not None and not has_towers:
        raise ValueError(f"{prefix}:{source} has a single tower: leave tower={tower!r} out")
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
    unused = ("pooler", "masked_spec_embed")  # parts that `strip` takes off
    missing = sorted(k for k in report["missing_keys"] if not any(u in k for u in unused))
    if missing:
        raise ValueError(
            f"{prefix}:{source} lacks weights of {type(model).__name__}, "
            f"{len(missing)} tensors, the first {missing[0]!r}"
        )
    if tower is not None:
        model = getattr(model, f"{tower}_model")
    return model, PROCESSORS[modality_of(model)].from_pretrained(where, **options)


def rebuild(directory: Path, modality: str) -> tuple[Any, Any]:
    """Model, with random weights, and processor out of what an encoder saved in `directory`."""
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(directory, **safe)
    if config.model_type == "siglip_text_model":  # AutoModel does not know it
        model = transformers.SiglipTextModel._from_config(config, dtype=torch.float32)
    else:
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model, PROCESSORS[modality].from_pretrained(directory, **safe)


def modality_of(model: nn.Module) -> str:
    """ "image", "text" or "audio".  Raises `ValueError` for any other or several."""
    if _has_towers(model.config):
        raise ValueError(f"{type(model).__name__} has several towers; load one of them alone")
    name = str(getattr(model, "main_input_name", None))
    if name not in MODALITIES:
        raise ValueError(f"{type(model).__name__} takes {name!r}.{nearest(name, MODALITIES)}")
    return MODALITIES[name]


def _has_towers(config: Any) -> bool:
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def strip(model: Any) -> Any:
    """The encoder alone, without what feeds no token and without draws from global random state."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        model.pooler = None
    if getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
        model.embeddings.mask_token = None  # of masked pretraining
    layout = layout_of(model.config)
    for name in layout.unused if layout is not None else ():
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
    # Augmentation is ours, per row and seeded; the model's own draws from global state.
    if getattr(model, "masked_spec_embed", None) is not None:
        model.masked_spec_embed = None
        model.config.apply_spec_augment = False
    # So does LayerDrop, which would also leave parameters without gradients: runs must repeat.
    for holder in (model, model.config):
        for name in ("layerdrop", "encoder_layerdrop"):
            if getattr(holder, name, None):
                setattr(holder, name, 0.0)
    position = getattr(getattr(model, "encoder", None), "pos_conv_embed", None)
    if position is not None:
        follow(model.encoder.dropout, position)
    if model.config.model_type == "whisper":
        follow_rate(model, model.conv1)
    attend_without_waiting(model)
    return model
