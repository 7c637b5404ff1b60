"""Partial fine-tuning from stored activations is partial fine-tuning, and skips what is frozen."""

from __future__ import annotations

import copy
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
import transformers

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.huggingface import HuggingFaceEncoder
from mmtransfer.encoders.keyword_transformer import KeywordTransformer
from mmtransfer.encoders.sentence import SentenceEncoder
from mmtransfer.encoders.torchaudio import TorchaudioEncoder
from mmtransfer.methods.base import Method
from mmtransfer.model import frozen_depth
from mmtransfer.training import features
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
TOP = Phase(2, lr=1e-2, encoder_lr=1e-3, top_stages=1)


def options(**changed) -> TrainingOptions:
    return TrainingOptions(**{"batch_size": 16, "progress": False, **changed})


def model_of(products, columns=TINY):
    return build_model(columns, TASKS, products["train"], "gated", 16, seed=0)


def fitted(products, model=None, strategy=None, **changed) -> Trainer:
    model = model or model_of(products)
    trainer = Trainer(
        model,
        products["train"],
        products["validation"],
        strategy or Strategy([TOP]),
        options(**changed),
    )
    trainer.history = trainer.fit()
    return trainer


class Calls(Method):
    """Counts the rows that each stage sees."""

    def __init__(self, encoder):
        self.rows = [0] * len(encoder.stages)
        for number, stage in enumerate(encoder.stages):
            stage.register_forward_pre_hook(self.counter(number), with_kwargs=True)

    def counter(self, number):
        def count(module, positional, named):
            self.rows[number] += len(next(iter([*positional, *named.values()])))

        return count


def test_losses_and_weights_are_those_without_the_store(products, tmp_path):
    stored = fitted(products, cache=str(tmp_path))
    plain = fitted(products, prefix_cache=False, cache=str(tmp_path))
    assert stored.data.encoded_rows == 3 * (40 + 19)
    assert plain.data.encoded_rows == 0
    assert stored.losses == pytest.approx(plain.losses, abs=1e-5)
    for task, metrics in plain.history[-1]["validation"].items():
        assert stored.history[-1]["validation"][task] == pytest.approx(metrics, abs=1e-5)
    state = plain.model.state_dict()
    for name, tensor in stored.model.state_dict().items():
        assert torch.allclose(tensor, state[name], atol=2e-4), name


@pytest.mark.parametrize("column", TINY)
def test_what_is_frozen_runs_once_per_row(products, column, tmp_path):
    data = {s: [row for row in rows if row[column] is not None] for s, rows in products.items()}
    model = model_of(data, {column: TINY[column]})
    calls = Calls(model.encoders[column])
    fitted(data, model, cache=str(tmp_path))
    rows = len(data["train"]) + len(data["validation"])
    depth = frozen_depth(model.encoders[column])
    assert depth == len(calls.rows) - 1
    assert all(seen <= rows for seen in calls.rows[1:depth])
    assert calls.rows[-1] >= 2 * rows


def test_a_second_run_finds_the_activations_and_a_deeper_cut_does_not(products, tmp_path):
    again = [fitted(products, cache=str(tmp_path)).data.encoded_rows for _ in range(2)]
    assert again == [3 * 59, 0]
    deeper = Strategy([Phase(1, lr=1e-2, encoder_lr=1e-3, top_stages=2)])
    assert fitted(products, strategy=deeper, cache=str(tmp_path)).data.encoded_rows == 3 * 59


def test_activations_are_found_again_after_the_stages_above_have_changed(products, tmp_path):
    trained = fitted(products, cache=str(tmp_path)).model
    assert fitted(products, trained, cache=str(tmp_path)).data.encoded_rows == 0


def test_activations_are_not_found_after_a_stage_below_has_changed(products, tmp_path):
    model = model_of(products)
    fitted(products, copy.deepcopy(model), cache=str(tmp_path))
    with torch.no_grad():
        next(iter(model.encoders["text"].stages[1].parameters())).add_(0.1)
    assert fitted(products, model, cache=str(tmp_path)).data.encoded_rows == 59


def test_the_dropout_of_what_trains_goes_on(products, tmp_path):
    model = model_of(products, {"text": "tiny-bert"})
    for part in model.encoders["text"].stages[-1].modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    twin = copy.deepcopy(model)
    stored = fitted(products, model, cache=str(tmp_path))
    plain = fitted(products, twin, prefix_cache=False)
    assert stored.losses == pytest.approx(plain.losses, abs=1e-5)
    dry = fitted(products, model_of(products, {"text": "tiny-bert"}), prefix_cache=False)
    assert stored.losses != pytest.approx(dry.losses, abs=1e-3)


def test_augmented_columns_are_read_anew_but_not_for_validation(products, tmp_path):
    trainer = fitted(products, augment={"image": True, "text": False, "audio": False})
    assert set(trainer.data.stores) == {
        ("train", "text"),
        ("train", "audio"),
        *(("validation", name) for name in TINY),
    }
    plain = fitted(
        products, augment={"image": True, "text": False, "audio": False}, prefix_cache=False
    )
    assert trainer.losses == pytest.approx(plain.losses, abs=1e-5)


def test_mixed_pictures_are_not_stored(products):
    strategy = build_strategy({"phases": [{"epochs": 1, "encoder_lr": 1e-3, "top_stages": 1}]})
    mixing = build_strategy(strategy, [{"name": "mixup", "rate": 1.0}])
    trainer = fitted(products, strategy=mixing)
    assert ("train", "image") not in trainer.data.stores
    assert ("train", "text") in trainer.data.stores


def test_stored_views_are_augmented_epochs_in_turn(products, tmp_path):
    """Of two views the first epochs are those of a run that augments anew; the third repeats."""
    data = {s: [{**row, "text": None, "audio": None} for row in r] for s, r in products.items()}
    changed = {"augment": True, "batch_size": 40, "cache": str(tmp_path)}
    phase = Phase(4, lr=1e-9, encoder_lr=1e-9, top_stages=1, schedule="constant")
    columns = {"image": "tiny-vit"}

    def losses(**more) -> list[float]:
        model = model_of(data, columns)
        return fitted(data, model, Strategy([phase]), **changed, **more).losses

    anew, stored = losses(), losses(feature_views=2)
    assert stored[:2] == pytest.approx(anew[:2], abs=1e-5)
    assert stored[2:] == pytest.approx(stored[:2], abs=1e-5)
    assert anew[2:] != pytest.approx(anew[:2], abs=1e-5)


def test_a_probe_can_learn_from_stored_views(products, tmp_path):
    columns = {"image": "tiny-vit"}
    probe = Strategy([Phase(4, lr=1e-2)])
    views = fitted(
        products,
        model_of(products, columns),
        probe,
        augment=True,
        feature_views=3,
        cache=str(tmp_path),
    )
    assert views.data.encoded_rows == 3 * 40 + 19
    plain = fitted(products, model_of(products, columns), probe, cache=str(tmp_path))
    assert views.losses != pytest.approx(plain.losses, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_features_train_almost_alike(products, tmp_path, precision):
    halves = fitted(products, feature_precision=precision, cache=str(tmp_path))
    whole = fitted(products, cache=str(tmp_path))
    assert halves.losses == pytest.approx(whole.losses, rel=0.03)
    assert halves.losses != whole.losses


def test_views_without_augmentation_are_a_mistake():
    with pytest.raises(ValueError, match="feature_views are augmented versions, found 2"):
        TrainingOptions(feature_views=2)


def test_phases_of_growing_depth_store_what_each_needs(products, tmp_path):
    phases = [
        Phase(1, lr=1e-2),
        Phase(1, lr=1e-2, encoder_lr=1e-3, top_stages=1),
        Phase(1, lr=1e-2, encoder_lr=1e-3, top_stages=2),
        Phase(1, lr=1e-2, encoder_lr=1e-3),
        Phase(1, lr=1e-2),
    ]

    def losses(**changed) -> list[float]:
        strategy = Strategy(phases)
        return fitted(products, strategy=strategy, cache=str(tmp_path), **changed).losses

    assert losses() == pytest.approx(losses(prefix_cache=False), abs=1e-4)


def test_a_run_says_what_it_encoded(products, tmp_path):
    metrics = run(model_of(products), products, Strategy([TOP]), options(cache=str(tmp_path)))
    assert metrics["timing"]["encoded_rows"] == 3 * 59


def test_killed_workers_are_replaced_while_encoding(products, tmp_path, monkeypatch):
    lines: list[str] = []
    read, calls = features.Extraction.__call__, []

    def read_and_kill(self, inputs):
        calls.append(1)
        if len(calls) == 2:
            multiprocessing.active_children()[0].kill()
        return read(self, inputs)

    def stored(cache, **changed):
        model, phase = model_of(products, {"image": "tiny-vit"}), Phase(1)
        phase.apply(model)
        chosen = options(cache=str(tmp_path / cache), evaluation_batch_size=2, **changed)
        trainer = Trainer(model, products["train"], None, Strategy([phase]), chosen)
        trainer.progress.line = lines.append
        return [*trainer.data.stores_of("train", products["train"])["image"]]

    whole = stored("whole")
    monkeypatch.setattr(features.Extraction, "__call__", read_and_kill)
    again = stored("again", workers=1)
    assert lines[0].startswith("replaced killed loader workers")
    assert len(again) == len(whole) == 40
    assert all(a is b is None or (a == b).all() for a, b in zip(again, whole, strict=True))


@pytest.mark.parametrize(("phase", "words"), [(TOP, "prefix_cache false"), (Phase(1), "fp16$")])
def test_what_the_disk_will_not_hold_is_refused_at_once(
    products, tmp_path, monkeypatch, phase, words
):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=rf"'image' need about 0.0 GB.*0.0 GB free.*{words}"):
        fitted(products, strategy=Strategy([phase]), cache=str(tmp_path))
    assert not list((tmp_path / "features").iterdir())


def torchaudio() -> Encoder:
    model = {
        "extractor_mode": "layer_norm",
        "extractor_conv_layer_config": [(8, 80, 40), (8, 4, 4)],
        "extractor_conv_bias": False,
        "encoder_embed_dim": 16,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 2,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 24,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": True,
    }
    encoder = TorchaudioEncoder(model, rate=4000)
    encoder.network.encoder.transformer.dropout.p = 0.3
    return encoder


def whisper() -> Encoder:
    config = transformers.WhisperConfig(
        vocab_size=9,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        max_source_positions=50,
        num_mel_bins=20,
        dropout=0.3,
        pad_token_id=0,
    )
    hearing = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
    for layer in hearing.layers:
        layer.dropout = 0.0
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    return HuggingFaceEncoder(hearing, extractor)


def wav2vec2() -> Encoder:
    encoder = build_encoder("tiny-wav2vec2?width=16")
    encoder.model.encoder.dropout.p = 0.3
    return encoder


def sentence() -> Encoder:
    words = build_encoder("tiny-bert?width=16")
    words.model.embeddings.dropout.p = 0.3
    return SentenceEncoder(words.model, words.processor, max_tokens=32)


def kwt() -> Encoder:
    model = {"sample_rate": 1000, "num_samples": 1000, "frame_length": 100, "frame_step": 50}
    model |= {"n_fft": 128, "n_fft_bins": 60, "n_mels": 12, "n_mfcc": 6, "num_tokens": 20}
    model |= {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 16}
    encoder = KeywordTransformer(model | {"layer_norm_eps": 1e-6})
    for constant in encoder.frontend.buffers():
        constant.uniform_(-0.3, 1)
    return encoder


@pytest.mark.parametrize(
    ("column", "spec"),
    [
        ("image", "torchvision:resnet18?size=32"),
        ("image", "torchvision:vit_b_32?size=32&pool=first"),
        ("image", "timm:resnet18?pretrained=false&size=32"),
        ("image", 'timm:test_vit?pretrained=false&size=32&model_args={"pos_drop_rate":0.3}'),
        ("image", "small-cnn?size=32&widths=[8,8,16]"),
        ("image", "mlp?size=16&widths=[32,16]"),
        ("audio", "spectrogram-cnn?n_mels=16&widths=[8,8,8]"),
        ("audio", torchaudio),
        ("audio", whisper),
        ("audio", wav2vec2),
        ("audio", kwt),
        ("text", sentence),
        ("table", "vector?hidden=[12,10]&width=6&dropout=0.3"),
    ],
)
def test_every_family_trains_from_activations(products, tmp_path, column, spec):
    rows = [
        {**row, "table": {"a": k, "b": "xyz"[k % 3]}} for k, row in enumerate(products["train"])
    ]
    data = {"train": rows[:16], "validation": rows[:8]}
    losses = {}
    for stored in (True, False):
        torch.manual_seed(0)
        model = model_of(data, {column: spec() if callable(spec) else spec})
        trainer = fitted(data, model, prefix_cache=stored, cache=str(tmp_path))
        losses[stored] = trainer.losses
        assert bool(trainer.data.encoded_rows) == stored
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)
