"""The task contract."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmtransfer.tasks.base import Task
from mmtransfer.testing.contract import ContractError, check_saved_form, require, saying


def check_task(task: Task, values: Sequence[Any], width: int = 8) -> None:
    """Verify the task contract on raw target values of the training column.

    Raises `ContractError`.
    """
    require(isinstance(task, Task), f"{type(task).__name__} is no subclass of Task")
    rows = len(values) + 1
    with saying("fit"):
        task.fit(values)
    check_saved_form(task)
    with saying("encode of the values and None"):
        targets = task.encode([*values, None])
    require(isinstance(targets, Tensor), f"encode gave a {type(targets).__name__}, not a tensor")
    require(len(targets) == rows, f"encode gave {len(targets)} targets of {rows} values")
    with saying("labelled"):
        labelled = task.labelled(targets)
    require(
        labelled.shape == (rows,) and labelled.dtype == torch.bool,
        f"labelled must be one bool per row, found {tuple(labelled.shape)} {labelled.dtype}",
    )
    require(not bool(labelled[-1]), "None must be encoded as unlabelled")
    known = torch.tensor(
        [
            not (value is None or (isinstance(value, float) and math.isnan(value)))
            for value in values
        ]
    )
    require(torch.equal(labelled[:-1], known), "rows that have a label are not those of labelled")
    with saying("head"):
        head: nn.Module = task.head(width)
        logits = head(torch.randn(rows, width))
    require(logits.ndim == 2 and len(logits) == rows, f"logits are {tuple(logits.shape)}")
    with saying("loss"):
        loss = task.loss(logits, targets)
    found = tuple(loss.shape)
    require(loss.shape == (rows,), f"loss must be one value per row, found {found}")
    require(bool(torch.isfinite(loss).all()), "the loss is not finite")
    require(float(loss[-1].detach()) == 0, "an unlabelled row must have loss 0")
    with saying("loss_weight"):
        weight = task.loss_weight(targets)
    found = tuple(weight.shape)
    require(weight.shape == loss.shape, f"loss_weight must be one value per row, found {found}")
    require(float(weight[-1]) == 0, "an unlabelled row must have loss_weight 0")
    with saying("the backward pass"):
        loss.sum().backward()
    require(all(p.grad is not None for p in head.parameters()), "the head gets no gradient")
    with saying("predict"):
        predictions = task.predict(logits.detach())
    require(len(predictions) == rows, "predict must give one dictionary per row")
    try:
        json.dumps(predictions)
    except TypeError as error:
        raise ContractError(f"predict must give plain values that JSON holds: {error}") from error
    with saying("rebuilding it from config()"):
        twin = Task.from_config(json.loads(json.dumps(task.config())))
        again = twin.encode(values)
    require(torch.equal(again, targets[:-1]), "the reloaded task encodes otherwise")
    with saying("metrics"):
        metrics = task.metrics()
        metrics.update(logits.detach()[labelled], targets[labelled])
        computed = metrics.compute()
    require(
        task.score in computed,
        f"score {task.score!r} is none of the metrics ({', '.join(computed)})",
    )
