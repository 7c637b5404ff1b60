"""The loop against a plain one, the store, phases, best weights, precision, seeds."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mmtransfer.data.collate import Collate, ReadError
from mmtransfer.data.samplers import TrainBatches
from mmtransfer.encoders.huggingface import HuggingFaceEncoder
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.tasks.classification import IGNORE
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.training.setup import rate_curve
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert"}


def options(**changed) -> TrainingOptions:
    return TrainingOptions(**{"batch_size": 16, "progress": False, **changed})


def small(data, columns=TINY, seed=0, **changed) -> TransferModel:
    return build_model(columns, TASKS, data["train"], "gated", 16, seed, **changed)


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_loop_is_a_plain_pytorch_loop(products):
    """Same batches, loss, clipping, rate curve: bit-equal weights after two epochs."""
    phase = Phase(2, lr=1e-2, encoder_lr=1e-3, warmup=0.2)
    model = small(products)
    model.standardise({})
    plain = copy.deepcopy(model)
    trainer = Trainer(model, products["train"], None, Strategy([phase]), options(clip=0.5))
    trainer.fit()

    groups = phase.apply(plain)
    optimizer = torch.optim.AdamW(groups, fused=True)
    curve = rate_curve(phase, 6)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
    collate = Collate(plain.encoders, plain.tasks)
    batches = TrainBatches(40, 16, 0)
    losses = []
    for epoch in range(2):
        batches.epoch = epoch
        plain.train()
        for rows in batches:
            batch = collate([(i, products["train"][i]) for i in rows])
            out = plain(batch.inputs, len(batch))
            loss = sum(
                F.cross_entropy(out.logits[n], batch.targets[n], ignore_index=IGNORE) for n in TASKS
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            losses.append(float(loss.detach()))
    assert trainer.losses == pytest.approx(losses, abs=1e-5)
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor, atol=1e-5), name


def test_accumulation_changes_nothing(products):
    """Also with unlabelled rows spread unevenly, and a last window that is short."""
    runs = []
    for accumulation in (1, 3):
        strategy = Strategy([Phase(2, lr=1e-2, encoder_lr=1e-3)])
        trainer = Trainer(
            small(products),
            products["train"],
            None,
            strategy,
            options(accumulation=accumulation),
        )
        trainer.fit()
        runs.append(trainer.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-4)


def test_a_probe_leaves_encoders_untouched_and_encodes_once(products, monkeypatch):
    forwards = []
    plain = HuggingFaceEncoder.forward
    monkeypatch.setattr(
        HuggingFaceEncoder,
        "forward",
        lambda self, **inputs: forwards.append(self.modality) or plain(self, **inputs),
    )
    strategy = build_strategy("linear_probe", epochs=3)
    model = small(products)
    before = state(model)
    metrics = run(model, products, strategy, options())
    after = state(model)
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("encoders."))
    assert not torch.equal(before["heads.product.weight"], after["heads.product.weight"])
    assert metrics["timing"]["encoded_rows"] == 2 * (40 + 19 + 21)
    assert len(forwards) == 2 * 3  # one batch per split and modality, in all epochs together

    forwards.clear()
    again = run(small(products), products, strategy, options())
    assert again["timing"]["encoded_rows"] == 0
    assert again["timing"]["encoding"] == 0
    assert forwards == []
    assert again["test"] == metrics["test"]
    assert again["history"] == metrics["history"]


def test_other_data_or_weights_are_encoded_anew(products):
    strategy = build_strategy("linear_probe", epochs=1)
    run(small(products), products, strategy, options())
    changed = {**products, "test": products["test"][:5]}
    assert run(small(products), changed, strategy, options())["timing"]["encoded_rows"] == 10
    other = run(small(products, seed=1), products, strategy, options())
    assert other["timing"]["encoded_rows"] == 2 * 80


def test_stored_features_train_like_encoder_inputs(products):
    """A probe from the store ends like one whose frozen encoders run in every step."""
    phase = Phase(2, lr=1e-2)
    model = small(products)
    twin = copy.deepcopy(model)
    Trainer(model, products["train"], None, Strategy([phase]), options()).fit()
    trainer = Trainer(twin, products["train"], None, Strategy([phase]), options())
    encode = trainer.data.stores_of

    def statistics_only(split, rows):
        if not trainer.history and not trainer.losses:
            stores = encode(split, rows)
            found = {n: s.statistics() for n, s in stores.items()}
            twin.fusion.standardise(
                {n: (torch.from_numpy(m), torch.from_numpy(d)) for n, (m, d) in found.items()}
            )
        return {}

    trainer.data.stores_of = statistics_only
    trainer.fit()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(twin.state_dict()[name], tensor, atol=2e-4), name


def test_lp_ft_freezes_first_and_then_trains_all(products):
    seen = []

    class Spy(Method):
        def on_gradients(self, model, again):
            encoder = model.encoders["image"]
            seen.append(any(p.grad is not None for p in encoder.parameters()))

    strategy = build_strategy("lp_ft", [Spy()], probe_epochs=2, epochs=1)
    Trainer(small(products), products["train"], None, strategy, options()).fit()
    assert seen == [False] * 6 + [True] * 3


def test_frozen_encoders_stay_in_eval_mode(products):
    seen = set()

    class Spy(Method):
        def on_weights(self, model, step):
            seen.add((model.encoders["image"].training, model.encoders["text"].training))

    strategy = Strategy([Phase(1, encoder_lr={"image": 1e-3})], [Spy()])
    Trainer(small(products), products["train"], None, strategy, options()).fit()
    assert seen == {(True, False)}


def test_the_best_epoch_is_kept(products, tmp_path):
    strategy = Strategy([Phase(6, lr=0.05, schedule="constant")])
    model = small(products)
    trainer = Trainer(
        model, products["train"], products["validation"], strategy, options(), tmp_path
    )
    history = trainer.fit()
    scores = [trainer.score(record["validation"]) for record in history]
    assert len(set(scores)) > 1  # else this test would show nothing
    assert trainer.score(trainer.evaluate(products["validation"], "validation")) == max(scores)
    best = load_file(sorted(tmp_path.glob("checkpoints/*/best.safetensors"))[-1])
    assert best.keys() <= state(model).keys()
    assert all(torch.equal(tensor, state(model)[name]) for name, tensor in best.items())
    trainer.close()


def test_patience_ends_a_phase(products):
    strategy = Strategy([Phase(30, lr=1e-9, warmup=0.0, schedule="constant")])
    trainer = Trainer(
        small(products), products["train"], products["validation"], strategy, options(patience=2)
    )
    assert len(trainer.fit()) == 3


def test_same_seed_same_weights_whatever_the_workers(products):
    def train(seed, workers):
        strategy = Strategy(
            [Phase(2, 1e-2, 1e-3)], build_strategy("full", ["modality_dropout"]).methods
        )
        model = small(products, dropout=0.2)
        chosen = options(seed=seed, workers=workers, augment=True)
        Trainer(model, products["train"], None, strategy, chosen).fit()
        return state(model)

    first = train(0, 0)
    assert same(first, train(0, 0))
    assert same(first, train(0, 2))
    assert not same(first, train(1, 0))


def test_a_probe_of_a_model_that_was_trained_begins_where_it_is(products):
    """Statistics are for new projections; trained ones have learned features as they come."""
    model = small(products)
    Trainer(model, products["train"], None, Strategy([Phase(1, 1e-2, 1e-3)]), options()).fit()
    data = {"train": products["train"][:20], "source": products["train"]}
    tuning, probe = Strategy([Phase(1, 1e-2, 1e-3)]), Strategy([Phase(1, 1e-2)])
    known = run(copy.deepcopy(model), data, tuning, options())["source"]["before"]
    for seed in (0, 1):  # the second begins where the first ended
        found = run(model, data, probe, options(seed=seed))["source"]
        for task in TASKS:
            assert found["before"][task] == pytest.approx(known[task], abs=1e-5)
        known = found["after"]


def test_bf16_learns(products):
    strategy = Strategy([Phase(8, 2e-2, 2e-3)])
    trainer = Trainer(small(products), products["train"], None, strategy, options(precision="bf16"))
    trainer.fit()
    assert sum(trainer.losses[-3:]) < 0.7 * sum(trainer.losses[:3])
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert "_original_forward" not in vars(trainer.model)  # saved and used without autocast


def test_every_row_without_a_modality_in_validation_is_data(products):
    silent = [row | {"text": None} for row in products["validation"]]
    strategy = build_strategy("linear_probe", epochs=1)
    trainer = Trainer(small(products), products["train"], silent, strategy, options())
    assert trainer.fit()[0]["validation"]["product"]["rows"] == 19


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: options(precision="bf61"), ValueError, "Did you mean 'bf16'"),
        (lambda: options(batch_size=0), ValueError, "batch_size must be at least 1, found 0"),
        (lambda: options(clip=-1.0), ValueError, "clip must not be negative"),
    ],
)
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_fp16_without_a_gpu_is_refused(products):
    with pytest.raises(ValueError, match="needs a GPU, found the CPU"):
        Trainer(
            small(products),
            products["train"],
            None,
            build_strategy("full"),
            options(precision="fp16"),
        )


def test_a_loss_that_is_no_number_stops_the_run(products):
    class Poison(Method):
        def on_weights(self, model, step):
            if step == 2:
                next(model.heads.parameters()).data.fill_(float("nan"))

    strategy = Strategy([Phase(2)], [Poison()])
    with pytest.raises(FloatingPointError, match="step 3 is nan, in training rows [0-9]+, "):
        Trainer(small(products), products["train"], None, strategy, options()).fit()


def test_unreadable_values_are_counted_once(products, picture):
    data = {k: [dict(r) for r in v] for k, v in products.items()}
    data["train"][4]["image"] = b"broken"
    for strategy in (build_strategy("linear_probe", epochs=2), build_strategy("full", epochs=2)):
        with pytest.raises(ValueError, match="train row 4, column 'image' cannot be read"):
            run(small(data), data, strategy, options())
        metrics = run(small(data), data, strategy, options(on_error="missing"))
        assert metrics["unreadable"] == {"train": {"image": 1}}


def test_a_run_leaves_its_outputs(products, tmp_path: Path):
    strategy = build_strategy("lp_ft", probe_epochs=1, epochs=1)
    metrics = run(small(products), products, strategy, options(), tmp_path)
    assert set(metrics["test"]) == set(TASKS)
    assert {"accuracy", "f1_macro", "loss", "rows"} == set(metrics["test"]["product"])
    assert metrics["test"]["product"]["rows"] == 21
    assert (tmp_path / "metrics.json").is_file()
    events = list((tmp_path / "logs").rglob("events.out.tfevents*"))
    assert events

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(events[0].parent))
    log.Reload()
    assert "train/loss" in log.Tags()["scalars"]
    assert "validation/product/accuracy" in log.Tags()["scalars"]

    loaded = TransferModel.from_pretrained(tmp_path / "model")
    answers = loaded.predict(products["test"])
    right = [
        a["product"]["label"] == r["product"]
        for a, r in zip(answers, products["test"], strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(metrics["test"]["product"]["accuracy"])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_penalty_weighs_the_same_however_the_step_is_cut(products, accumulation):
    """A loss that is only a method's penalty gives the same weights for any accumulation."""

    class Pull(Method):
        def on_loss(self, loss, model, batch, outputs):
            return 0 * loss + model.heads["product"].weight.square().sum()

    model = small(products)
    start = model.heads["product"].weight.detach().clone()
    gradients = []

    class Look(Method):
        def on_gradients(self, model, again):
            gradients.append(model.heads["product"].weight.grad.clone())

    strategy = Strategy([Phase(1, lr=1e-3)], [Pull(), Look()])
    Trainer(model, products["train"], None, strategy, options(accumulation=accumulation)).fit()
    assert torch.allclose(gradients[0], 2 * start, atol=1e-6)


def test_without_labelled_validation_rows_the_last_epoch_is_kept(products):
    blind = [row | {"product": None, "category": None} for row in products["validation"]]
    model = small(products)
    before = state(model)
    trainer = Trainer(
        model, products["train"], blind, build_strategy("linear_probe", epochs=2), options()
    )
    trainer.fit()
    assert not torch.equal(before["heads.product.weight"], state(model)["heads.product.weight"])


def test_other_rows_under_a_known_name_do_not_enter_training(products):
    trainer = Trainer(
        small(products), products["train"], None, Strategy([Phase(1, lr=1e-2)]), options()
    )
    trainer.fit()
    kept = dict(trainer.data.stores)
    trainer.evaluate(products["test"], "train")
    assert trainer.data.stores == kept


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_value_is_one_line_with_workers_too(products, workers):
    broken = [dict(row) for row in products["train"]]
    broken[4]["image"] = b"broken"
    for name in ("full", "linear_probe"):
        trainer = Trainer(
            small(products),
            broken,
            None,
            build_strategy(name, epochs=1),
            options(workers=workers),
        )
        with pytest.raises(ReadError) as caught:
            trainer.fit()
        assert str(caught.value).startswith("train row 4, column 'image' cannot be read")
        assert "Traceback" not in str(caught.value)


def test_a_checkpoint_of_another_run_is_refused(products, tmp_path):
    def fit(model, resume=False, epochs=1, **changed):
        strategy = build_strategy("linear_probe", epochs=epochs)
        trainer = Trainer(model, products["train"], None, strategy, options(**changed), tmp_path)
        trainer.fit(resume)
        trainer.close()
        return trainer

    done = fit(small(products))
    again = fit(small(products), resume=True, workers=1, evaluation_batch_size=5)
    assert again.losses == done.losses
    assert same(state(again.model), state(done.model))
    with pytest.raises(ValueError, match=r"of another run \(batch_size: was 16, is 8\)"):
        fit(small(products), resume=True, batch_size=8)
    with pytest.raises(ValueError, match="of another run .strategy: was"):
        fit(small(products), resume=True, epochs=2)
    with pytest.raises(ValueError, match="other frozen weights"):
        fit(small(products, seed=1), resume=True)
    without = Trainer(
        small(products), products["train"], None, build_strategy("linear_probe"), options()
    )
    with pytest.raises(ValueError, match="nothing to resume from"):
        without.fit(resume=True)


def test_a_method_keeps_its_state_in_checkpoints(products, tmp_path):
    class Count(Method):
        steps = 0

        def on_weights(self, model, step):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, kept):
            self.steps = kept["steps"]

        def config(self):
            return {"class": "count"}

    counts = Count(), Count()
    for resume, count in enumerate(counts):
        strategy = build_strategy("linear_probe", [count], epochs=2)
        trainer = Trainer(small(products), products["train"], None, strategy, options(), tmp_path)
        trainer.fit(bool(resume))
        trainer.close()
    assert counts[0].steps == counts[1].steps == 6


def test_the_log_has_a_line_per_step_and_epoch(products, tmp_path):
    strategy = build_strategy("lp_ft", probe_epochs=1, epochs=2)
    trainer = Trainer(
        small(products), products["train"], products["validation"], strategy, options(), tmp_path
    )
    history = trainer.fit()
    trainer.close()
    with (tmp_path / "training.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    steps = [line for line in lines if line["loss"]]
    epochs = [line for line in lines if not line["loss"]]
    assert [int(line["step"]) for line in steps] == list(range(1, 10))
    assert [float(line["loss"]) for line in steps] == trainer.losses
    found = [float(line["validation/product/accuracy"]) for line in epochs]
    assert found == [record["validation"]["product"]["accuracy"] for record in history]
    assert [line["phase"] + line["epoch"] for line in epochs] == ["11", "22", "23"]


def test_running_out_of_memory_halves_the_micro_batches(products, monkeypatch):
    plain = TransferModel.forward

    def forward(self, inputs, size):
        if self.training and size > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, inputs, size)

    monkeypatch.setattr(TransferModel, "forward", forward)
    strategy = Strategy([Phase(2, 1e-2, 1e-3)])
    with pytest.raises(torch.OutOfMemoryError):
        Trainer(small(products), products["train"], None, strategy, options()).fit()
    trainer = Trainer(small(products), products["train"], None, strategy, options(on_oom="halve"))
    trainer.fit()
    assert trainer.accumulation == 4
    monkeypatch.undo()
    twin = Trainer(small(products), products["train"], None, strategy, options(accumulation=4))
    twin.fit()
    assert trainer.losses == twin.losses


def test_a_step_that_is_no_number_can_be_left_out(products):
    class Poison(Method):
        calls = 0

        def on_loss(self, loss, model, batch, outputs):
            self.calls += 1
            return loss * (float("nan") if self.calls == 2 else 1)

    seen = []

    class Look(Method):
        def on_weights(self, model, step):
            seen.append(model.heads["product"].weight.detach().clone())

    strategy = Strategy([Phase(1, 1e-2)], [Poison(), Look()])
    trainer = Trainer(small(products), products["train"], None, strategy, options(on_nan="skip"))
    trainer.fit()
    assert trainer.skipped_steps == 1
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert torch.isfinite(seen[2]).all()


def test_after_training_other_weights_of_frozen_encoders_are_heeded():
    """Features of the validation rows were stored in the last phase."""
    rows = [{"a": [float(i), 1.0], "kind": "xy"[i % 2]} for i in range(8)]
    encoders = {"a": "mlp?shape=[2]&widths=[4]"}
    model = build_model(encoders, {"kind": "classification"}, rows, "concat", 4)
    trainer = Trainer(model, rows, rows, Strategy([Phase(1, 1e-2)]), options(track=[]))
    trainer.fit()
    before = trainer.evaluate(rows, "validation")
    assert before == trainer.evaluate(list(rows))
    for _ in range(2):
        with torch.no_grad():
            model.encoders["a"].layers[0][0].weight.mul_(-2)
        found = trainer.evaluate(rows, "validation")
        assert found == trainer.evaluate(list(rows)) != before
        before = found
    trainer.close()
