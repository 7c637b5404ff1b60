"""LwF: tasks of the source are found, and their answers are kept."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.lwf import LwF

from .conftest import numbers
from .looking import batch_of, looking, losses_of, small_model


def rows_without(task):
    return [row | {task: None} for row in numbers()]


def test_the_answers_of_the_start_are_the_aim():
    model, method, rows = small_model(), LwF(weight=2.0, temperature=2.0), rows_without("good")
    method.begin(model, looking(model, rows))
    assert method.state_dict()["answers"].keys() == {"good"}
    batch = batch_of(model, [*list(enumerate(rows))[3:9], (~3, rows[3])])
    outputs = model.train()(batch.inputs, len(batch))
    before = outputs.logits["good"].detach()[:6]
    loss = losses_of(model, batch, outputs)
    torch.testing.assert_close(method.on_loss(loss, model, batch, outputs), loss, atol=1e-6, rtol=0)
    for p in model.heads["good"].parameters():
        p.data += torch.randn_like(p)
    outputs = model(batch.inputs, len(batch))
    loss = losses_of(model, batch, outputs)
    was, now = ((x / 2).softmax(1) for x in (before, outputs.logits["good"][:6]))
    cross = -(was * now.log()).sum(1).mean() + (was * was.log()).sum(1).mean()
    found = method.on_loss(loss, model, batch, outputs)
    torch.testing.assert_close(found, loss + 2.0 * cross, rtol=1e-4, atol=1e-6)
    halves = []  # as micro-batches of 2 and 4 rows, the mean of what they add is the same
    for chosen in (slice(3, 5), slice(5, 9)):
        part = batch_of(model, list(enumerate(rows))[chosen])
        part.real = batch.real / 2
        outputs = model(part.inputs, len(part))
        halves.append(method.on_loss(torch.zeros(()), model, part, outputs))
    torch.testing.assert_close(sum(halves) / 2, 2.0 * cross, rtol=1e-4, atol=1e-6)


def test_without_a_task_of_the_source_there_is_nothing_to_keep():
    model = small_model()
    with pytest.raises(ValueError, match=r"tasks kind, good all have labels"):
        LwF().begin(model, looking(model, numbers()))
