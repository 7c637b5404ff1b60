"""EMA: against torch's AveragedModel, its warm-up by hand, and what is kept at the end."""

from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmtransfer.methods.ema import EMA
from mmtransfer.transfer.base import Phase

from .looking import small_model


def walk(model, steps=6):
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        for p in model.parameters():
            p.data += torch.randn(p.shape, generator=generator)
        yield step


def test_the_average_is_that_of_torch():
    model, method = small_model(), EMA(0.8, warmup=False)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for step in walk(model):
        method.on_weights(model, step)
        reference.update_parameters(model)
    found = method.averaged(model)
    expected = dict(reference.module.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach())


def test_warm_up_begins_with_a_decay_of_three_twelfths():
    model, method = small_model(), EMA(0.999)
    seen = []
    for step in walk(model, 3):
        method.on_weights(model, step)
        seen.append(model.heads["kind"].bias.detach().clone())
    first = torch.lerp(seen[1], seen[0], 3 / 12)
    expected = torch.lerp(seen[2], first, 4 / 13)
    torch.testing.assert_close(method.averaged(model)["heads.kind.bias"], expected)


def test_what_no_longer_trains_stays_as_the_model_has_it():
    model, method = small_model(), EMA(0.5)
    method.on_weights(model, 1)
    model.fusion.requires_grad_(False)
    method.on_weights(model, 2)
    assert not any(name.startswith("fusion") for name in method.averaged(model))


def test_the_model_is_kept_by_its_averages(fit):
    last = []

    class Watch(EMA):
        def averaged(self, model):
            last.append({n: t.clone() for n, t in super().averaged(model).items()})
            return last[-1]

    trainer, _ = fit(Watch(0.9), phase=Phase(2, 1e-2, 1e-2))
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, last[-1][name]), name


def test_a_decay_out_of_bounds_is_refused():
    with pytest.raises(ValueError, match=r"decay of ema must lie in \[0, 1\), found 1"):
        EMA(1.0)
