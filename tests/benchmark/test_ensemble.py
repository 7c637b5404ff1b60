"""Seeds trained together are single runs, and single runs are a plain loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmtransfer.benchmark.ensemble import (
    Draws,
    Joined,
    Recipe,
    Tape,
    batch_of,
    clip_each,
    joint_loss,
    predict,
    train,
)
from mmtransfer.benchmark.fusion import members_of
from mmtransfer.data.examples import Examples
from mmtransfer.fusion.base import build_fusion
from mmtransfer.registry import fusions
from mmtransfer.tasks.classification import Classification
from mmtransfer.testing import random_features
from mmtransfer.training.setup import rate_curve
from mmtransfer.transfer.base import Phase

WIDTHS = {"image": 6, "text": 5}
TASKS = {"product": Classification([0, 1, 2]), "category": Classification([0, 1], weight=0.5)}
RECIPE = Recipe(epochs=2, lr=3e-3, batch_size=8, modality_dropout=0.3)


def examples(rows: int = 20) -> Examples:
    generator = torch.Generator().manual_seed(0)
    features = random_features(WIDTHS, rows, generator)
    targets = {
        "product": torch.randint(3, (rows,), generator=generator),
        "category": torch.randint(2, (rows,), generator=generator),
    }
    targets["category"][::4] = -100  # unlabelled
    return Examples(features, targets)


def builder(spec: Any, dropout: float) -> Any:
    return lambda: Joined(build_fusion({**spec, "dropout": dropout}, WIDTHS, 8), TASKS)


def seen(spec: dict[str, Any]) -> Examples:
    uses_tokens = getattr(fusions.get(spec["name"]), "uses_tokens", False)
    return examples() if uses_tokens else examples().pooled()


@pytest.mark.parametrize("member", members_of())
def test_seeds_trained_together_are_single_runs(member: str) -> None:
    spec = members_of()[member]
    build, rows = builder(spec, 0.3), seen(spec)
    together = train(build, rows, TASKS, [0, 1, 2], RECIPE, together=True)
    alone = train(build, rows, TASKS, [0, 1, 2], RECIPE)
    for one, other in zip(together, alone, strict=True):
        for name, weight in other.state_dict().items():
            torch.testing.assert_close(one.state_dict()[name], weight, atol=1e-5, rtol=1e-5)
    first, second = (predict(model, rows)["product"] for model in alone[:2])
    assert not torch.allclose(first, second)  # seeds differ


def test_a_single_run_is_a_plain_loop() -> None:
    rows, recipe = examples().pooled(), replace(RECIPE, modality_dropout=0.0)
    build = builder({"name": "gated"}, 0.0)
    found = train(build, rows, TASKS, [3], recipe)[0]

    torch.manual_seed(3)
    model = build().train()
    model.fusion.standardise(rows.statistics())
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
    )
    curve = rate_curve(Phase(2, recipe.lr), 4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
    draws = Draws(rows, 3, recipe, 8, Tape(), torch.device("cpu"))
    for _ in range(4):
        tokens, masks, _, chosen = draws.step()
        logits = model(tokens, masks)
        loss = torch.zeros(())
        for name, task in TASKS.items():
            targets = rows.targets[name][chosen]
            loss = loss + task.weight * nn.functional.cross_entropy(logits[name], targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, atol=1e-6, rtol=1e-5)


def test_each_seed_is_clipped_by_its_own_norm() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, 2) * 2, torch.randn(3, 5)]
    gradients[0][1] *= 1e-3
    gradients[1][1] *= 1e-3
    expected = []
    for seed in range(3):
        parameters = [nn.Parameter(torch.zeros_like(g[seed])) for g in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[seed].clone()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        expected.append([p.grad for p in parameters])
    clip_each(gradients, 1.0)
    for seed in range(3):
        for gradient, other in zip(gradients, expected[seed], strict=True):
            torch.testing.assert_close(gradient[seed], other)


def test_modality_dropout_takes_its_share_and_never_the_last() -> None:
    rows = examples(64).pooled()
    recipe = replace(RECIPE, modality_dropout=0.4, batch_size=64)
    draws = Draws(rows, 0, recipe, 64, Tape(), torch.device("cpu"))
    before = torch.stack([f.present for f in rows.features.values()], 1)
    left, both = 0.0, before.all(1).sum()
    for _ in range(40):
        _, masks, _, chosen = draws.step()
        after = torch.stack([m.any(1) for m in masks.values()], 1)
        assert not (after & ~before[chosen]).any()
        assert after.any(1).all()
        left += float(after[before[chosen].all(1)].float().mean()) / 40
    # Of two, each stays at 0.6, and one stays where both would go: 0.6 + 0.16 / 2.
    assert abs(left - 0.68) < 3 * (0.25 / (40 * 2 * float(both))) ** 0.5


def test_every_row_comes_once_per_epoch_but_for_the_last_that_fill_no_batch() -> None:
    rows = examples(20).pooled()
    draws = Draws(rows, 0, RECIPE, 8, Tape(), torch.device("cpu"))
    for _ in range(3):
        chosen: Tensor = torch.cat([draws.step()[3] for _ in range(2)])
        assert len(set(chosen.tolist())) == 16


def test_unlabelled_rows_count_for_nothing() -> None:
    rows = examples().pooled()
    model = builder({"name": "concat"}, 0.0)().eval()
    chosen = torch.arange(8)[None]
    logits = model(*batch_of(rows, chosen[0], torch.device("cpu")))
    found = joint_loss({n: z[None] for n, z in logits.items()}, rows, chosen, TASKS)
    expected = sum(
        task.weight * nn.functional.cross_entropy(logits[n], rows.targets[n][:8])
        for n, task in TASKS.items()
    )
    torch.testing.assert_close(found, expected[None])
    rows.targets["category"][:8] = -100
    nothing = joint_loss({n: z[None] for n, z in logits.items()}, rows, chosen, TASKS)
    torch.testing.assert_close(
        nothing[0], nn.functional.cross_entropy(logits["product"], rows.targets["product"][:8])
    )
