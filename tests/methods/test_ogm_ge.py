"""OGM-GE: factors by hand, noise of the gradient's own deviation."""

from __future__ import annotations

import math

import pytest
import torch

from mmtransfer.methods.ogm_ge import OGMGE, coefficients
from mmtransfer.transfer.base import Phase


def factors(scores, known=None, alpha=0.5):
    known = [True] * len(scores) if known is None else known
    return coefficients(torch.tensor(scores), torch.tensor(known), alpha).tolist()


def test_the_leader_is_held_back_as_in_the_paper():
    assert factors([0.6, 0.2]) == pytest.approx([1 - math.tanh(0.5 * 3), 1.0])
    assert factors([0.2, 0.3], alpha=0.1) == pytest.approx([1.0, 1 - math.tanh(0.1 * 1.5)])
    assert factors([0.4, 0.4]) == [1.0, 1.0]


def test_three_modalities_are_compared_with_the_mean_of_the_others():
    expected = [1 - math.tanh(0.5 * 0.6 / 0.2), 1.0, 1.0]
    assert factors([0.6, 0.3, 0.1]) == pytest.approx(expected)
    expected = [1 - math.tanh(0.5 * 0.6 / 0.45), 1 - math.tanh(0.5 * 0.5 / 0.5), 1.0]
    assert factors([0.6, 0.5001, 0.4]) == pytest.approx(expected, abs=1e-3)


def test_a_modality_that_no_row_had_is_left_out():
    assert factors([0.6, 0.0, 0.2], [True, False, True]) == pytest.approx(
        [1 - math.tanh(1.5), 1.0, 1.0]
    )
    assert factors([0.6, 0.0], [True, False]) == [1.0, 1.0]


def test_noise_is_as_strong_as_the_deviation_of_the_gradient(fit):
    def first(noise, seed=0):
        method = {"name": "ogm_ge", "noise": noise, "alpha": 0.0}
        return fit(method, batch_size=24, seed=seed)[1].seen[0]

    plain, noisy, half = first(0.0), first(1.0), first(0.5)
    drawn = []
    for name, gradient in plain.items():
        if gradient is None or not name.startswith("encoders"):
            continue
        if gradient.ndim == 1:
            assert torch.equal(noisy[name], gradient)
            continue
        noise = noisy[name] - gradient
        torch.testing.assert_close(half[name] - gradient, noise / 2, atol=1e-6, rtol=1e-4)
        drawn.append((noise / gradient.std()).flatten())
    strength = torch.cat(drawn).square().mean().sqrt()
    assert 0.6 < float(strength) < 1.5  # of 36 draws


def test_noise_is_another_in_each_step_and_of_each_seed(fit):
    def noise(seed):
        still = Phase(2, 1e-12, 1e-12)
        methods = [{"name": "ogm_ge", "noise": n, "alpha": 0.0} for n in (1.0, 0.0)]
        noisy, plain = (fit(m, phase=still, batch_size=24, seed=seed)[1].seen for m in methods)
        name = "encoders.a.layers.0.0.weight"
        return [a[name] - b[name] for a, b in zip(noisy, plain, strict=True)]

    first, second = noise(0)
    assert torch.equal(noise(0)[0], first)
    assert (first - second).abs().max() > 0.1 * first.std()
    assert (first - noise(1)[0]).abs().max() > 0.1 * first.std()


def test_it_acts_from_start_to_end_only(fit):
    rates = Phase(4, 1e-12, 1e-12)  # nothing moves: steps differ by their rows only
    plain = fit(None, phase=rates, batch_size=24)[1].seen
    found = fit({"name": "ogm_ge", "start": 2, "end": 4}, phase=rates, batch_size=24)[1].seen
    name = "encoders.a.layers.0.0.weight"
    same = [torch.equal(a[name], b[name]) for a, b in zip(found, plain, strict=True)]
    assert same == [True, False, False, True]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"alpha of ogm_ge must be at least 0, found -1"):
        OGMGE(alpha=-1)
    with pytest.raises(ValueError, match=r"end after its start in step 5, found 5"):
        OGMGE(start=5, end=5)
