"""EWC: Fisher information against its closed form at the head, and the pull."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.ewc import EWC

from .conftest import numbers
from .looking import batch_of, looking, small_model


def source():
    rows = numbers(missing=False)
    return [{n: r[n] for n in ("a", "b", "good")} | {"good": None} for r in rows[:4]] + [
        {n: r[n] for n in ("a", "b", "good")} for r in rows[4:]
    ]


def train():
    return [{n: r[n] for n in ("a", "b", "kind")} for r in numbers(missing=False)]


@pytest.fixture(scope="module")
def learned():
    found = {}
    for labels in ("given", "sampled"):
        model, method = small_model(), EWC(strength=3.0, labels=labels)
        model.encoders["a"].requires_grad_(False)
        method.begin(model, looking(model, train(), source()))
        found[labels] = model, method
    return found


def fisher(method):
    return method.state_dict()["fisher"]


def test_the_given_labels_make_the_mean_square_of_each_rows_gradient(learned):
    model, method = learned["given"]
    rows = list(enumerate(source()))[4:]
    with torch.no_grad():
        batch = batch_of(model, rows)
        logits = model.eval()(batch.inputs, len(batch)).logits["good"]
    wrong = logits.softmax(1) - torch.nn.functional.one_hot(batch.targets["good"], 2)
    torch.testing.assert_close(fisher(method)["heads.good.bias"], wrong.square().mean(0))
    assert "heads.kind.bias" not in fisher(method)  # the source says nothing of it
    assert fisher(method)["encoders.a.layers.0.0.weight"].max() > 0  # though frozen at first
    assert not model.encoders["a"].layers[0][0].weight.requires_grad
    assert model.encoders["b"].layers[0][0].weight.requires_grad


def test_sampled_labels_come_near_the_true_information(learned):
    """In expectation p (1 - p) at the bias; labels as given say something else."""
    model, method = learned["sampled"]
    with torch.no_grad():
        batch = batch_of(model, list(enumerate(source()))[4:])
        p = model.eval()(batch.inputs, len(batch)).logits["good"].softmax(1)
    expected = (p * (1 - p)).mean(0)
    torch.testing.assert_close(fisher(method)["heads.good.bias"], expected, rtol=0.3, atol=0.0)


def test_weights_are_pulled_back_by_what_they_matter(learned):
    model, method = learned["given"]
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.data += 0.5
        p.grad = torch.ones_like(p)
    method.on_gradients(model, lambda: None)
    for name, p in model.named_parameters():
        weight = fisher(method).get(name, torch.zeros(()))
        torch.testing.assert_close(p.grad, 1 + 3.0 * weight * (p.detach() - start[name]))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"unknown labels 'sampl' of ewc.*mean 'sampled'"):
        EWC(labels="sampl")
    model = small_model()
    nothing = [row | {"good": None} for row in source()]
    with pytest.raises(ValueError, match="no row of the source has a label"):
        EWC().begin(model, looking(model, train(), nothing))
