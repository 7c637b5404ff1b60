"""Batch norm takes the statistics of the target when a model is judged and kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Batch, Features, padded_cat
from mmtransfer.methods import adabn
from mmtransfer.methods.adabn import AdaBN, adapt_batch_norm
from mmtransfer.methods.mmd import MMD
from mmtransfer.model import TransferModel
from mmtransfer.training.look import LookAtData
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy

from .test_alignment import Interrupt, target

TASKS = {"kind": "classification"}


class Normed(Encoder):
    """Batch norm, a layer, batch norm, drop-out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 4)
        self.second, self.drop, self.width = nn.BatchNorm1d(4), nn.Dropout(0.5), 4
        nn.init.orthogonal_(self.layer.weight)

    def collate(self, values):
        return {"x": torch.tensor(np.stack(values)).float()}

    def forward(self, x):
        return Features.of(self.drop(self.second(self.layer(self.first(x)))))


def rows(mean: float, deviation: float, count: int = 24) -> list[dict]:
    rng = np.random.default_rng(3)
    return [{"a": rng.normal(mean, deviation, 3), "kind": "xy"[i % 2]} for i in range(count)]


def fit(
    further,
    pretrained=False,
    phase=None,
    output=None,
    cut=0,
    resume=False,
    methods=None,
    hooked=None,
    **options,
):
    train = rows(0, 1)
    torch.manual_seed(0)
    encoder = Normed()
    encoder.pretrained = pretrained
    model = build_model({"a": encoder}, TASKS, train, "concat", 4)
    if hooked is not None:
        model.register_forward_pre_hook(lambda model, given: hooked.append(len(given) > 2))
    methods = [*(methods or [AdaBN()]), Interrupt(cut)]
    strategy = Strategy([phase or Phase(2, 1e-3, 1e-3)], methods)
    chosen = {"batch_size": 12, "progress": False, "track": [], "evaluation_batch_size": 24}
    chosen = TrainingOptions(**chosen | options)
    trainer = Trainer(model, train, None, strategy, chosen, output, further=further)
    trainer.fit(resume)
    return trainer


def test_rows_that_stand_together_by_class_do_not_mislead():
    """Batches of one class each have a hundredth of the variance that the rows have."""
    train = [{"a": row["a"] + 10 * (i < 48), "kind": "x"} for i, row in enumerate(rows(0, 1, 96))]
    encoder = Normed()
    encoder.pretrained = True
    model = build_model({"a": encoder}, TASKS, train, "concat", 4)
    options = TrainingOptions(12, evaluation_batch_size=24, progress=False, track=[])
    strategy = Strategy([Phase(1, 1e-3, 1e-3)], [AdaBN()])
    trainer = Trainer(model, train, None, strategy, options, further={"unlabelled": train})
    strategy.methods[0].begin(model, LookAtData(model, trainer.data, trainer.accelerator))
    variance = torch.from_numpy(np.stack([row["a"] for row in train])).float().var(0)
    found = encoder.first.running_var
    assert ((found - variance).abs() < 0.2 * variance).all()
    trainer.close()


def unlabelled(mean: float, deviation: float, count: int = 24) -> dict[str, list[dict]]:
    return {"unlabelled": [{"a": row["a"]} for row in rows(mean, deviation, count)]}


def test_the_kept_model_has_the_statistics_of_the_target():
    trainer = fit(unlabelled(5, 3), phase=Phase(3, 1e-9, 1e-9))
    values = np.stack([row["a"] for row in unlabelled(5, 3)["unlabelled"]])
    encoder = trainer.model.encoders["a"]
    np.testing.assert_allclose(encoder.first.running_mean, values.mean(0), rtol=1e-4)
    # means of what batches of 12 of 24 rows have
    np.testing.assert_allclose(encoder.first.running_var, values.var(0, ddof=1), rtol=0.1)
    batch = Collate({"a": encoder}, {})(list(enumerate(unlabelled(5, 3)["unlabelled"])))
    found = encoder.eval()(**batch.inputs["a"].values).tokens[:, 0].detach()
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(4), atol=0.1, rtol=0)


def both_domains() -> tuple[TransferModel, Batch, Batch]:
    torch.manual_seed(0)
    model = build_model({"a": Normed()}, TASKS, rows(0, 1), "concat", 4)
    model.encoders["a"].drop.p = 0.0
    collate = Collate(model.encoders, {})
    here = collate(list(enumerate([*rows(0, 1, 12), {"a": None}])))
    there = collate(list(enumerate([{"a": None}, *unlabelled(5, 3, 8)["unlabelled"]])))
    return model.train(), here, there


def test_batch_norm_sees_both_domains_as_one_batch():
    """Their running statistics by turns would be those of neither."""
    model, here, there = both_domains()
    model.provide(["unlabelled", "features"])
    found = model(here.inputs, len(here), there)
    statistics = [b.clone() for b in model.encoders["a"].first.buffers()]
    model, here, there = both_domains()
    values = torch.cat([here.inputs["a"].values["x"], there.inputs["a"].values["x"]])
    together = model.encoders["a"](x=values).tokens
    torch.testing.assert_close(found.features["a"].tokens[:12], together[:12])
    torch.testing.assert_close(found.unlabelled.features["a"].tokens[1:], together[12:])
    torch.testing.assert_close(statistics, list(model.encoders["a"].first.buffers()))
    assert found.features["a"].present.tolist() == [True] * 12 + [False]
    assert found.unlabelled.features["a"].present.tolist() == [False] + [True] * 8
    assert len(found.logits["kind"]) == 13
    assert len(found.unlabelled.logits["kind"]) == 9


@pytest.mark.parametrize("way", ["demanded", "still"])
def test_domains_pass_by_themselves_where_asked_and_where_batch_norm_is_still(way):
    model, here, there = both_domains()
    model.provide(["unlabelled", *(["domains_apart"] if way == "demanded" else [])])
    model.encoders["a"].pretrained = way == "still"
    model.train()
    found = model(here.inputs, len(here), there)
    torch.testing.assert_close(found.logits, model(here.inputs, len(here)).logits)
    torch.testing.assert_close(found.unlabelled.logits, model(there.inputs, len(there)).logits)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=2), st.data())
def test_shorter_values_are_padded_with_zeros(sizes, data):
    shapes = [[n, *data.draw(st.tuples(st.integers(0, 5), st.integers(1, 3)))] for n in sizes]
    first, second = (torch.randn(shape) for shape in shapes)
    both = padded_cat(first, second)
    assert both.shape == (sum(sizes), *np.maximum(*(shape[1:] for shape in shapes)))
    for found, part in zip(both.split(sizes), (first, second), strict=True):
        _, length, width = part.shape
        assert torch.equal(found[:, :length, :width], part)
        assert torch.isclose(found.square().sum(), part.square().sum())


def test_the_model_passes_unlabelled_rows_for_those_alone_that_need_its_outputs():
    passed: list[int] = []
    alone = fit(unlabelled(5, 3), hooked=passed)
    assert alone.strategy.methods[0].averaged(alone.model)
    assert not any(passed)
    fit(unlabelled(5, 3), hooked=passed, methods=[AdaBN(), MMD()])
    assert any(passed)


@pytest.mark.parametrize("pretrained", [False, True])
def test_training_is_what_it_was_with_statistics_of_the_source(pretrained):
    """Pretrained batch norm stays still, at the statistics of the training rows."""
    near, far = (fit(unlabelled(mean, 1), pretrained) for mean in (0, 50))
    assert near.losses == far.losses
    kept = far.optimisation, far.strategy.methods[0].target
    assert kept[0] is None
    assert kept[1]["encoders.a.first"][0] == pytest.approx([50] * 3, abs=1)


def test_pretrained_statistics_become_those_of_the_training_rows():
    """Then the first loss is that of batch norm which goes by all rows."""
    trainer = fit(unlabelled(7, 1), True, batch_size=24, phase=Phase(1, 1e-9, 1e-9))
    train = rows(0, 1)
    torch.manual_seed(0)
    model = build_model({"a": Normed()}, TASKS, train, "concat", 4)
    encoder = model.encoders["a"].eval()
    batch = Collate({"a": encoder}, {})(list(enumerate(train)))
    values = batch.inputs["a"].values
    encoder.first.train(), encoder.second.train()
    expected = encoder(**values)
    method = trainer.strategy.methods[0]
    found = {"encoders.a.first": encoder.first, "encoders.a.second": encoder.second}
    adapt_batch_norm(model, [batch])
    for layer in found.values():
        assert int(layer.num_batches_tracked) == 1  # by the line above alone
    again = encoder.eval()(**values)
    torch.testing.assert_close(again.tokens, expected.tokens, atol=0.1, rtol=0.05)
    assert set(method.target) == set(found)


def test_adapting_leaves_everything_else_alone():
    model = build_model({"a": Normed()}, TASKS, rows(0, 1), "concat", 4)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    encoder = model.encoders["a"]
    batch = Collate({"a": encoder}, {})(list(enumerate(rows(5, 2))))
    adapt_batch_norm(model, [batch])
    assert encoder.training
    assert encoder.first.momentum == 0.1
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    names = ("first.running_mean", "first.running_var", "second.running_mean", "second.running_var")
    assert changed == {f"encoders.a.{name}" for name in names}
    encoder.eval()
    found = encoder(**batch.inputs["a"].values).tokens[:, 0]
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_a_single_row_says_nothing_and_leaves_the_statistics_alone():
    trainer = fit({"unlabelled": [{"a": np.ones(3)}, {"a": None}]}, pretrained=True)
    assert trainer.strategy.methods[0].averaged(trainer.model) == {}
    assert trainer.model.encoders["a"].first.running_mean.abs().max() < 0.6


def test_processes_average_by_how_many_batches_they_saw(monkeypatch):
    """The other one saw two batches, of the first layer alone, where all is 9."""
    nine = torch.cat([torch.full((6,), 18.0), torch.tensor([2.0])])
    other = torch.cat([nine, torch.zeros(4 + 4 + 1)])
    monkeypatch.setattr(adabn, "over_processes", lambda values: values + other)
    mine = {
        "encoders.a.first": (torch.ones(3), torch.full((3,), 2.0), torch.tensor(1.0)),
        "encoders.a.second": (torch.ones(4), torch.ones(4), torch.tensor(0.0)),
    }
    found = adabn.over_all(mine)
    mean, variance, count = found["encoders.a.first"]
    assert count == 3
    torch.testing.assert_close(mean, torch.full((3,), 19 / 3))
    torch.testing.assert_close(variance, torch.full((3,), 20 / 3))
    names = {"encoders.a.first.running_mean", "encoders.a.first.running_var"}
    assert set(adabn.buffers(found)) == names


def test_a_run_that_was_cut_goes_on_to_the_same_weights(tmp_path):
    further = unlabelled(5, 3, 17)
    whole = fit(further)
    with pytest.raises(KeyboardInterrupt):
        fit(further, output=tmp_path, cut=3, checkpoint_steps=1)
    resumed = fit(further, output=tmp_path, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_where_there_is_no_batch_norm_or_none_that_trains_is_an_error():
    further = target("a")
    train = rows(0, 1)
    model = build_model({"a": "mlp?shape=[3]&widths=[6]"}, TASKS, train, "concat", 4)
    strategy = Strategy([Phase(1, 1e-3, 1e-3)], [AdaBN()])
    with pytest.raises(ValueError, match="needs an encoder with batch norm, found DenseEncoder"):
        Trainer(model, train, None, strategy, TrainingOptions(), further=further)
    with pytest.raises(ValueError, match="AdaBN acts on encoders, and no phase trains one"):
        fit(further, phase=Phase(1, 1e-3))
