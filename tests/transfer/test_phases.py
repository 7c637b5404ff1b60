"""What a phase trains, at which rate, and what it refuses."""

from __future__ import annotations

import pytest
from torch import nn

from mmtransfer.encoders.base import build_encoder
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel, frozen_depth
from mmtransfer.registry import strategies
from mmtransfer.tasks.classification import Classification
from mmtransfer.transfer.base import Phase, Strategy, build_strategy
from mmtransfer.transfer.parts import parameter_counts


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


def test_bitfit_trains_exactly_the_biases(model):
    build_strategy("bitfit").phases[0].apply(model)
    found = trainable(model.encoders)
    every = {n for n, _ in model.encoders.named_parameters()}
    assert found == {n for n in every if n.endswith("bias")}
    counts = parameter_counts(model)
    assert 0 < counts["text"]["trained"] < 0.05 * counts["text"]["parameters"]
    assert counts["heads"]["trained"] == counts["heads"]["parameters"]
    whole = sum(p.numel() for p in model.parameters())
    assert counts["all"] == {
        "parameters": whole,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def test_norm_only_trains_exactly_the_norms(model):
    build_strategy("norm_only").phases[0].apply(model)
    norms = [m for m in model.encoders.modules() if isinstance(m, nn.LayerNorm)]
    expected = {id(p) for m in norms for p in m.parameters()}
    assert len(norms) == 2 * 3 + 1 + 2 * 2 + 1  # of each block, after the last, of the embeddings
    assert {id(p) for p in model.encoders.parameters() if p.requires_grad} == expected


def test_parts_stages_and_decay_are_per_modality(model):
    image, text = model.encoders["image"], model.encoders["text"]
    phase = Phase(
        1,
        encoder_lr={"image": 1.0, "text": 2.0},
        top_stages={"image": 0.5},
        layer_decay={"image": 0.5},
        parts={"text": "bias"},
    )
    found = rates(phase.apply(model))
    upper = image.stages[2:]  # half of five, rounded up, is three
    assert len(image.stages) == 5
    assert trainable(image) == {
        n
        for n, p in image.named_parameters()
        if id(p) in {id(q) for s in upper for q in s.parameters()}
    }
    for depth, stage in enumerate(reversed(upper)):
        assert {found[id(p)] for p in stage.parameters()} == {0.5**depth}
    assert trainable(text) == {n for n, _ in text.named_parameters() if n.endswith("bias")}
    assert {found[id(p)] for p in text.parameters() if p.requires_grad} == {2.0}


def test_gradual_unfreezing_goes_from_the_top_stage_to_all(model):
    strategy = build_strategy("gradual_unfreezing", steps=5)
    image, counts = model.encoders["image"], []
    for phase in strategy.phases:
        found = rates(phase.apply(model))
        kept = [any(p.requires_grad for p in stage.parameters()) for stage in image.stages]
        assert kept == sorted(kept)  # never a frozen stage above one that trains
        counts.append(sum(kept))
        trained = [found[id(next(s.parameters()))] for s in reversed(image.stages[5 - sum(kept) :])]
        assert trained == pytest.approx([2e-4 / 2.6**k for k in range(sum(kept))])
    assert counts == [0, 1, 2, 3, 4, 5]
    assert trainable(image) == {n for n, _ in image.named_parameters()}


def test_below_the_top_stages_biases_stay_frozen(model):
    Phase(1, encoder_lr=1.0, top_stages=2, parts="bias").apply(model)
    image = model.encoders["image"]
    assert frozen_depth(image) == 3
    Phase(1, encoder_lr=1.0, parts="norm").apply(model)
    assert frozen_depth(image) == 1  # there is no norm among the patches


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
        (lambda m: Phase(1, parts="biases"), "unknown parts 'biases'.*Did you mean 'bias'"),
        (lambda m: Phase(1, parts={"image": "norms"}), "Did you mean 'norm'"),
        (lambda m: Phase(1, layer_decay={"image": 0.0}), r"layer_decay must lie in \(0, 1\]"),
        (lambda m: Phase(1, parts={"imgae": "norm"}).apply(m), "Did you mean 'image'"),
        (lambda m: Phase(1, encoder_lr=1.0, top_stages=1.5).apply(m), "top_stages is 1.5"),
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


def test_every_preset_can_be_written_out():
    for name in strategies.names():
        strategy = build_strategy(name)
        assert build_strategy(strategy.config()).config() == strategy.config(), name


def test_an_encoder_without_norms_stays_frozen_unless_it_is_named():
    encoders = {"image": build_encoder("tiny-vit"), "n": build_encoder("mlp?shape=[3]&widths=[4]")}
    fusion = build_fusion("gated", {n: e.width for n, e in encoders.items()}, 16)
    model = TransferModel(encoders, fusion, {"product": Classification(["a", "b"])})
    Phase(1, encoder_lr=1.0, parts="norm").apply(model)
    assert trainable(model.encoders["image"])
    assert not trainable(model.encoders["n"])
    with pytest.raises(ValueError, match="encoder 'n' has no norm to train"):
        Phase(1, encoder_lr=1.0, parts={"n": "norm"}).apply(model)
    with pytest.raises(ValueError, match="the phase trains nothing"):
        Phase(1, lr=0, encoder_lr={"n": 1.0}, parts="norm").apply(model)


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
        (lambda: build_strategy({"phases": [{"lr": 1.0}]}), "phase 1 does not say for how many"),
        (lambda: build_strategy({"phase": []}), "needs a name or phases, found phase"),
        (lambda: build_strategy({"phases": [], "method": []}), "Did you mean 'methods'"),
        (lambda: build_strategy("gradual_unfreezing", steps=0), "at least 1 step, found 0"),
        (lambda: build_strategy({"name": "full", "adapters": {"all": "lorra"}}), "mean 'lora'"),
        (
            lambda: build_strategy({"name": "full", "adapters": {"all": {"ranks": 4}}}),
            "the adapter of 'all' has no option 'ranks'.*Did you mean 'rank'",
        ),
        (lambda: build_strategy("lora", rank=0), "rank >= 1.*found 0"),
    ],
)
def test_wrong_names_suggest_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()
