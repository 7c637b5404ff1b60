"""What a phase trains, at which rate, and what it refuses."""

from __future__ import annotations

import pytest
from torch import nn

from mmtransfer.encoders.base import build_encoder
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.classification import Classification
from mmtransfer.transfer.base import Phase, Strategy, build_strategy


@pytest.fixture
def model():
    encoders = {"image": build_encoder("tiny-vit"), "text": build_encoder("tiny-bert")}
    fusion = build_fusion("gated", {n: e.width for n, e in encoders.items()}, 16)
    return TransferModel(encoders, fusion, {"product": Classification(["a", "b"])})


def trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def rates(groups) -> dict[int, float]:
    return {id(p): group["lr"] for group in groups for p in group["params"]}


def test_a_probe_trains_fusion_and_heads_only(model):
    groups = Phase(1, lr=0.1).apply(model)
    assert trainable(model) == {
        n for n, _ in model.named_parameters() if n.startswith(("fusion", "heads"))
    }
    assert set(rates(groups).values()) == {0.1}


def test_every_parameter_trains_once_in_a_full_phase(model):
    groups = Phase(1, lr=0.1, encoder_lr=0.01).apply(model)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_unimodal_heads_train_at_the_rate_of_the_others(model):
    model.provide(["unimodal"])
    found = rates(Phase(1, lr=0.1, encoder_lr=0.01).apply(model))
    assert {found[id(p)] for p in model.unimodal.parameters()} == {0.1}


def test_rates_are_per_modality(model):
    groups = Phase(1, lr=0.1, encoder_lr={"text": 0.02}).apply(model)
    assert not trainable(model.encoders["image"])
    found = rates(groups)
    assert {found[id(p)] for p in model.encoders["text"].parameters()} == {0.02}


def test_layer_decay_counts_trained_stages_only(model):
    stages = model.encoders["image"].stages
    groups = Phase(1, lr=0, encoder_lr={"image": 1.0}, top_stages=3, layer_decay=0.5).apply(model)
    found = rates(groups)
    for depth, stage in enumerate(reversed(stages)):
        expected = {0.5**depth} if depth < 3 else {None}
        assert {found.get(id(p)) for p in stage.parameters()} == expected


def test_biases_and_norms_are_not_decayed(model):
    for group in Phase(1, encoder_lr=0.1, weight_decay=0.3).apply(model):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (lambda m: Phase(0), "at least 1 epoch, found 0"),
        (lambda m: Phase(1, lr=-1.0), "rates must not be negative"),
        (lambda m: Phase(1, schedule="cosin"), "Did you mean 'cosine'"),
        (lambda m: Phase(1, warmup=2.0), "found 2.0"),
        (lambda m: Phase(1, encoder_lr={"imgae": 1.0}).apply(m), "Did you mean 'image'"),
        (lambda m: Phase(1, encoder_lr=1.0, top_stages=99).apply(m), "top_stages is 99"),
        (lambda m: Phase(1, lr=0).apply(m), "the phase trains nothing"),
    ],
)
def test_mistakes_are_named(model, phase, message):
    with pytest.raises(ValueError, match=message):
        phase(model)


def test_presets_are_phases_written_out():
    assert build_strategy("full", epochs=3).phases == [Phase(3, 2e-3, 2e-4)]
    named = build_strategy("lp_ft", probe_epochs=2, epochs=3, encoder_lr=1e-4)
    probe, tuning = named.phases
    assert probe.encoder_lr == 0
    assert (tuning.epochs, tuning.encoder_lr) == (3, 1e-4)
    assert build_strategy(named.config()).config() == named.config()


def test_methods_come_by_name_or_with_options():
    strategy = build_strategy("full", ["modality_dropout"])
    assert strategy.methods[0].rate == 0.15
    strategy = build_strategy(Strategy([Phase(1)]), [{"name": "modality_dropout", "rate": 0.5}])
    assert strategy.methods[0].rate == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_strategy("linear_prob"), "Did you mean 'linear_probe'"),
        (lambda: build_strategy("full", epoch=3), "Did you mean 'epochs'"),
        (lambda: build_strategy("full", ["modality_drop"]), "Did you mean 'modality_dropout'"),
        (lambda: build_strategy({"phases": [{"epoch": 1}]}), "phase 1 has no option 'epoch'"),
    ],
)
def test_wrong_names_suggest_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()
