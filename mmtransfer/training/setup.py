"""What stands around the loop: the accelerator, the rate curve, what processes share."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._functorch.config
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    LoggerType,
    ProjectConfiguration,
    broadcast,
)
from torch import nn

from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.registry import nearest
from mmtransfer.training.options import TrainingOptions
from mmtransfer.transfer.base import Phase

SETTLING_SECONDS = 0.2


def make_accelerator(options: TrainingOptions, output: Path | None) -> Accelerator:
    """An accelerator for this run; trackers, which `Log` starts, where there is an output."""
    # The tokenizers library warns at each fork unless it is told not to use threads of its own.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if output is not None:
        check_trackers(options.track)
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state()  # an earlier run here may have had another precision
    accelerator = Accelerator(
        mixed_precision=options.precision,
        log_with=list(options.track) or None if output is not None else None,
        project_config=ProjectConfiguration(logging_dir=str(output)) if output else None,
        kwargs_handlers=[DistributedDataParallelKwargs()],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    share_out(accelerator)
    if options.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU, found the CPU: use 'bf16' or 'no'")
    return accelerator


def launched_as(options: TrainingOptions, accelerator: Accelerator) -> str:
    """One line about the processes that a run really has."""
    count, device = accelerator.num_processes, accelerator.device.type
    processes = f"{count} process{'es' if count > 1 else ''} on {device}"
    return f"{processes}, {options.batch_size} rows per step, precision {options.precision}"


def check_trackers(names: list[str]) -> None:
    """Raise `ValueError` for a tracker that accelerate does not know or that is not installed."""
    known = [str(kind) for kind in LoggerType if kind != LoggerType.ALL]
    here = [str(kind) for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown tracker {name!r}.{nearest(name, known)}")
        if name not in here:
            raise ValueError(f"tracker {name!r} is not installed: found {', '.join(here)}")


def share_out(accelerator: Accelerator) -> None:
    """Let FSDP2 take effect where accelerate 1.15 drops it silently.

    That is on CPU processes, and in a process that had an accelerator before.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and accelerator.num_processes > 1 and "fsdp_plugin" not in vars(accelerator.state):
        plugin = FullyShardedDataParallelPlugin()
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    if accelerator.num_processes > 1 and accelerator.is_fsdp2:
        # Autocast as everywhere else; the plugin would turn parameters and not inputs to bf16.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of handing each back to the kernel.

    On CPUs half the time of a training step can go into mapping the same pages again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def give_back_memory() -> None:
    """Hand freed memory back to the kernel after all, where so much of it is not needed again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def end_processes() -> None:
    """Last line of a script: all processes leave together, as gloo aborts otherwise."""
    state = PartialState()
    state.wait_for_everyone()
    if state.num_processes > 1:
        # A DistributedDataParallel that dies last joins gloo's threads while it holds Python's
        # lock; they need that lock to let go of the tensors of the last collective: a deadlock.
        gc.collect()
        time.sleep(SETTLING_SECONDS)
    state.destroy_process_group()


def rate_curve(phase: Phase, steps: int) -> Callable[[int], float]:
    """Share of the peak rate at each step: linear warm-up, then a half cosine or constant."""
    warmup = round(phase.warmup * steps)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if phase.schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return share


def synchronise_batch_norm(model: TransferModel, accelerator: Accelerator) -> None:
    """Let batch norm that trains see the whole batch of all processes; only GPUs can."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model.train()
        for part in model.modules():
            for name, child in list(part.named_children()):
                if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training:
                    setattr(part, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def compile_encoders(model: TransferModel, repeated: bool = False) -> None:
    """Compile the encoders that train, in place: names of parameters and modules stay.

    repeated: a backward pass may be followed by another one through the same graph
    Raises `ValueError` where there is no compiler.
    """
    compilers = (os.environ.get("CXX") or "g++", "c++", "clang++")
    if not any(shutil.which(name) for name in compilers):
        raise ValueError(
            f"compile needs a C++ compiler, found none of {', '.join(compilers)}: install one, or "
            "leave compile off"
        )
    # Else a compiled backward pass overwrites what the second one needs (torch 2.11).
    torch._functorch.config.donated_buffer = not repeated
    for encoder in model.encoders.values():
        if is_trainable(encoder):
            encoder.compile()
            encoder.__dict__["above"] = torch.compile(encoder.above)  # from stored activations


def forget_compiled(model: TransferModel) -> None:
    """Undo `compile_encoders`."""
    for encoder in model.encoders.values():
        encoder._compiled_call_impl = None
        encoder.__dict__.pop("above", None)


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the running statistics of the first, which is the one that saves them."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
