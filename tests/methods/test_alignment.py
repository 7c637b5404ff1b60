"""What holds for every method with an unlabelled target: any fusion, in parts, after a resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmtransfer.methods.base import Method, build_method
from mmtransfer.registry import fusions
from mmtransfer.transfer.base import Phase

METHODS = {
    "mmd": "mmd",
    "coral": {"name": "coral", "weight": 1e4},
    "dann": "dann",
    "cdan": "cdan",
    "self_training": {"name": "self_training", "threshold": 0.3, "ramp": 0, "balanced": True},
    "importance_weights": {"name": "importance_weights", "strength": 1.0},
    "kmm": "kmm",
}
PER_ROW = [n for n in METHODS if n not in ("mmd", "coral")]
ADVERSARIAL = ("dann", "cdan")  # their gradients are reversed from the second step on
PHASE = Phase(2, 1e-3, 1e-3)
each = pytest.mark.parametrize("name", METHODS)


class Interrupt(Method):
    """Ends the run after a step, as nothing else would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def config(self):
        return {"class": "interrupt"}

    def on_weights(self, model, step):
        if step == self.at:
            raise KeyboardInterrupt


def target(modalities: str = "ab", count: int = 17) -> dict[str, list[dict]]:
    """Other numbers than those of the training rows, with gaps; a last row without anything."""
    rng = np.random.default_rng(1)
    rows = [{n: rng.normal(i % 3 + 1, 2, 3) for n in modalities} for i in range(count)]
    for i, row in enumerate(rows):
        row[modalities[i % len(modalities)]] = None if i % 4 == 1 else row[modalities[0]]
    rows[-1] = dict.fromkeys(modalities)
    return {"unlabelled": rows}


def encoders(gradients):
    return torch.cat([g.flatten() for n, g in gradients.items() if n.startswith("encoders.")])


@pytest.mark.parametrize(
    ("name", "fusion"),
    [*((n, "gated") for n in METHODS), *(("cdan", f) for f in fusions.names() if f != "gated")],
)
def test_each_method_reaches_the_encoders_through_any_fusion(fit, name, fusion):
    phase = Phase(2, 1e-3, 1e-3)
    found, plain = (
        fit(spec, fusion=fusion, batch_size=24, phase=phase, further=target())[1].seen[1]
        for spec in (METHODS[name], None)
    )
    assert (encoders(found) - encoders(plain)).abs().max() > 1e-5
    assert all(torch.isfinite(g).all() for g in found.values() if g is not None)


@pytest.mark.parametrize("name", PER_ROW)
@pytest.mark.parametrize("accumulation", [2, 5])
def test_micro_batches_give_the_gradients_of_the_whole(fit, name, accumulation):
    """Labels and modalities are spread unevenly over them, and 12 rows do not divide by 5."""
    spec, further = METHODS[name], target()
    whole = fit(spec, phase=PHASE, further=further)[1].seen
    parts = fit(spec, phase=PHASE, further=further, accumulation=accumulation)[1].seen
    for found, expected in zip(parts, whole, strict=True):
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, atol=1e-5, rtol=1e-3)


@each
@pytest.mark.parametrize("rows", [1, 2])
def test_as_few_rows_as_can_be(fit, name, rows):
    """Of a target of one row, and in micro-batches of one row, nothing is no number."""
    if name == "importance_weights" and rows == 1:
        with pytest.raises(ValueError, match="at least 2 rows of each side, found 24 and 1"):
            fit(METHODS[name], further=target(count=rows))
        return
    trainer, look = fit(METHODS[name], further=target(count=rows), accumulation=12)
    assert all(torch.isfinite(torch.tensor(trainer.losses)))
    assert all(torch.isfinite(g).all() for g in look.seen[-1].values() if g is not None)


@each
def test_half_precision(fit, name):
    half, whole = (
        encoders(fit(METHODS[name], precision=p, further=target())[1].seen[0])
        for p in ("bf16", "no")
    )
    assert F.cosine_similarity(half, whole, 0) > 0.99
    assert half.norm() == pytest.approx(float(whole.norm()), rel=0.1)


@each
def test_a_run_that_was_cut_goes_on_to_the_same_weights(fit, name, tmp_path):
    def go(cut, **options):
        extra = (Interrupt(cut),)
        phase = Phase(3, 1e-2, 1e-2)
        return fit(METHODS[name], phase=phase, extra=extra, further=target(), **options)[0]

    whole = go(0)
    with pytest.raises(KeyboardInterrupt):
        go(4, output=tmp_path, checkpoint_steps=1)
    resumed = go(0, output=tmp_path, resume=True)
    assert resumed.losses == whole.losses
    for parameter, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[parameter], value), parameter


@each
def test_frozen_encoders_are_enough(fit, name):
    """What is aligned then is what the fusion makes of stored features."""
    phase, specs = Phase(2, 1e-2), (METHODS[name], None)
    found, plain = (fit(spec, phase=phase, further=target())[0].losses for spec in specs)
    assert np.abs(np.subtract(found, plain)).max() > 1e-6


@each
def test_without_unlabelled_rows_there_is_an_error_at_the_start(fit, name):
    with pytest.raises(ValueError, match=r"needs rows of a split 'unlabelled'"):
        fit(METHODS[name])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "mmd", "weight": -1}, "the weight of mmd must be at least 0, found -1"),
        ({"name": "mmd", "kernels": 0}, "kernels of mmd must be at least 1, found 0"),
        ({"name": "coral", "weight": -1}, "the weight of coral must be at least 0"),
        ({"name": "dann", "hidden": 0}, "the hidden width of dann must be at least 1, found 0"),
        ({"name": "cdan", "largest": 0}, "largest of cdan must be at least 1, found 0"),
        ({"name": "self_training", "threshold": 0}, r"threshold .* in \(0, 1\], found 0"),
        (
            {"name": "self_training", "ramp": 2},
            r"ramp of self_training must lie in \[0, 1\], found 2",
        ),
        ({"name": "importance_weights", "clip": 0.5}, "must be at least 1, found 0.5"),
        ({"name": "importance_weights", "strength": 0}, "must be positive, found 0"),
        ({"name": "kmm", "bound": 0.5}, "the bound of kmm must be at least 1, found 0.5"),
        ({"name": "adabn", "momentum": 0}, r"momentum of adabn must lie in \(0, 1\], found 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build_method(spec)
