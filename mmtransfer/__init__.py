"""mmtransfer: multimodal transfer learning with pretrained encoders, fusion and few labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmtransfer.encoders.base import Encoder as Encoder
    from mmtransfer.encoders.base import build_encoder as build_encoder
    from mmtransfer.features import Features as Features
    from mmtransfer.features import Fused as Fused
    from mmtransfer.features import Inputs as Inputs
    from mmtransfer.fusion.base import Fusion as Fusion
    from mmtransfer.fusion.base import build_fusion as build_fusion
    from mmtransfer.model import TransferModel as TransferModel
    from mmtransfer.registry import register_encoder as register_encoder
    from mmtransfer.registry import register_fusion as register_fusion
    from mmtransfer.registry import register_method as register_method
    from mmtransfer.registry import register_strategy as register_strategy
    from mmtransfer.registry import register_task as register_task
    from mmtransfer.tasks.base import Task as Task
    from mmtransfer.tasks.base import build_task as build_task
    from mmtransfer.training.options import TrainingOptions as TrainingOptions
    from mmtransfer.training.trainer import Trainer as Trainer
    from mmtransfer.transfer.base import Phase as Phase
    from mmtransfer.transfer.base import Strategy as Strategy
    from mmtransfer.transfer.base import build_strategy as build_strategy

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
