"""What a checkpoint and the run that takes it up must have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator

from mmtransfer.data.rows import Rows
from mmtransfer.data.stream import is_stream
from mmtransfer.model import TransferModel
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.sharding import whole
from mmtransfer.transfer.base import Strategy

#: options that change how a run is carried out and watched, but no number of it
FREE = (
    "evaluation_batch_size",
    "workers",
    "cache",
    "track",
    "progress",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "on_nan",
    "on_oom",
)
#: options whose change leaves the course of training, but not its last digits
INEXACT = ("accumulation", "precision", "feature_precision", "prefix_cache", "compile")


def identity(
    model: TransferModel,
    strategy: Strategy,
    options: TrainingOptions,
    data: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What must be the same, or it would be another run: JSON text by name.

    data: `fingerprints` of the splits that decide about the weights
    """
    chosen = {k: v for k, v in asdict(options).items() if k not in (*FREE, *INEXACT)}
    entries = {
        **chosen,
        "strategy": strategy.config(),
        "encoders": list(model.encoders),
        **{f"encoder {name!r}": short_digest(e.identity()) for name, e in model.encoders.items()},
        "fusion": model.fusion.config(),
        "tasks": {name: task.config() for name, task in model.tasks.items()},
        **{f"{split} {name}": value for split, of in data.items() for name, value in of.items()},
    }
    return {name: json.dumps(entry, default=str) for name, entry in entries.items()}


def setting(options: TrainingOptions, accelerator: Accelerator, train: Rows) -> dict[str, Any]:
    """What may differ; then the numbers agree to rounding and other drop-out draws only.

    A stream deals its rows to processes and workers, so that these decide about its batches, too.
    """
    found = {name: getattr(options, name) for name in INEXACT} | {
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "torch": str(torch.__version__),
    }
    return found | ({"workers": options.workers} if is_stream(train) else {})


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: was .., is ..` for each entry that differs."""
    return [
        f"{name}: was {_short(before.get(name))}, is {_short(now.get(name))}"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def short_digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_of(model: torch.nn.Module, without: set[str]) -> str:
    """Digest of all parameters but some; all processes ask together."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if name not in without:
            digest.update(name.encode())
            digest.update(whole(parameter).reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _short(value: Any, most: int = 80) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"
