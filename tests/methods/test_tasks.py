"""Methods of several tasks: by hand, in parts, after a resume, and with few labels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from mmtransfer.methods.base import Method
from mmtransfer.methods.gradnorm import balanced
from mmtransfer.methods.pcgrad import projected
from mmtransfer.methods.uncertainty import Uncertainty
from mmtransfer.transfer.base import Phase

from .conftest import TASKS, numbers

METHODS = ("uncertainty", "gradnorm", "pcgrad")
each = pytest.mark.parametrize("name", METHODS)


class Interrupt(Method):
    def __init__(self, at: int = 0) -> None:
        self.at = at

    def config(self):
        return {"class": "interrupt"}

    def on_weights(self, model, step):
        if step == self.at:
            raise KeyboardInterrupt


class Single(Method):
    """Leaves only the loss of one task."""

    def __init__(self, task: str) -> None:
        self.task = task

    def on_loss(self, loss, model, batch, outputs):
        return outputs.losses[self.task]


def flat(gradients, *parts):
    kept = [g for n, g in gradients.items() if n.startswith(parts) and g is not None]
    return torch.cat([g.flatten() for g in kept])


# -- pcgrad ---------------------------------------------------------------------------------------


def test_two_gradients_in_conflict_by_hand():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    # a - (a.b / b.b) b = (2, 0) + (-1, 1) = (1, 1);  b - (b.a / a.a) a = (-1, 1) + (1, 0) = (0, 1)
    found = projected(torch.stack([a, b]), [[0, 1], [1, 0]])
    assert found.tolist() == [1.0, 2.0]


def test_gradients_in_harmony_are_added():
    found = projected(torch.tensor([[2.0, 1.0], [1.0, 3.0], [0.0, 0.0]]), [[0, 1, 2]] * 3)
    assert found.tolist() == [3.0, 4.0]


def test_three_gradients_in_the_order_that_is_drawn():
    g = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, -0.5, 1.0]])
    own = {}
    for order in ([1, 2], [2, 1]):
        x = g[0].clone()
        for j in order:
            if x @ g[j] < 0:
                x -= (x @ g[j]) / (g[j] @ g[j]) * g[j]
        own[tuple(order)] = x
    assert not torch.allclose(own[1, 2], own[2, 1])
    others = projected(g, [[], [2, 0], [0, 1]]) - g[0]
    for order, x in own.items():
        torch.testing.assert_close(projected(g, [[*order], [2, 0], [0, 1]]), x + others)


def test_shared_gradients_are_projected_and_heads_left_alone(fit):
    parts = ("encoders.", "fusion.")
    plain = fit(None, batch_size=24)[1].seen[0]
    single = [flat(fit(Single(task), batch_size=24)[1].seen[0], *parts) for task in TASKS]
    found = fit("pcgrad", batch_size=24)[1].seen[0]
    expected = projected(torch.stack(single), [[0, 1], [1, 0]])
    torch.testing.assert_close(flat(found, *parts), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(flat(found, "heads."), flat(plain, "heads."))


# -- gradnorm -------------------------------------------------------------------------------------


def test_a_step_of_the_weights_by_hand():
    weights, lengths = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])
    losses, first = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    # G = (3, 1), mean 2; progress (1/2, 1), mean 3/4, r = (2/3, 4/3); targets with alpha 1 are
    # (4/3, 8/3): the first weight falls by lr * 3 / 2, the second grows by lr * 1 / 2.
    moved = torch.tensor([1 - 0.1 * 1.5, 1 + 0.1 * 0.5])
    found = balanced(weights, lengths, losses, first, alpha=1.0, lr=0.1)
    torch.testing.assert_close(found, moved * 2 / moved.sum())


def test_a_task_without_labels_keeps_its_weight():
    weights = torch.tensor([0.5, 1.5, 1.0])
    losses, first = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 2.0])
    found = balanced(weights, torch.tensor([1.0, 0.0, 5.0]), losses, first, 1.5, 0.1)
    assert found[1] == 1.5
    assert found[0] > 0.5
    assert found.sum() == pytest.approx(3.0)
    alone = balanced(weights, torch.tensor([1.0, 0.0, 0.0]), losses, first, 1.5, 0.1)
    assert torch.equal(alone, weights)


def test_in_the_end_gradients_are_of_the_sizes_asked_for():
    lengths, losses = torch.tensor([8.0, 1.0, 2.0]), torch.ones(3)
    weights = torch.ones(3)
    for _ in range(1500):
        weights = balanced(weights, lengths, losses, losses, alpha=1.5, lr=3e-3)
    norms = weights * lengths
    torch.testing.assert_close(norms, norms.mean().expand(3), atol=0.05, rtol=0.02)
    assert weights.sum() == pytest.approx(3.0, abs=1e-3)


def test_the_weights_are_those_of_gradients_on_the_fusion(fit):
    trainer, look = fit({"name": "gradnorm", "lr": 0.1}, batch_size=24)
    method = trainer.strategy.methods[0]
    single = [fit(Single(task), batch_size=24) for task in TASKS]
    lengths = torch.stack([flat(seen.seen[0], "fusion.").norm() for _, seen in single])
    losses = method.first
    expected = balanced(torch.ones(2), lengths, losses, losses, 1.5, 0.1)
    torch.testing.assert_close(method.weights, expected)
    assert not torch.equal(method.weights, torch.ones(2))
    plain = fit(None, batch_size=24)[1].seen[0]
    for name, gradient in plain.items():  # the first step still has equal weights
        torch.testing.assert_close(look.seen[0][name], gradient)


# -- uncertainty ----------------------------------------------------------------------------------


def test_for_constant_losses_the_best_uncertainty_is_known():
    """exp(-s) L + s / 2 is least at s = ln 2 L."""
    task = SimpleNamespace(loss_weight=lambda targets: torch.ones(4))
    model = SimpleNamespace(tasks=dict.fromkeys(TASKS, task))
    batch = SimpleNamespace(
        targets=dict.fromkeys(TASKS), counts=dict.fromkeys(TASKS, torch.tensor(4.0))
    )
    losses = {name: torch.tensor(value) for name, value in zip(TASKS, (0.7, 3.0), strict=True)}
    method = Uncertainty()
    method.build(model)
    optimiser = torch.optim.LBFGS(method.module.parameters(), max_iter=50)

    def closure():
        optimiser.zero_grad()
        total = sum(losses.values())
        loss = method.on_loss(total, model, batch, SimpleNamespace(losses=losses))
        loss.backward()
        return loss

    optimiser.step(closure)
    for name, value in losses.items():
        assert float(method.module[name].detach()) == pytest.approx(math.log(2 * value), abs=1e-3)


def test_gradients_of_a_task_shrink_with_its_uncertainty(fit):
    plain = fit(None, batch_size=24)[1].seen[0]
    found = fit({"name": "uncertainty", "start": math.log(4)}, batch_size=24)[1].seen[0]
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient / 4)


def test_the_uncertainty_of_a_task_without_labels_stays(fit):
    rows = numbers(missing=False)
    for i, row in enumerate(rows):
        row["good"] = bool(i % 2) if i < 2 else None
    trainer, _ = fit("uncertainty", rows, batch_size=2, phase=Phase(1, 1e-2, weight_decay=0.0))
    free = trainer.strategy.methods[0].module
    assert float(free["kind"].detach()) > 0.05
    assert abs(float(free["good"].detach())) < 0.1  # one or two steps of twelve, and their momentum


# -- all ------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("fusion", ["concat", "late", "cross_stitch", "transformer"])
def test_micro_batches_give_the_gradients_of_the_whole_step(fit, name, fusion):
    whole = fit(name, fusion=fusion, batch_size=24)
    parts = fit(name, fusion=fusion, batch_size=24, accumulation=4)
    for found, expected in zip(parts[1].seen, whole[1].seen, strict=True):
        for parameter, gradient in expected.items():
            if gradient is not None:
                torch.testing.assert_close(found[parameter], gradient, atol=1e-5, rtol=1e-3)
    for a, b in zip(parts[0].strategy.methods, whole[0].strategy.methods, strict=True):
        if a.module is not None:
            pairs = zip(a.module.parameters(), b.module.parameters(), strict=True)
            assert all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)


@each
def test_a_run_that_was_cut_goes_on_to_the_same_weights(fit, name, tmp_path):
    phase = Phase(3, 1e-2, 1e-2)
    whole, _ = fit(name, phase=phase, extra=(Interrupt(),))
    every = {"phase": phase, "output": tmp_path, "checkpoint_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        fit(name, extra=(Interrupt(4),), **every)
    resumed, _ = fit(name, extra=(Interrupt(),), resume=True, **every)
    assert resumed.losses == whole.losses
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    a, b = (t.strategy.methods[0] for t in (resumed, whole))
    if name == "gradnorm":
        assert torch.equal(a.weights, b.weights)
    if name == "uncertainty":
        assert all(torch.equal(a.module[t], b.module[t]) for t in TASKS)


@each
def test_half_precision_and_absent_modalities_stay_finite(fit, name):
    rows = numbers()
    for row in rows[:12]:
        row["a"] = None
    trainer, look = fit(name, rows, precision="bf16", phase=Phase(2, 1e-2, 1e-2))
    assert all(math.isfinite(loss) for loss in trainer.losses)
    for seen in look.seen:
        assert all(g is None or torch.isfinite(g).all() for g in seen.values())


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"lr": -0.1}])
def test_gradnorm_refuses_negative_settings(options):
    from mmtransfer.methods.gradnorm import GradNorm

    with pytest.raises(ValueError, match="gradnorm needs alpha and lr >= 0"):
        GradNorm(**options)
