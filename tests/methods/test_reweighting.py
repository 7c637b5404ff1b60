"""Weights of training rows: density ratios that are known, small quadratic programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from mmtransfer.methods.importance_weights import ImportanceWeights
from mmtransfer.methods.kmm import KernelMeanMatching, match
from mmtransfer.methods.reweighting import Observed, Reweighting, joined
from mmtransfer.transfer.base import Phase

from .conftest import numbers
from .test_alignment import target


class Given(Reweighting):
    """Weights by row number."""

    def weigh(self, source, target):
        return np.arange(len(source)) + 1.0


def normal(mean: float, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, (count, 1))


def test_a_classifier_finds_the_ratio_of_two_normal_densities():
    """log N(x; 1, 1) / N(x; 0, 1) = x - 1/2."""
    source, target = normal(0, 3000, 0), normal(1, 2000, 1)
    found = ImportanceWeights(clip=1000.0, strength=1.0).weigh(source, target)
    np.testing.assert_allclose(np.log(found), source[:, 0] - 0.5, atol=0.25)
    weighted = (found * source[:, 0]).sum() / found.sum()
    assert weighted == pytest.approx(1, abs=0.1)
    clipped = ImportanceWeights(clip=2.0, strength=1.0).weigh(source, target)
    np.testing.assert_allclose(clipped, found.clip(0.5, 2.0))


def test_kernel_means_meet():
    source, target = normal(0, 400, 0), normal(1, 300, 1)
    found = KernelMeanMatching().weigh(source, target)
    assert found.min() >= 0
    assert found.max() <= 10
    assert (found * source[:, 0]).sum() / found.sum() == pytest.approx(target.mean(), abs=0.1)
    same = KernelMeanMatching().weigh(source, source)
    weighted = (same * source[:, 0]).sum() / same.sum()
    assert weighted == pytest.approx(source.mean(), abs=0.02)


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("bound", [1.5, 5.0])
def test_the_quadratic_program_is_solved(tolerance, bound):
    """Against a general solver, which takes long for many rows; the mean is held at both ends."""
    for seed, scale in ((0, 0.3), (1, 3.0)):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(12, 2))
        kernel = np.exp(-((rows[:, None] - rows) ** 2).sum(2))
        wanted = scale * 12 * rng.random(12)
        found = match(kernel, wanted, bound, tolerance)

        def goal(w, kernel=kernel, wanted=wanted):
            return 0.5 * w @ kernel @ w - wanted @ w

        limits = [
            {"type": "ineq", "fun": lambda w: 1 + tolerance - w.mean()},
            {"type": "ineq", "fun": lambda w: w.mean() - 1 + tolerance},
        ]
        expected = minimize(
            goal, np.ones(12), bounds=[(0, bound)] * 12, constraints=limits, method="SLSQP"
        )
        assert expected.success
        assert goal(found) == pytest.approx(expected.fun, rel=1e-4, abs=1e-4)
        assert abs(found.mean() - 1) <= tolerance + 1e-6
        assert found.min() >= 0
        assert found.max() <= bound


def test_features_are_standardised_and_absent_ones_stand_at_the_mean():
    def side(rows, present):
        return Observed({}, torch.zeros(0), {"a": torch.tensor(rows)}, {"a": present}, {})

    source = side([[2.0, 5.0], [0.0, 0.0]], torch.tensor([True, False]))
    target = side([[4.0, 5.0], [6.0, 5.0]], torch.tensor([True, True]))
    one, other = joined(source, target)
    scale = np.std([2, 4, 6])
    np.testing.assert_allclose(one, [[-2 / scale, 0], [0, 0]])
    np.testing.assert_allclose(other, [[0, 0], [2 / scale, 0]])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_loss_is_that_of_weighted_rows(fit, accumulation):
    """One step on all rows; as many as 24 have 24 different weights, 1 on average."""
    rows, phase = numbers(), Phase(1, 1e-9, 1e-9)
    options = {"batch_size": 24, "phase": phase, "further": target(), "accumulation": accumulation}
    trainer, look = fit(Given(), rows, **options)
    weights = torch.arange(1.0, 25.0) / 12.5
    torch.testing.assert_close(trainer.strategy.methods[0].weights, weights)
    expected = 0
    model = trainer.model.train()
    for task, classes in (("kind", ["x", "y", "z"]), ("good", [False, True])):
        labelled = [i for i, row in enumerate(rows) if row[task] is not None]
        given = {n: [(k, rows[i][n]) for k, i in enumerate(labelled)] for n in "ab"}
        features = {}
        for name, values in given.items():
            known = [(k, v) for k, v in values if v is not None]
            inputs = model.encoders[name].collate([v for _, v in known])
            where = torch.tensor([k for k, _ in known])
            features[name] = model.encoders[name](**inputs).scatter(where, len(labelled))
        logits = model.fusion.decide(model.heads[task], model.fusion(features))
        targets = torch.tensor([classes.index(rows[i][task]) for i in labelled])
        losses = F.cross_entropy(logits, targets, reduction="none")
        expected = expected + (weights[labelled] * losses).mean()
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            seen = look.seen[0][name]
            torch.testing.assert_close(seen, parameter.grad, atol=1e-5, rtol=1e-3)
