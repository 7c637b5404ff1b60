"""What holds for every method that keeps near to a start, a source or a teacher, or averages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from mmtransfer.methods.base import Method, build_method
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy

from .conftest import TASKS, Look, numbers

ENCODERS = dict.fromkeys("ab", "mlp?shape=[3]&widths=[6]")
METHODS = {
    "l2_sp": {"alpha": 1.0, "beta": 0.3},
    "ewc": {"strength": 1000.0},
    "delta": {"weight": 20.0, "attention": True},
    "bss": {"weight": 0.5, "k": 2},
    "co_tuning": {"head": "HEAD", "modality": "a"},
    "distillation": {"teacher": "TEACHER"},
    "lwf": {"weight": 5.0},
    "rkd": {"teacher": "TEACHER"},
    "fitnet": {"teacher": "TEACHER"},
    "ema": {"decay": 0.5},
    "wise_ft": {"joint": True},
    "sam": {"rho": 0.5},
}
UNLIKE = {
    "bss": "its singular values are those of a micro-batch",
    "rkd": "its pairs are those of a micro-batch",
    "lwf": "AdamW makes whole steps of the rounding errors that are its first gradients",
}
FUSIONS = ("concat", "late", "bottleneck")  # a vector, a decision per modality, tokens
ONE = Phase(1, 1e-2, 1e-2)
each = pytest.mark.parametrize("name", METHODS)


class Interrupt(Method):
    def __init__(self, at: int) -> None:
        self.at = at

    def config(self):
        return {"class": "interrupt"}

    def on_weights(self, model, step):
        if step == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("files")
    encoders = dict.fromkeys("ab", "mlp?shape=[3]&widths=[9]")
    build_model(encoders, TASKS, numbers(), "concat", 5, seed=7).save_pretrained(root / "teacher")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 6, generator=generator)
    save_file({"weight": weight, "bias": torch.zeros(5)}, root / "head.safetensors")
    return root


@pytest.fixture(scope="module")
def fit(files):
    """Trains `kind`, while `good` is a task of the source; -> the trainer, and its gradients."""

    def run(name, fusion="concat", phase=None, output=None, cut=0, resume=False, rows=None, **more):
        rows = numbers() if rows is None else rows
        model = build_model(ENCODERS, TASKS, rows, fusion, 8, seed=0)
        source = [{n: r[n] for n in ("a", "b", "good")} for r in rows]
        train = [{n: r[n] for n in ("a", "b", "kind")} for r in rows]
        for i, row in enumerate(train):
            row["kind"] = None if i % 4 == 3 else row["kind"]
        places = {"HEAD": str(files / "head.safetensors"), "TEACHER": str(files / "teacher")}
        options = {} if name is None else METHODS[name]
        found = {k: places.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
        methods = [] if name is None else [build_method({"name": name, **found})]
        look = Look()
        phases = phase if isinstance(phase, list) else [phase or Phase(3, 1e-2, 1e-2)]
        strategy = Strategy(phases, [*methods, look, Interrupt(cut)])
        chosen = {"batch_size": 12, "progress": False, "track": [], **more}
        further = {"source": source}
        trainer = Trainer(
            model, train, None, strategy, TrainingOptions(**chosen), output, further=further
        )
        trainer.fit(resume)
        return trainer, look

    return run


@pytest.fixture(scope="module")
def plain(fit) -> dict[str, torch.Tensor]:
    """Weights of an encoder that was trained without any method, by fusion."""
    return {f: fit(None, f, ONE)[0].model.encoders["a"].layers[0][0].weight for f in FUSIONS}


def finite(model) -> bool:
    return all(torch.isfinite(p).all() for p in model.parameters())


@each
@pytest.mark.parametrize("fusion", FUSIONS)
def test_any_fusion_is_trained_another_way(fit, plain, name, fusion):
    found = fit(name, fusion, ONE)[0].model
    assert finite(found)
    assert not torch.equal(found.encoders["a"].layers[0][0].weight, plain[fusion])


@each
def test_micro_batches_give_the_gradients_of_the_whole(fit, name):
    """Labels, modalities and rows are spread unevenly over them."""
    if name in UNLIKE:
        pytest.skip(UNLIKE[name])
    phase = Phase(2, 1e-3, 1e-3)
    whole = fit(name, phase=phase, batch_size=10)[1].seen
    parts = fit(name, phase=phase, batch_size=10, accumulation=4)[1].seen
    assert len(whole) == 6
    for found, expected in zip(parts, whole, strict=True):
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, atol=2e-5, rtol=1e-3)


@each
def test_half_precision(fit, name):
    phase = Phase(1, 1e-2, 1e-2)
    half, whole = (fit(name, phase=phase, precision=p)[1].seen[-1] for p in ("bf16", "no"))
    for modality in "ab":
        key = f"encoders.{modality}.layers.0.0.weight"
        found, expected = half[key].flatten(), whole[key].flatten()
        assert F.cosine_similarity(found, expected, 0) > 0.98
        assert found.norm() == pytest.approx(float(expected.norm()), rel=0.1)


@each
def test_a_step_without_a_modality_leaves_its_encoder_alone(fit, name):
    rows = numbers()
    for row in rows[1:]:
        row["b"] = None
    trainer, look = fit(name, rows=rows, phase=Phase(1, 1e-2, 1e-2))
    without = [seen["encoders.b.layers.0.0.weight"] is None for seen in look.seen]
    assert sorted(without) == [False, True]
    assert finite(trainer.model)


@each
def test_a_run_that_was_cut_goes_on_to_the_same_weights(fit, name, tmp_path):
    whole = fit(name, fusion="gated")[0]
    with pytest.raises(KeyboardInterrupt):
        fit(name, fusion="gated", output=tmp_path, cut=4, checkpoint_steps=1)
    resumed = fit(name, fusion="gated", output=tmp_path, resume=True)[0]
    assert resumed.losses == whole.losses
    for parameter, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[parameter], value), parameter


@each
def test_a_probe_may_come_first(fit, name, tmp_path):
    """There the encoders give stored features, of which nothing has a gradient."""
    phases = [Phase(1, 1e-2), Phase(2, 1e-2, 1e-2)]
    whole, _ = fit(name, phase=phases)
    assert finite(whole.model)
    with pytest.raises(KeyboardInterrupt):
        fit(name, phase=phases, output=tmp_path, cut=4, checkpoint_steps=1)
    resumed = fit(name, phase=phases, output=tmp_path, resume=True)[0]
    assert resumed.losses == whole.losses


@pytest.mark.parametrize("name", ["distillation", "rkd", "fitnet", "lwf"])
def test_what_is_known_of_a_row_is_not_mixed(fit, name):
    method = build_method({"name": "mixup"})
    rows = numbers()
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    places = {"TEACHER": "."}
    options = {k: places.get(v, v) for k, v in METHODS[name].items()}
    strategy = Strategy([Phase(1, 1e-2, 1e-2)], [build_method({"name": name, **options}), method])
    with pytest.raises(ValueError, match=r"as it is in the data, and MixUp mixes"):
        Trainer(model, rows, None, strategy, TrainingOptions(progress=False))
