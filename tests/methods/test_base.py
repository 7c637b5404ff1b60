"""What the loop gives a method: unlabelled rows, a look beforehand, modules of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmtransfer.methods.base import Method
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy

from .conftest import TASKS, numbers

ENCODERS = dict.fromkeys("ab", "mlp?shape=[3]&widths=[6]")


def target(count: int = 15) -> list[dict]:
    rng = np.random.default_rng(1)
    return [
        {n: rng.normal(0, 1, 3) for n in "ab"} | {"kind": "nobody reads it"} for _ in range(count)
    ]


class Everything(Method):
    """Uses each place, keeps what it saw, and has a module of its own."""

    needs = ("unlabelled", "fused", "features", "second_pass")

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.start: dict[str, torch.Tensor] = {}
        self.mean = torch.zeros(())
        self.step = 0

    def build(self, model):
        self.module = nn.Linear(model.fusion.width, 1)

    def begin(self, model, look):
        self.start = {n: p.detach().clone() for n, p in model.named_parameters()}
        seen = look.observe("unlabelled")
        assert seen.targets == {}
        self.mean = seen.fused.mean()

    def state_dict(self):
        return {"start": self.start, "mean": self.mean, "step": self.step}

    def load_state_dict(self, state):
        self.start, self.mean, self.step = state["start"], state["mean"], state["step"]

    def on_loss(self, loss, model, batch, outputs):
        other = outputs.unlabelled
        assert batch.unlabelled.targets == {}
        assert other.fused.shape[1] == outputs.fused.shape[1] == model.fusion.width
        self.rows.append(batch.unlabelled.index.tolist())
        torch.testing.assert_close(sum(outputs.losses.values()), loss)
        own = self.module(other.fused).mean() - self.module(outputs.fused).mean()
        return loss + 0.1 * own + 0 * self.mean

    def on_gradients(self, model, again):
        self.step += 1
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        again()
        for name, parameter in model.named_parameters():
            if name in found:
                torch.testing.assert_close(parameter.grad, found[name])

    def averaged(self, model):
        now = dict(model.named_parameters())
        return {n: (value + now[n].detach()) / 2 for n, value in self.start.items()}


class Cut(Method):
    def __init__(self, at: int) -> None:
        self.at = at

    def config(self):
        return {"class": "cut"}

    def on_weights(self, model, step):
        if step == self.at:
            raise KeyboardInterrupt


def fit(method=None, output=None, cut=0, resume=False, further=None, **options):
    rows = numbers()
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    method = Everything() if method is None else method
    strategy = Strategy([Phase(4, 1e-2, 1e-2)], [method, Cut(cut)])
    chosen = {"batch_size": 8, "progress": False, "track": [], "checkpoint_steps": 1, **options}
    further = {"unlabelled": target()} if further is None else further
    trainer = Trainer(
        model, rows, rows, strategy, TrainingOptions(**chosen), output, further=further
    )
    trainer.fit(resume)
    return trainer, method


def test_every_unlabelled_row_comes_as_often_as_any_other():
    _, method = fit()
    assert len(method.rows) == 2 * 12  # each step goes twice
    drawn = [i for rows in method.rows[::2] for i in rows]
    counts = np.bincount(drawn, minlength=15)
    assert counts.max() - counts.min() <= 1
    _, halves = fit(accumulation=2)
    joined = [a + b for a, b in zip(halves.rows[::2], halves.rows[1::2], strict=True)]
    assert joined == method.rows


def test_readers_of_unlabelled_rows_live_on_from_epoch_to_epoch():
    _, method = fit()
    trainer, read = fit(workers=1)
    assert read.rows == method.rows
    assert len([name for name in trainer.data.loaders if name.startswith("unlabelled in")]) == 1


def test_a_run_that_was_cut_goes_on_to_the_same_weights(tmp_path):
    whole, _ = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(output=tmp_path, cut=7)
    resumed, method = fit(output=tmp_path, resume=True)
    assert resumed.losses == whole.losses
    assert method.step == 12
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_module_learns_and_its_averages_are_what_is_kept():
    trainer, method = fit()
    torch.manual_seed(0)  # the seed of the run
    untrained = nn.Linear(8, 1)
    assert not torch.allclose(untrained.weight, method.module.weight)
    scores = [trainer.score(record["validation"]) for record in trainer.history]
    best = trainer.history[len(scores) - 1 - int(np.argmax(scores[::-1]))]  # of equals the last
    found = trainer.evaluate(trainer.data.splits["validation"], "validation")
    assert found["kind"]["loss"] == pytest.approx(best["validation"]["kind"]["loss"])


def test_what_a_method_cannot_do_without_is_an_error_at_the_start():
    with pytest.raises(ValueError, match=r"Everything needs rows of a split 'unlabelled'.*train"):
        fit(further={})


def test_the_source_is_looked_at_before_and_after():
    """Its task is one that the target's rows know nothing of."""
    rows = numbers(missing=False)
    source = [{**{n: r[n] for n in "ab"}, "good": r["good"]} for r in rows]
    train = [{**{n: r[n] for n in "ab"}, "kind": r["kind"]} for r in rows]
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    untouched = model.heads["good"].weight.detach().clone()
    strategy = Strategy([Phase(3, 1e-2, 1e-2)])
    options = TrainingOptions(progress=False, batch_size=8)
    data = {"train": train, "validation": train, "test": train, "source": source}
    metrics = run(model, data, strategy, options)
    found = metrics["source"]
    assert set(found["before"]["good"]) == set(found["after"]["good"])
    assert found["before"]["good"]["loss"] != found["after"]["good"]["loss"]
    assert found["before"]["kind"] == metrics["test"]["good"] == {"rows": 0}
    assert torch.allclose(model.heads["good"].weight, untouched, atol=0.05)  # decay alone
    with pytest.raises(ValueError, match="no column 'good'"):
        run(model, {k: v for k, v in data.items() if k != "source"}, strategy, options)
    nothing = [{k: v for k, v in row.items() if k != "good"} for row in source]
    with pytest.raises(ValueError, match="source rows have no column of the tasks"):
        run(model, {**data, "source": nothing}, strategy, options)
