"""What holds for every method of balance: its effect in any fusion, in parts, after a resume."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmtransfer.methods.base import Method, build_method
from mmtransfer.methods.mmpareto import combine
from mmtransfer.methods.unimodal import unimodal_losses
from mmtransfer.model import TransferModel
from mmtransfer.registry import fusions
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import Phase, Strategy, build_strategy, check_plan

from .conftest import TASKS, numbers

ENCODERS = dict.fromkeys("ab", "mlp?shape=[3]&widths=[6]")
NEVER = 1e-9  # of the rows are held out: none
METHODS = {
    "auxiliary_heads": "auxiliary_heads",
    "ogm_ge": "ogm_ge",
    "agm": "agm",
    "gradient_blending": {"name": "gradient_blending", "share": 0.4, "every": 2},
    "mmpareto": "mmpareto",
}
each = pytest.mark.parametrize("name", METHODS)


class Watch(Method):
    """Trains detached heads and does nothing with them."""

    needs = ("unimodal_detached",)

    def on_loss(self, loss, model, batch, outputs):
        return loss + unimodal_losses(model, batch, outputs.unimodal_detached).sum()


class Interrupt(Method):
    """Ends the run after a step, as nothing else would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def config(self):
        return {"class": "interrupt"}  # the same run, whether it is interrupted or not

    def on_weights(self, model, step):
        if step == self.at:
            raise KeyboardInterrupt


def encoder(gradients, name):
    """Gradients of one encoder as one vector."""
    prefix = f"encoders.{name}."
    return torch.cat([g.flatten() for n, g in gradients.items() if n.startswith(prefix)])


@pytest.mark.parametrize("fusion", fusions.names())
def test_each_method_does_to_the_gradients_of_any_fusion_what_it_says(fit, fusion):
    def first(spec):
        return fit(spec, fusion=fusion, batch_size=24)[1].seen[0]

    plain, helped = first(None), first("auxiliary_heads")
    held_back = first({"name": "ogm_ge", "alpha": 1.0, "noise": 0.0})
    adapted, pareto = first("agm"), first("mmpareto")
    blended = first({"name": "gradient_blending", "share": NEVER})
    factors = []
    for name in "ab":
        joint, own = encoder(plain, name), encoder(helped, name) - encoder(plain, name)
        assert own.abs().max() > 1e-4
        torch.testing.assert_close(encoder(blended, name), (joint + own) / 3, atol=1e-6, rtol=1e-4)
        expected = 1.5 * combine(joint, own)
        torch.testing.assert_close(encoder(pareto, name), expected, atol=1e-6, rtol=1e-4)
        for found in (held_back, adapted):
            factor = (encoder(found, name) @ joint) / (joint @ joint)
            torch.testing.assert_close(encoder(found, name), factor * joint)
            factors.append(float(factor))
    held, adapted_factors = sorted(factors[::2]), factors[1::2]
    assert held[0] < 0.3  # 1 - tanh(1) at the most
    assert held[1] == pytest.approx(1)
    assert min(adapted_factors) < 1 < max(adapted_factors)
    for found in (helped, held_back, adapted, pareto):  # what lies outside of the encoders
        for name in (n for n in plain if n.startswith(("fusion", "heads"))):
            assert plain[name] is None or torch.equal(found[name], plain[name]), name


@each
@pytest.mark.parametrize("modalities", ["a", "abc", "abcde"])
def test_any_number_of_modalities(fit, name, modalities):
    trainer, look = fit(METHODS[name], numbers(modalities), "gated")
    assert all(torch.isfinite(torch.tensor(trainer.losses)))
    if modalities == "a" and name in ("ogm_ge", "agm"):
        plain = fit(None, numbers(modalities), "gated")[1]
        for found, expected in zip(look.seen, plain.seen, strict=True):
            assert torch.equal(encoder(found, "a"), encoder(expected, "a"))


@each
@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_give_the_gradients_of_the_whole(fit, name, accumulation):
    """Labels and modalities are spread unevenly over them."""
    whole = fit(METHODS[name], phase=Phase(2, 1e-3, 1e-3))[1].seen
    parts = fit(METHODS[name], phase=Phase(2, 1e-3, 1e-3), accumulation=accumulation)[1].seen
    assert len(whole) == 4
    for found, expected in zip(parts, whole, strict=True):
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, atol=1e-5, rtol=1e-3)


@each
def test_what_a_step_gathered_before_memory_ran_out_is_forgotten(fit, name, monkeypatch):
    phase = Phase(2, 1e-3, 1e-3)
    whole = fit(METHODS[name], phase=phase, accumulation=4)[1].seen
    forward, calls = TransferModel.forward, []

    def once(self, inputs, size):
        calls.append(size)
        if len(calls) == 4:  # the second half of the second step
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, inputs, size)

    monkeypatch.setattr(TransferModel, "forward", once)
    found = fit(METHODS[name], phase=phase, accumulation=2, on_oom="halve")[1].seen
    assert calls[:6] == [6, 6, 6, 6, 3, 3]
    for seen, expected in zip(found, whole, strict=True):
        for parameter, gradient in expected.items():
            torch.testing.assert_close(seen[parameter], gradient, atol=1e-5, rtol=1e-3)


@each
def test_a_step_without_a_modality_leaves_its_encoder_alone(fit, name):
    rows = numbers("abc")
    for row in rows[1:]:
        row["c"] = None
    trainer, look = fit(METHODS[name], rows, "gated")
    without = [seen["encoders.c.layers.0.0.weight"] is None for seen in look.seen]
    assert sorted(without) == [False, True]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@each
def test_half_precision(fit, name):
    half, whole = (fit(METHODS[name], precision=p)[1].seen[0] for p in ("bf16", "no"))
    for modality in "ab":
        found, expected = encoder(half, modality), encoder(whole, modality)
        assert F.cosine_similarity(found, expected, 0) > 0.99
        assert found.norm() == pytest.approx(float(expected.norm()), rel=0.1)


@each
def test_a_run_that_was_cut_goes_on_to_the_same_weights(fit, name, tmp_path):
    phase = Phase(4, 1e-2, 1e-2)
    whole = fit(METHODS[name], phase=phase, extra=(Interrupt(0),))[0]
    with pytest.raises(KeyboardInterrupt):
        fit(METHODS[name], phase=phase, output=tmp_path, extra=(Interrupt(6),), checkpoint_steps=1)
    resumed = fit(METHODS[name], phase=phase, output=tmp_path, extra=(Interrupt(0),), resume=True)[
        0
    ]
    assert resumed.losses == whole.losses
    for parameter, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[parameter], value), parameter


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_heads_that_only_look_on_leave_the_rest_as_it_is_to_the_last_bit(fit, clip):
    fusion = {"name": "gated", "dropout": 0.3}
    plain = fit(None, fusion=fusion, phase=Phase(3, 1e-2, 1e-2), clip=clip)[0]
    watched = fit(Watch(), fusion=fusion, phase=Phase(3, 1e-2, 1e-2), clip=clip)[0]
    assert watched.losses == plain.losses
    found = watched.model.state_dict()
    assert all(torch.equal(found[n], value) for n, value in plain.model.state_dict().items())
    heads = [n for n in found if n.startswith("unimodal.heads")]
    assert len(heads) == 2 * 2 * 2  # weight and bias, of two tasks and two modalities


def test_heads_learn_from_the_rows_that_have_a_label_and_the_modality(fit):
    rows = numbers()
    trainer, look = fit("auxiliary_heads", rows, batch_size=24, phase=Phase(1, 1e-9, 1e-9))
    model = trainer.model
    values = {n: [(i, r[n]) for i, r in enumerate(rows) if r[n] is not None] for n in "ab"}
    for name, found in values.items():
        inputs = model.encoders[name].collate([value for _, value in found])
        features = model.encoders[name](**inputs).pooled()
        for task, classes in (("kind", ["x", "y", "z"]), ("good", [False, True])):
            head = model.unimodal.heads[name][task]
            labelled = [k for k, (i, _) in enumerate(found) if rows[i][task] is not None]
            targets = torch.tensor([classes.index(rows[found[k][0]][task]) for k in labelled])
            loss = F.cross_entropy(head(features[labelled]), targets)
            (expected,) = torch.autograd.grad(loss, head.weight, retain_graph=True)
            seen = look.seen[0][f"unimodal.heads.{name}.{task}.weight"]
            torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)


def test_a_saved_model_has_no_unimodal_heads(tmp_path):
    rows = numbers()
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    size = sum(p.numel() for p in model.parameters())
    strategy = Strategy([Phase(1, 1e-2, 1e-2)], [build_method("mmpareto")])
    options = TrainingOptions(progress=False, track=[])
    metrics = run(model, {"train": rows}, strategy, options, tmp_path / "out")
    assert metrics["parameters"] == size == sum(p.numel() for p in model.parameters())
    saved = TransferModel.from_pretrained(tmp_path / "out" / "model")
    assert saved.state_dict().keys() == model.state_dict().keys()
    assert model.predict([rows[0]]) == saved.predict([rows[0]])


@each
def test_nothing_to_act_on_is_an_error_at_the_start(fit, name):
    frozen = Phase(1, 1e-2)
    with pytest.raises(ValueError, match=r"acts on encoders, and no phase trains one"):
        fit(METHODS[name], phase=frozen)
    later = build_strategy("lp_ft", methods=[METHODS[name]], probe_epochs=1, epochs=1)
    rows = numbers()
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    check_plan(later, model)  # one of several phases is enough


@pytest.mark.parametrize("name", ["auxiliary_heads", "ogm_ge", "mmpareto", "gradient_blending"])
def test_heads_that_no_first_phase_would_train_are_an_error(fit, name):
    with pytest.raises(ValueError, match=r"needs unimodal heads, .*the first phase has lr 0"):
        fit(METHODS[name], phase=Phase(1, 0.0, 1e-2))


def test_methods_act_one_after_the_other(fit):
    others = tuple(build_method(m) for m in ("modality_dropout", {"name": "ogm_ge", "noise": 0.0}))
    trainer, _ = fit("auxiliary_heads", extra=(*others, build_method("agm")))
    assert all(torch.isfinite(torch.tensor(trainer.losses)))
    assert trainer.model.demanded == ("unimodal", "unimodal_detached", "subsets")


def test_an_unknown_need_names_the_nearest(fit):
    method = Watch()
    method.needs = ("unimodul",)
    with pytest.raises(ValueError, match=r"Watch needs an unknown 'unimodul'.*mean 'unimodal'"):
        fit(method)


def test_probing_first_is_possible():
    """In the first phase the encoders give stored features, and nothing of them has a gradient."""
    rows = numbers()
    for spec in METHODS.values():
        model = build_model(ENCODERS, TASKS, rows, "concat", 8)
        strategy = build_strategy("lp_ft", methods=[spec], probe_epochs=1, epochs=1)
        metrics = run(model, {"train": rows}, strategy, TrainingOptions(progress=False))
        assert len(metrics["history"]) == 2
