"""Which rows come when in training: what the options ask for, and whether the data allows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from mmtransfer.data.lengths import column_lengths, joint_lengths
from mmtransfer.data.orders import Balanced, BlockShuffled, LengthGrouped, Order, Shuffled
from mmtransfer.data.rows import Rows, column
from mmtransfer.data.samplers import TrainBatches
from mmtransfer.data.stream import as_stream, is_stream
from mmtransfer.data.stream_batches import TrainStream, steps_of
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.registry import nearest
from mmtransfer.tasks.base import Task
from mmtransfer.training.options import TrainingOptions


def check_order(rows: Rows, tasks: Mapping[str, Task], options: TrainingOptions) -> None:
    """Raise `ValueError` if the train rows cannot be had in the order that the options ask for.

    The tasks know their classes by now.
    """
    parts = options.accumulation, 0, PartialState().num_processes
    if is_stream(rows):
        if options.order != "shuffled":
            raise ValueError(
                f"a stream cannot be read in order {options.order!r}: expected 'shuffled', "
                "or rows that have a length"
            )
        stream = as_stream(rows)
        steps = steps_of(stream, options.batch_size, options.steps_per_epoch)
        TrainStream(stream, options.batch_size, options.seed, steps, *parts)  # checks its parts
    elif options.steps_per_epoch is not None:
        raise ValueError(
            f"steps_per_epoch is for streams, found {options.steps_per_epoch} with rows that have "
            "a length: leave it out, or set streaming"
        )
    else:
        TrainBatches(len(rows), options.batch_size, options.seed, *parts)
    if options.balance_by is not None and options.balance_by not in tasks:
        raise ValueError(
            f"balance_by names no task: found {options.balance_by!r}."
            f"{nearest(options.balance_by, tasks)}"
        )
    if options.order == "balanced":
        name = options.balance_by or next(iter(tasks))
        labels_of(rows, name, tasks[name])


def choose_order(
    rows: Any, model: TransferModel, options: TrainingOptions, lengths: dict[str, Tensor]
) -> Order:
    """The order of the train rows in the present phase.

    lengths: those of columns measured before; columns measured now are added
    """
    if options.order == "balanced":
        name = options.balance_by or next(iter(model.tasks))
        return Balanced(labels_of(rows, name, model.tasks[name]), options.seed, options.balance)
    if options.order == "length":
        return LengthGrouped(lengths_of(rows, model, lengths), options.batch_size, options.seed)
    if hasattr(rows, "blocks"):
        used = [n for n in (*model.encoders, *model.tasks) if n in rows.column_names]
        resident = rows.select_columns(used).resident
        if resident < len(rows.blocks) - 1:
            # Half of what stays in memory: a batch may begin in one window and end in the next.
            return BlockShuffled(rows.blocks, options.seed, max(1, resident // 2))
    return Shuffled(len(rows), options.seed)


def labels_of(rows: Rows, name: str, task: Task) -> Tensor:
    """(N,) class of each row, -1 where unlabelled.  Raises `ValueError` for other targets."""
    codes = task.encode(list(column(rows, name)))
    if codes.ndim != 1 or codes.is_floating_point():
        raise ValueError(
            f"order 'balanced' needs a task with one class per row, but the targets of {name!r} "
            f"are {tuple(codes.shape)} {codes.dtype}: name another task in balance_by"
        )
    return torch.where(task.labelled(codes), codes, -1)


def lengths_of(rows: Rows, model: TransferModel, known: dict[str, Tensor]) -> Tensor:
    """(N,) length of each row: of what the encoders that train now, or else all, have to read."""
    trained = [name for name, encoder in model.encoders.items() if is_trainable(encoder)]
    columns = []
    for name in trained or model.encoders:
        modality = model.encoders[name].modality
        if modality == "image":
            continue  # all pictures are made the same size
        if name not in known:
            known[name] = column_lengths(column(rows, name), files=modality == "audio")
        columns.append(known[name])
    return joint_lengths(columns) if columns else torch.ones(len(rows))
