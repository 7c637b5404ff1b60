"""Co-Tuning: the relationship counted by hand, its loss, and where the source head comes from."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from mmtransfer.data.products import product_rows
from mmtransfer.encoders.base import build_encoder
from mmtransfer.methods.co_tuning import CoTuning
from mmtransfer.methods.source_head import head_input, load_source_head
from mmtransfer.tasks.classification import IGNORE

from .conftest import numbers
from .looking import batch_of, looking, losses_of, small_model


@pytest.fixture
def head(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(4, 6, generator=generator), "bias": torch.ones(4)}
    save_file(tensors, tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def test_the_relationship_and_the_loss_are_those_counted_by_hand(head):
    model, method = small_model(), CoTuning(str(head), weight=2.0, modality="a")
    rows = numbers()
    method.build(model)
    method.begin(model, looking(model, rows))
    batch = batch_of(model, list(enumerate(rows)))
    model.provide(("features",))
    outputs = model.train()(batch.inputs, len(batch))
    loss = losses_of(model, batch, outputs)
    found = method.on_loss(loss, model, batch, outputs)
    features = outputs.features["a"]
    answers = F.linear(features.pooled(), *(method.module.weight, method.module.bias))
    expected = loss
    for task, classes in (("kind", 3), ("good", 2)):
        targets = batch.targets[task]
        known = features.present & (targets != IGNORE)
        means = torch.stack(
            [answers.softmax(1)[known & (targets == c)].mean(0) for c in range(classes)]
        ).detach()
        torch.testing.assert_close(method.state_dict()["meaning"][task], means)
        rows_loss = F.cross_entropy(answers[known], means[targets[known]], reduction="sum")
        expected = expected + 2.0 * rows_loss / (targets != IGNORE).sum()
    torch.testing.assert_close(found, expected)
    model.encoders["a"].requires_grad_(False)
    assert method.on_loss(loss, model, batch, outputs) == loss


def vit_directory(tmp_path, labels=7):
    """What `ViTForImageClassification` of transformers saves."""
    from transformers import ViTForImageClassification

    tiny = build_encoder("tiny-vit")
    config = tiny.model.config
    config.num_labels = labels
    torch.manual_seed(0)
    whole = ViTForImageClassification(config).eval()
    whole.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    return whole


def test_the_head_of_a_transformers_classifier_gives_its_logits(tmp_path):
    whole = vit_directory(tmp_path)
    encoder = build_encoder(f"hf:{tmp_path}").eval()
    module = load_source_head(encoder, None)
    rows = product_rows("target/train", rows=3)
    inputs = encoder.collate([row["image"] for row in rows])
    with torch.no_grad():
        found = module(head_input(encoder, encoder(**inputs)))
        expected = whole(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_head_that_is_not_there_is_an_error(tmp_path, head):
    model = small_model()
    with pytest.raises(ValueError, match=r"which encoder has the source head\? .*a, b"):
        CoTuning().build(model)
    with pytest.raises(ValueError, match=r"unknown modality 'c'"):
        CoTuning(modality="c").build(model)
    with pytest.raises(ValueError, match="DenseEncoder has no source head at hand: give one"):
        CoTuning(modality="a").build(model)
    with pytest.raises(FileNotFoundError, match="no such file"):
        CoTuning(str(tmp_path / "none"), modality="a").build(model)
    with pytest.raises(ValueError, match="no classifier over 64 features"):
        load_source_head(build_encoder("tiny-vit"), str(head))
    with pytest.raises(ValueError, match="DenseEncoder|HuggingFaceEncoder has no source head"):
        load_source_head(build_encoder("tiny-vit"), None)  # it comes from no directory
    several = {"fc.weight": torch.zeros(2, 6), "head.weight": torch.zeros(2, 6)}
    save_file(several, tmp_path / "several.safetensors")
    with pytest.raises(ValueError, match=r"several classifiers, fc.weight, head.weight"):
        load_source_head(model.encoders["a"], str(tmp_path / "several.safetensors"))


def test_a_part_between_encoder_and_head_is_an_error(tmp_path):
    """The norm of ConvNeXt is no part of the encoder, as it feeds no token."""
    from transformers import ConvNextConfig, ConvNextForImageClassification, ViTImageProcessor

    config = ConvNextConfig(hidden_sizes=[4, 4, 4, 8], depths=[1, 1, 1, 1], image_size=32)
    ConvNextForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "convnext"
    with pytest.raises(ValueError, match="has no source head at hand"):
        load_source_head(build_encoder(f"hf:{tmp_path}"), None)
