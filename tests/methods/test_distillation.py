"""Distillation: Hinton's loss by hand, and teachers that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmtransfer.methods.distillation import Distillation
from mmtransfer.methods.teaching import divergence
from mmtransfer.training.run import build_model

from .conftest import numbers
from .looking import ENCODERS, batch_of, looking, losses_of, small_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    small_model(seed=3).save_pretrained(directory)
    return directory


def test_the_loss_is_that_of_the_paper_and_unlabelled_rows_learn_too(teacher):
    model, rows = small_model(), numbers()
    method = Distillation(str(teacher), share=0.3, temperature=2.0)
    method.build(model)
    method.begin(model, looking(model, rows))
    batch = batch_of(model, [*list(enumerate(rows))[5:12], (~5, rows[5])])
    outputs = model.train()(batch.inputs, len(batch))
    loss = losses_of(model, batch, outputs)
    with torch.no_grad():
        answers = small_model(seed=3).eval()(batch.inputs, len(batch)).logits
    expected = 0.7 * loss
    for name, logits in outputs.logits.items():
        soft = F.kl_div(
            F.log_softmax(logits[:7] / 2, 1),
            F.softmax(answers[name][:7] / 2, 1),
            reduction="batchmean",
        )
        expected = expected + 0.3 * 4 * soft
    torch.testing.assert_close(method.on_loss(loss, model, batch, outputs), expected)


def test_the_gradient_keeps_its_size_at_high_temperature():
    """Why the loss is multiplied by T^2: (student - teacher) / C in the limit (Hinton, 2.1)."""
    torch.manual_seed(0)
    logits = torch.randn(1, 5, requires_grad=True)
    answers = torch.randn(1, 5)
    (100.0**2 * divergence(logits, answers, 100.0)).sum().backward()
    away = logits.detach() - answers
    torch.testing.assert_close(logits.grad, (away - away.mean()) / 5, rtol=0.05, atol=0.01)


def test_a_teacher_of_itself_changes_nothing_but_the_share(teacher):
    logits = torch.randn(3, 4)
    assert divergence(logits, logits, 3.0).abs().max() < 1e-6


def test_teachers_that_do_not_fit_are_an_error(teacher, tmp_path):
    rows = numbers()
    with pytest.raises(FileNotFoundError, match="teacher of distillation, '.*none', is no dir"):
        Distillation(str(tmp_path / "none")).build(small_model())
    other = [row | {"kine": row["kind"]} for row in rows]
    model = build_model(ENCODERS, {"kine": "classification"}, other, "concat", 8)
    with pytest.raises(ValueError, match=r"knows none of the tasks kine. Did you mean 'kind'"):
        Distillation(str(teacher)).build(model)
    fewer = [row for row in rows if row["kind"] != "z"]
    model = build_model(ENCODERS, {"kind": "classification"}, fewer, "concat", 8)
    with pytest.raises(ValueError, match=r"teacher's classes of 'kind' are .*'z'.*, the model's"):
        Distillation(str(teacher)).build(model)
    for options in ({"share": 2}, {"temperature": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} of distillation must"):
            Distillation("x", **options)
