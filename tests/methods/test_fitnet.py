"""FitNet: the loss by hand, a regressor that learns, and teachers that do not fit."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.methods.fitnet import FitNet
from mmtransfer.training.run import build_model

from .conftest import TASKS, numbers
from .looking import batch_of, looking, losses_of, small_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    encoders = dict.fromkeys("ab", "mlp?shape=[3]&widths=[9]")
    build_model(encoders, TASKS, numbers(), "concat", 8, seed=3).save_pretrained(directory)
    return directory


def test_the_regressor_aims_at_standardised_features_where_both_are_present(teacher):
    model, method, rows = small_model(), FitNet(str(teacher), weight=2.0), numbers()
    method.build(model)
    assert {n: tuple(m.weight.shape) for n, m in method.module.items()} == dict.fromkeys(
        "ab", (9, 6)
    )
    look = looking(model, rows)
    method.begin(model, look)
    batch = batch_of(model, [*list(enumerate(rows)), (~0, rows[0])])
    model.provide(("features",))
    outputs = model.train()(batch.inputs, len(batch))
    loss = losses_of(model, batch, outputs)
    encoders = dict.fromkeys("ab", "mlp?shape=[3]&widths=[9]")
    other = build_model(encoders, TASKS, rows, "concat", 8, seed=3).eval()
    expected = loss
    for name in "ab":
        with torch.no_grad():
            features = other.encode(name, batch.inputs[name], len(batch))
        present = features.present[:-1]
        known = features.pooled()[:-1][present]
        aim = (known - known.mean(0)) / known.std(0, correction=0).clamp_min(1e-6)
        guess = method.module[name](outputs.features[name].pooled()[:-1][present])
        expected = expected + 2.0 * (guess - aim).square().mean(1).sum() / len(rows)
    torch.testing.assert_close(method.on_loss(loss, model, batch, outputs), expected)


def test_teachers_that_do_not_fit_are_an_error(teacher, tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher of fitnet"):
        FitNet(str(tmp_path / "none")).build(small_model())
    rows = [{"c": row["a"], "kind": row["kind"]} for row in numbers(missing=False)]
    encoders = {"c": "mlp?shape=[3]&widths=[6]"}
    model = build_model(encoders, {"kind": "classification"}, rows, "concat", 8)
    with pytest.raises(ValueError, match=r"none of the modalities c.*Valid: a, b"):
        FitNet(str(teacher)).build(model)
