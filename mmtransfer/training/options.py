"""How training runs: everything that is no question of transfer."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmtransfer.registry import nearest

PRECISIONS = ("no", "bf16", "fp16")
ORDERS = ("shuffled", "length", "balanced")


@dataclass
class TrainingOptions:
    """Options of the loop.

    Attributes:
        batch_size: rows of one optimiser step, over all processes and accumulated micro-batches
        accumulation: micro-batches per step, each of batch_size / accumulation / processes rows
        evaluation_batch_size: rows per process and forward pass without gradients
        precision: "no", "bf16" or "fp16" (autocast; fp16 needs a GPU)
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
        augment: random changes of the training values of trainable image, text and audio encoders
        seed: of row order, drop-out and augmentation
        cache: directory of the feature store, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        track: trackers of accelerate, by name
        progress: show progress bars (on the main process)
    """

    batch_size: int = 32
    accumulation: int = 1
    evaluation_batch_size: int = 64
    precision: str = "no"
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
    augment: bool = False
    seed: int = 0
    cache: str | None = None
    track: list[str] = field(default_factory=lambda: ["tensorboard"])
    progress: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"unknown precision {self.precision!r}.{nearest(self.precision, PRECISIONS)}"
            )
        if self.order not in ORDERS:
            raise ValueError(f"unknown order {self.order!r}.{nearest(self.order, ORDERS)}")
        if self.balance_by is not None and self.order != "balanced":
            raise ValueError(f"balance_by is for order 'balanced', found order {self.order!r}")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance must lie in [0, 1], found {self.balance}")
        least_one = ("batch_size", "accumulation", "evaluation_batch_size", "shuffle_buffer")
        for name in (*least_one, "steps_per_epoch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("clip", "patience", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
