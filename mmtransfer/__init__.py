"""mmtransfer: multimodal transfer learning with pretrained encoders, fusion and few labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmtransfer.encoders.base import Encoder, build_encoder
    from mmtransfer.features import Features, Fused, Inputs
    from mmtransfer.fusion.base import Fusion, build_fusion
    from mmtransfer.model import TransferModel
    from mmtransfer.registry import (
        register_encoder,
        register_fusion,
        register_method,
        register_strategy,
        register_task,
    )
    from mmtransfer.tasks.base import Task, build_task
    from mmtransfer.training.options import TrainingOptions
    from mmtransfer.training.trainer import Trainer
    from mmtransfer.transfer.base import Phase, Strategy, build_strategy

_HOME = {
    "Encoder": "encoders.base",
    "build_encoder": "encoders.base",
    "Features": "features",
    "Fused": "features",
    "Inputs": "features",
    "Fusion": "fusion.base",
    "build_fusion": "fusion.base",
    "TransferModel": "model",
    "register_encoder": "registry",
    "register_fusion": "registry",
    "register_method": "registry",
    "register_strategy": "registry",
    "register_task": "registry",
    "Task": "tasks.base",
    "build_task": "tasks.base",
    "Phase": "transfer.base",
    "Strategy": "transfer.base",
    "build_strategy": "transfer.base",
    "TrainingOptions": "training.options",
    "Trainer": "training.trainer",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    # Names load on first use, so that `import mmtransfer` does not import torch.
    if name not in _HOME:
        raise AttributeError(f"module 'mmtransfer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmtransfer.{_HOME[name]}"), name)
