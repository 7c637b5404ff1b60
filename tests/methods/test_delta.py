"""DELTA: the distance by hand, the weights of channels against retraining without each."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mmtransfer.features import Features
from mmtransfer.methods.delta import DELTA, increases, squared_distances

from .conftest import numbers
from .looking import batch_of, looking, losses_of, small_model


def outputs_of(model, batch):
    model.provide(("features",))
    return model.train()(batch.inputs, len(batch))


def test_the_start_has_no_distance_and_what_moved_has_that_of_its_tokens():
    model, method = small_model(), DELTA(weight=3.0)
    method.build(model)
    rows = list(enumerate(numbers()))[:6]
    batch = batch_of(model, [*rows, (~0, rows[0][1])])
    outputs = outputs_of(model, batch)
    loss = losses_of(model, batch, outputs)
    assert method.on_loss(loss, model, batch, outputs) == loss
    before = {n: f.pooled().detach() for n, f in outputs.features.items()}
    for p in model.encoders.parameters():
        p.data += 0.1 * torch.randn_like(p)
    outputs = outputs_of(model, batch)
    loss = losses_of(model, batch, outputs)
    added = method.on_loss(loss, model, batch, outputs) - loss
    away = {n: f.pooled() - before[n] for n, f in outputs.features.items()}
    expected = sum(a[:6].square().mean(1).sum() for a in away.values()) * 3.0 / 2 / 6
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-6)
    added.backward()
    assert model.encoders["a"].layers[0][0].weight.grad.abs().max() > 0
    model.encoders["a"].requires_grad_(False)  # what does not train has nothing to keep
    half = method.on_loss(loss, model, batch, outputs) - loss
    only_b = away["b"][:6].square().mean(1).sum() * 3.0 / 2 / 6
    torch.testing.assert_close(half, only_b, rtol=1e-4, atol=1e-6)


def test_padding_and_absent_rows_have_no_distance():
    mask = torch.tensor([[True, False], [False, False]])
    found = Features(torch.full((2, 2, 3), 2.0), mask)
    start = Features(torch.zeros(2, 2, 3), mask)
    found.tokens[0, 1] = float("nan")
    weights = torch.tensor([3.0, 0.0, 0.0])
    assert squared_distances(found, start, None).tolist() == [4.0, 0.0]
    assert squared_distances(found, start, weights).tolist() == [4.0, 0.0]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_channel_counts_by_what_is_lost_without_it(classes):
    torch.manual_seed(0)
    targets = torch.arange(60) % classes
    x = torch.randn(60, 4) + 2
    x[:, 1] += 3 * targets  # all there is to know
    found = increases(x, targets)
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    fitted = LogisticRegression(max_iter=1000).fit(scaled, targets)
    for d in range(4):
        without = x.clone()
        without[:, d] = 0
        without = (without - x.mean(0)) / x.std(0, correction=0)
        rise = log_loss(targets, fitted.predict_proba(without)) - log_loss(
            targets, fitted.predict_proba(scaled)
        )
        assert float(found[d]) == pytest.approx(rise, rel=1e-3, abs=1e-4)
    assert found.argmax() == 1


def test_weights_of_channels_have_a_mean_of_one_and_are_part_of_the_state():
    model, method = small_model(), DELTA(attention=True)
    method.build(model)
    method.begin(model, looking(model, numbers()))
    channels = method.state_dict()["channels"]
    assert channels.keys() == {"a", "b"}
    for weights in channels.values():
        assert weights.mean() == pytest.approx(1)
        assert weights.std() > 0
    other = DELTA(attention=True)
    other.build(small_model(seed=5))
    other.load_state_dict(method.state_dict())
    batch = batch_of(model, list(enumerate(numbers()))[:6])
    for p in model.encoders.parameters():
        p.data += 0.1
    outputs = outputs_of(model, batch)
    loss = losses_of(model, batch, outputs)
    found = [m.on_loss(loss, model, batch, outputs) for m in (method, other)]
    assert found[0] == found[1] != loss
