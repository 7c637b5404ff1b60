"""How training runs: everything that is no question of transfer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmtransfer.registry import nearest

CHOICES = {
    "precision": ("no", "bf16", "fp16"),
    "feature_precision": ("fp32", "fp16", "bf16"),
    "order": ("shuffled", "length", "balanced"),
    "on_error": ("raise", "missing"),
    "on_nan": ("raise", "skip"),
    "on_oom": ("raise", "halve"),
}
AT_LEAST_ONE = (
    "batch_size",
    "accumulation",
    "evaluation_batch_size",
    "keep_checkpoints",
    "shuffle_buffer",
    "steps_per_epoch",
)
NOT_NEGATIVE = (
    "clip",
    "patience",
    "workers",
    "checkpoint_steps",
    "checkpoint_minutes",
    "feature_views",
)


@dataclass
class TrainingOptions:
    """Options of the loop.

    Attributes:
        batch_size: rows of one optimiser step, over all processes and accumulated micro-batches
        accumulation: micro-batches per step, each of batch_size / accumulation / processes rows
        evaluation_batch_size: rows per process and forward pass without gradients
        precision: "no", "bf16" or "fp16" (autocast; fp16 needs a GPU)
        compile: torch.compile the encoders that train (slow first steps, needs a C++ compiler; a
            resumed run then agrees to rounding, not to the last digit)
        clip: largest gradient norm, 0 for no clipping
        patience: epochs of a phase without a better validation score before it ends, 0 for never
        order: of the training rows: "shuffled"; "length" puts rows of similar length into a batch,
            so that less is padding; "balanced" draws rows of small classes more often
        balance_by: the task whose classes order "balanced" looks at, by default the first
        balance: 1 draws all classes equally often, 0.5 by the square root of their size
        streaming: read rows only in order, from the hub without a download
        steps_per_epoch: of a stream; by default as many as one pass of it needs
        shuffle_buffer: rows of a stream that are mixed at a time, in each reading process
        workers: loader processes per training process
        on_error: "raise" stops at an unreadable value and names it, "missing" counts it as missing
        augment: random changes of the training values of trainable encoders: true, false, or
            `{column or modality: true, false or {option: value}}` (docs/augmentation.md)
        seed: of row order, drop-out and augmentation
        cache: directory of the feature store, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        feature_precision: in which features are stored: "fp32", "fp16" or "bf16"
        feature_views: augmented versions of each training row that are stored and taken in turn,
            epoch by epoch, of columns that `augment` names; 0 to store them as they are
        prefix_cache: of an encoder whose upper stages train, store the activations below them
        checkpoint_steps: steps from one checkpoint to the next, 0 for none by steps
        checkpoint_minutes: minutes from one checkpoint to the next, 0 for none by time
        keep_checkpoints: how many stay
        on_nan: "raise" stops at a loss that is no number, and with `clip` at gradients that are
            not finite, and names the rows; "skip" leaves the step out and counts it
        on_oom: "raise", or "halve" to go on with half the rows per micro-batch and twice as many
            micro-batches when memory runs out (on one process)
        track: trackers of accelerate, by name
        progress: show progress bars (on the main process)
    """

    batch_size: int = 32
    accumulation: int = 1
    evaluation_batch_size: int = 64
    precision: str = "no"
    compile: bool = False
    clip: float = 1.0
    patience: int = 0
    order: str = "shuffled"
    balance_by: str | None = None
    balance: float = 1.0
    streaming: bool = False
    steps_per_epoch: int | None = None
    shuffle_buffer: int = 1000
    workers: int = 0
    on_error: str = "raise"
    augment: bool | dict[str, Any] = False
    seed: int = 0
    cache: str | None = None
    feature_precision: str = "fp32"
    feature_views: int = 0
    prefix_cache: bool = True
    checkpoint_steps: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    on_nan: str = "raise"
    on_oom: str = "raise"
    track: list[str] = field(default_factory=lambda: ["tensorboard"])
    progress: bool = True

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}.{nearest(str(value), choices)}")
        if self.balance_by is not None and self.order != "balanced":
            raise ValueError(f"balance_by is for order 'balanced', found order {self.order!r}")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance must lie in [0, 1], found {self.balance}")
        for name in AT_LEAST_ONE:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.feature_views and not self.augment:
            raise ValueError(
                f"feature_views are augmented versions, found {self.feature_views} and no augment: "
                "set augment too"
            )
        if not isinstance(self.augment, bool):
            from mmtransfer.data.augment import check_augment  # torchvision takes long to load

            check_augment(self.augment)
