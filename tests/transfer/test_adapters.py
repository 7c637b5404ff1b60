"""Adapters: where they go, what trains, and that merged, saved and loaded they give the same."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from torch import nn

from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import build_encoder
from mmtransfer.encoders.huggingface import HuggingFaceEncoder
from mmtransfer.fusion.base import build_fusion
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel, frozen_depth
from mmtransfer.tasks.classification import Classification
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.adapters import (
    add_adapters,
    bare,
    load_adapters,
    merge_adapters,
    readable,
    save_adapters,
)
from mmtransfer.transfer.base import Phase, Strategy, build_strategy
from mmtransfer.transfer.parts import adapter_names, parameter_counts

KINDS = ("lora", "dora", "ia3")
#: what an encoder calls, by ends of names
FAMILIES = {
    "tiny-vit": "projection q_proj k_proj v_proj o_proj fc1 fc2",
    "tiny-bert": "query key value dense",
    "tiny-wav2vec2": "projection q_proj k_proj v_proj out_proj intermediate_dense output_dense",
    "mlp?size=8&widths=[6,4]": "0",
    "small-cnn?size=16&widths=[4,6]": "0",
    "torchvision:squeezenet1_1?size=32": "0 squeeze expand1x1 expand3x3",
    "timm:test_vit?pretrained=false": "proj qkv fc1 fc2",
    "extended:mlp?size=8&widths=[6,4]": "0 1 3",
    "kwt": "patch qkv proj fc1 fc2",
    "mobilenet": "convolution",
}
KWT = {
    "hidden_size": 16,
    "n_mels": 8,
    "n_fft_bins": 33,
    "n_mfcc": 6,
    "frame_length": 60,
    "frame_step": 40,
    "n_fft": 64,
    "num_tokens": 100,
    "num_heads": 2,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-6,
    "num_layers": 2,
    "sample_rate": 4000,
    "num_samples": 4000,
}


@pytest.fixture
def values(picture, clip):
    return {
        "image": [picture(k) for k in range(3)],
        "text": ["one", "two apples", "three"],
        "audio": [clip(k, 1.0, 16000) for k in range(3)],
    }


def make(spec: str) -> TransferModel:
    torch.manual_seed(0)
    if spec == "kwt":
        from mmtransfer.encoders.keyword_transformer import KeywordTransformer

        encoder = KeywordTransformer(KWT)
        for tensor in encoder.state_dict().values():
            nn.init.normal_(tensor, 0, 0.2)
    elif spec == "mobilenet":  # reads the stride of its convolutions
        config = transformers.MobileNetV2Config(depth_multiplier=0.25, finegrained_output=False)
        size = {"height": 32, "width": 32}
        processor = transformers.MobileNetV2ImageProcessor(
            size={"shortest_edge": 32}, crop_size=size
        )
        encoder = HuggingFaceEncoder(transformers.MobileNetV2Model(config), processor)
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    else:
        encoder = build_encoder(spec)
    fusion = build_fusion("concat", {"x": encoder.width}, 8)
    return TransferModel({"x": encoder}, fusion, {"kind": Classification(["a", "b", "c"])}).eval()


def logits(model: TransferModel, values: list) -> torch.Tensor:
    rows = [(i, {"x": value}) for i, value in enumerate(values)]
    batch = Collate(model.encoders, {})(rows)
    with torch.no_grad():
        return model.eval()(batch.inputs, len(batch)).logits["kind"]


def disturb(model: TransferModel, size: float = 0.3) -> None:
    """As training would."""
    for name, parameter in model.encoders["x"].named_parameters():
        if name in adapter_names(model.encoders["x"]):
            nn.init.normal_(parameter, float(parameter.detach().mean()), size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", FAMILIES)
def test_merged_adapters_give_equal_logits(spec, kind, values):
    model = make(spec)
    given = values[model.encoders["x"].modality]
    before, names = logits(model, given), list(model.state_dict())
    parameters = sum(p.numel() for p in model.parameters())
    add_adapters(model, {"x": kind}, {"x": given[0]})
    torch.testing.assert_close(logits(model, given), before, atol=1e-5, rtol=1e-5)
    targets = {n.split(".base_layer")[0] for n in model.state_dict() if ".base_layer." in n}
    assert {name.rpartition(".")[2] for name in targets} == set(FAMILIES[spec].split())
    disturb(model, 0.05 if spec == "mobilenet" else 0.3)  # which is deep: rounding would grow
    trained = logits(model, given)
    assert (trained - before).abs().max() > 1e-4
    merge_adapters(model)
    assert list(model.state_dict()) == names
    assert sum(p.numel() for p in model.parameters()) == parameters
    torch.testing.assert_close(logits(model, given), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_saved_with_its_adapters_or_without(kind, values, tmp_path):
    model, given = make("small-cnn?size=16&widths=[4,6]"), values["image"]
    add_adapters(model, {"x": kind})
    disturb(model)
    trained = logits(model, given)
    model.save_pretrained(tmp_path)
    kept = TransferModel.from_pretrained(tmp_path)
    assert adapter_names(kept.encoders["x"]) == adapter_names(model.encoders["x"])
    assert torch.equal(logits(kept, given), trained)
    merge_adapters(model)
    model.save_pretrained(tmp_path)  # over a model that had adapters
    plain = TransferModel.from_pretrained(tmp_path)
    assert not adapter_names(plain.encoders["x"])
    assert torch.equal(logits(plain, given), logits(model, given))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", FAMILIES)
def test_every_adapter_is_heard(spec, kind, values):
    model = make(spec)
    given = values[model.encoders["x"].modality]
    add_adapters(model, {"all": kind}, {"x": given[0]})
    disturb(model)
    Phase(1, encoder_lr=1.0).apply(model)
    batch = Collate(model.encoders, {})([(i, {"x": v}) for i, v in enumerate(given)])
    model.train()(batch.inputs, len(batch)).logits["kind"].square().sum().backward()
    encoder = model.encoders["x"]
    for name, parameter in encoder.named_parameters():
        reached = parameter.grad is not None
        assert reached == parameter.requires_grad == (name in adapter_names(encoder)), name


def wavlm() -> HuggingFaceEncoder:
    """Reads the weights of its projections and never calls them."""
    config = transformers.WavLMConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_kernel=(40, 4),
        conv_stride=(20, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    processor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000)
    return HuggingFaceEncoder(transformers.WavLMModel(config), processor)


def test_dora_leaves_out_layers_with_a_row_of_zeros(values):
    """MobileNetV2 as published has such; the length of the row over itself would be NaN."""
    model = make("tiny-bert")
    for end in ("query", "key"):
        first = next(m for n, m in model.named_modules() if n.endswith(end))
        nn.init.zeros_(first.weight[1])
    before = logits(model, values["text"])
    add_adapters(model, {"x": "dora"}, {"x": "one"})
    torch.testing.assert_close(logits(model, values["text"]), before)
    adapted = {n.split(".base_layer")[0] for n in model.state_dict() if ".base_layer." in n}
    assert sum(name.endswith(("query", "key")) for name in adapted) == 2  # of two blocks each
    assert any(name.endswith("value") for name in adapted)


def test_layers_that_are_read_and_not_called_get_none(values):
    encoder = wavlm()
    fusion = build_fusion("concat", {"x": encoder.width}, 8)
    model = TransferModel({"x": encoder}, fusion, {"kind": Classification(["a", "b"])})
    add_adapters(model, {"all": "lora"}, {"x": values["audio"][0]})
    ends = {name.split(".lora_")[0].rpartition(".")[2] for name in adapter_names(encoder)}
    assert not ends & {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert {"intermediate_dense", "output_dense"} <= ends


def test_chosen_layers_by_name_or_expression():
    model = make("tiny-bert")
    add_adapters(model, {"x": {"target_modules": ["query", "value"], "rank": 2}})
    found = adapter_names(model.encoders["x"])
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in found} == {"query", "value"}
    assert len(found) == 2 * 2 * 2
    merge_adapters(model)
    add_adapters(model, {"x": {"target_modules": r".*layer\.1\..*\.dense"}})
    assert all("layer.1." in name for name in adapter_names(model.encoders["x"]))
    # What lies below the first adapter is stored, as below the first stage that trains.
    Phase(1, encoder_lr=1.0).apply(model)
    assert frozen_depth(model.encoders["x"]) == 2


def test_peft_reads_what_is_saved_and_the_other_way_round(values, tmp_path):
    from peft import PeftModel

    model = make("tiny-bert")
    add_adapters(model, {"all": "dora"})
    disturb(model)
    expected = logits(model, values["text"])
    assert save_adapters(model, tmp_path) == ["x"]
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((tmp_path / "x" / "adapter_config.json").read_text())["use_dora"]
    twin = make("tiny-bert")
    PeftModel.from_pretrained(bare(twin.encoders["x"]), str(tmp_path / "x"))
    torch.testing.assert_close(logits(twin, values["text"]), expected)
    twin = make("tiny-bert")
    load_adapters(twin, tmp_path)
    torch.testing.assert_close(logits(twin, values["text"]), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: add_adapters(m, {"imag": "lora"}), "unknown modality 'imag'"),
        (lambda m: add_adapters(m, {"x": {"target_modules": "quary"}}), "Did you mean 'query'"),
        (lambda m: add_adapters(m, {"x": "lor"}), "unknown adapter 'lor'.*Did you mean 'lora'"),
        (lambda m: load_adapters(m, __import__("pathlib").Path("nowhere")), "holds no adapters"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(make("tiny-bert"))


def test_adapters_of_another_encoder_are_refused(tmp_path):
    model = make("tiny-bert")
    add_adapters(model, {"all": "lora"})
    save_adapters(model, tmp_path)
    with pytest.raises(ValueError, match="has adapters already"):
        load_adapters(model, tmp_path)
    with pytest.raises(ValueError, match="Target modules|another encoder"):
        load_adapters(make("mlp?size=8&widths=[6,4]"), tmp_path)
    with pytest.raises(ValueError, match="another encoder"):
        load_adapters(make("tiny-bert?width=32"), tmp_path)


def test_a_first_value_that_cannot_be_read_is_passed_over(values):
    encoder = make("small-cnn?size=16&widths=[4,6]").encoders["x"]
    given = [None, b"no picture", *values["image"]]
    assert readable(encoder, given) is values["image"][0]
    assert readable(encoder, given[:2]) is None


# -- in a run -------------------------------------------------------------------------------------

TASKS = {"kind": "classification"}
ENCODERS = {"image": "small-cnn?size=16&widths=[4,6]", "text": "tiny-bert?width=16"}


class Cut(Method):
    def __init__(self, at: int = 0) -> None:
        self.at = at

    def config(self):
        return {"class": "cut"}

    def on_weights(self, model, step):
        if step == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def rows(picture):
    return [
        {"image": picture(i, (16, 16)), "text": f"row {i}", "kind": "xy"[i % 2]} for i in range(12)
    ]


def options(**chosen):
    chosen = {"batch_size": 4, "progress": False, "track": [], "checkpoint_steps": 1, **chosen}
    return TrainingOptions(**chosen)


def fit(rows, strategy, output=None, cut=0, resume=False):
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    strategy = Strategy(strategy.phases, [Cut(cut)], strategy.adapters, strategy.merge)
    trainer = Trainer(model, rows, rows, strategy, options(), output)
    trainer.fit(resume)
    return trainer


@pytest.mark.parametrize("merge", [True, False])
def test_a_run_leaves_a_plain_model_and_its_adapters(rows, tmp_path, merge):
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    start = {n: p.detach().clone() for n, p in model.state_dict().items()}
    strategy = build_strategy("lora", epochs=2, encoder_lr=1e-2, rank=2, merge=merge)
    metrics = run(model, {"train": rows, "test": rows}, strategy, options(), tmp_path)
    found = TransferModel.from_pretrained(tmp_path / "model")
    assert found.predict(rows) == model.predict(rows)
    assert bool(adapter_names(found.encoders["text"])) == (not merge)
    assert (set(model.state_dict()) == set(start)) == merge
    trained = metrics["trained_parameters"]
    counts = parameter_counts(model, set())
    assert 0 < trained["text"] < counts["text"]["parameters"]
    assert trained["fusion"] == counts["fusion"]["parameters"]
    assert trained["all"] == sum(n for part, n in trained.items() if part != "all")
    twin = build_model(ENCODERS, TASKS, rows, "concat", 8)
    state = {n: t for n, t in found.state_dict().items() if not n.startswith("encoders.")}
    twin.load_state_dict(state, strict=False)  # fusion and heads
    load_adapters(twin, tmp_path / "adapters")
    batch = Collate(twin.encoders, {})(list(enumerate(rows)))
    with torch.no_grad():
        pair = [m.eval()(batch.inputs, len(rows)).logits["kind"] for m in (twin, found)]
    torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)
    weight = "encoders.text.model.encoder.layer.0.output.dense.weight"
    moved = not torch.equal(found.state_dict().get(weight, start[weight]), start[weight])
    assert moved == merge


@pytest.mark.parametrize(("kind", "cut"), [("lora", 2), ("dora", 5), ("ia3", 7)])
def test_a_run_that_was_cut_goes_on_to_the_same_weights(rows, tmp_path, kind, cut):
    """In the first epoch of a probe before them, and among the steps of the adapters."""
    phases = [Phase(1), Phase(2, encoder_lr=1e-2)]
    strategy = Strategy(phases, adapters={"all": kind})
    whole = fit(rows, strategy)
    with pytest.raises(KeyboardInterrupt):
        fit(rows, strategy, tmp_path, cut)
    resumed = fit(rows, strategy, tmp_path, resume=True)
    assert resumed.losses == whole.losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    if kind == "lora":  # all of it had ended
        again = fit(rows, strategy, tmp_path, resume=True)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), name


def test_one_encoder_adapted_and_the_other_trained_whole(rows):
    strategy = Strategy(
        [Phase(1, encoder_lr={"image": 1e-2, "text": 1e-2})],
        adapters={"all": "lora", "image": None},
    )
    trainer = fit(rows, strategy)
    image = trainer.model.encoders["image"]
    assert {f"encoders.image.{n}" for n, _ in image.named_parameters()} <= trainer.trained
    text = {n for n in trainer.trained if n.startswith("encoders.text.")}
    assert text
    assert all(".lora_" in name for name in text)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy([Phase(1)], adapters={"all": "lora"}), "encoder_lr, which is 0 in every phase"),
        (
            Strategy([Phase(1, encoder_lr=1.0, parts="bias")], adapters={"text": "lora"}),
            "parts 'bias' of encoder 'text' cannot train beside its adapter",
        ),
        (
            Strategy([Phase(1, encoder_lr=1.0)], adapters={"txt": "lora"}),
            "unknown modality 'txt'.*Did you mean 'text'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(rows, strategy, message):
    model = build_model(ENCODERS, TASKS, rows, "concat", 8)
    with pytest.raises(ValueError, match=message):
        Trainer(model, rows, None, strategy, options())
    assert not any(adapter_names(encoder) for encoder in model.encoders.values())
