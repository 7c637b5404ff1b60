"""Stages and cuts of the transformers families: declared, complete, in order, and exact."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmtransfer.encoders.base import build_encoder
from mmtransfer.encoders.huggingface import HuggingFaceEncoder
from mmtransfer.encoders.huggingface_attention import NAME
from mmtransfer.encoders.huggingface_stages import LAYOUTS
from mmtransfer.features import Features
from mmtransfer.testing import check_cuts

WITHOUT_CUTS = ("wavlm-layer", "wavlm-group")
WITH_DROP_OUT = ("bert", "roberta", "distilbert", "wav2vec2-layer", "wav2vec2-group")


def test_stages_cover_every_parameter_from_input_to_output(kind: Any, values: list[Any]) -> None:
    encoder = build_encoder(kind.spec).eval()
    assert encoder.model.config.model_type in LAYOUTS
    stages = encoder.stages
    assert len(stages) == kind.family.stages
    covered = [id(p) for stage in stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))

    # Each stage starts where the network gets to it: the order is that of the forward pass.
    order: list[int] = []
    for number, stage in enumerate(stages):
        for module in stage.modules():
            module.register_forward_hook(lambda *_, n=number: order.append(n))
    encoder(**encoder.collate(values))
    assert list(dict.fromkeys(order)) == list(range(len(stages)))
    assert order == sorted(order)


def test_above_of_below_is_forward(kind: Any, values: list[Any]) -> None:
    encoder = build_encoder(kind.spec).eval()
    if kind.name in WITHOUT_CUTS:
        assert list(encoder.cuts) == []
        return
    stem = 2 if kind.name.startswith(("wav2vec2", "hubert")) else 1
    assert list(encoder.cuts) == list(range(stem, kind.family.stages))
    check_cuts(encoder, values, tolerance=1e-5)
    inputs = encoder.collate(values)
    for pool in ("none", "mean", "first"):
        encoder.pool = pool
        with torch.no_grad():
            whole = encoder(**inputs)
            for depth in encoder.cuts:
                again = encoder.above(depth, encoder.below(depth, **inputs))
                real = whole.mask.unsqueeze(-1)
                assert torch.equal(again.mask, whole.mask)
                torch.testing.assert_close(again.tokens * real, whole.tokens * real)


def test_nothing_above_a_cut_is_computed(kind: Any, values: list[Any]) -> None:
    encoder = build_encoder(kind.spec).eval()
    ran: list[int] = []
    for number, stage in enumerate(encoder.stages):
        for module in stage.modules():
            module.register_forward_hook(lambda *_, n=number: ran.append(n))
    inputs = encoder.collate(values)
    for depth in encoder.cuts:
        ran.clear()
        activations = encoder.below(depth, **inputs)
        assert set(ran) == set(range(depth))
        ran.clear()
        encoder.above(depth, activations)
        assert set(ran) == set(range(depth, len(encoder.stages)))


def test_drop_out_above_a_cut_is_that_of_forward(kind: Any, values: list[Any]) -> None:
    encoder = build_encoder(kind.spec)
    inputs = encoder.collate(values)
    for depth in encoder.cuts:
        encoder.train()
        for stage in encoder.stages[:depth]:
            stage.eval()  # frozen
        for module in encoder.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        activations = encoder.below(depth, **inputs)
        torch.manual_seed(0)
        found = encoder.above(depth, activations)
        torch.manual_seed(0)
        whole = encoder(**inputs)
        real = whole.mask.unsqueeze(-1)
        torch.testing.assert_close(found.tokens * real, whole.tokens * real)
        if kind.name in WITH_DROP_OUT and depth < kind.family.stages - 1:
            calm = encoder.eval()(**inputs).tokens
            assert (calm - whole.tokens)[whole.mask].abs().max() > 1e-3


def test_the_drop_out_of_whisper_is_off_behind_a_frozen_stem(
    made: Callable[[str], Any], samples: Callable[[Any], Any], tmp_path: Path
) -> None:
    kind = made("whisper")
    shutil.copytree(kind.directory, tmp_path / "dropping")
    config = tmp_path / "dropping" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dropout": 0.5}))
    encoder = build_encoder(f"hf:{config.parent}").eval()
    check_cuts(encoder, samples(kind), tolerance=1e-5)
    inputs = encoder.train().collate(samples(kind))
    for block in encoder.stages[1:]:
        block.eval()
    assert not torch.equal(encoder(**inputs).tokens, encoder(**inputs).tokens)  # it trains: on


@pytest.mark.parametrize("name", ["wav2vec2-layer", "wav2vec2-group", "hubert-group", "whisper"])
def test_clips_of_several_windows_are_cut_too(
    name: str, made: Callable[[str], Any], clip: Callable[..., bytes]
) -> None:
    kind = made(name)
    clips = [clip(k, s, kind.family.rate) for k, s in enumerate((1.3, 0.2, 0.6))]
    check_cuts(build_encoder(f"{kind.spec}?window_seconds=0.5").eval(), clips, tolerance=1e-5)


@pytest.mark.parametrize("name", ["vit", "swin", "mobilenet", "bert"])
def test_a_row_without_activations_stays_absent(
    name: str, made: Callable[[str], Any], samples: Callable[[Any], Any]
) -> None:
    kind = made(name)
    encoder = build_encoder(kind.spec).eval()
    depth = encoder.cuts[0]
    with torch.no_grad():
        stored = encoder.below(depth, **encoder.collate(samples(kind)))
        mask = stored.mask & torch.tensor([[True], [False], [True]])
        found = encoder.above(depth, Features(stored.tokens, mask))
        whole = encoder.above(depth, stored)
    assert found.present.tolist() == [True, False, True]
    torch.testing.assert_close(found.pooled()[[0, 2]], whole.pooled()[[0, 2]])


def test_a_depth_that_is_no_cut_is_named(made: Callable[[str], Any]) -> None:
    encoder = build_encoder(made("vit").spec)
    with pytest.raises(ValueError, match=r"ViTModel has no cut at depth 5; its cuts: \[1, 2, 3, 4"):
        encoder.above(5, Features.of(torch.zeros(1, 16)))


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_pictures_that_are_not_square_cannot_be_stored(
    name: str, made: Callable[[str], Any]
) -> None:
    encoder = build_encoder(made(name).spec).eval()
    pixels = torch.zeros(1, 3, 32, 64)
    assert encoder(pixel_values=pixels).mask.all()
    with pytest.raises(ValueError, match="square"):
        encoder.below(1, pixel_values=pixels)


@pytest.mark.parametrize(("name", "divided"), [("vit", True), ("resnet", False), ("swin", False)])
def test_processors_of_other_pictures_leave_the_cuts_that_need_no_squares(
    name: str, divided: bool, made: Callable[[str], Any], samples: Callable[[Any], Any]
) -> None:
    kind = made(name)
    model = build_encoder(kind.spec).model
    processor = transformers.ViTImageProcessor(size={"height": 24, "width": 32})
    if name == "vit":
        config = transformers.ViTConfig(**model.config.to_dict() | {"image_size": (24, 32)})
        model = transformers.ViTModel(config)
    encoder = HuggingFaceEncoder(model, processor).eval()
    assert len(encoder.cuts) == (4 if divided else 0)
    check_cuts(encoder, samples(kind))


def test_attention_is_sdpa_wherever_transformers_has_it(kind: Any, tmp_path: Path) -> None:
    encoder = build_encoder(kind.spec)
    encoder.save(tmp_path)
    for one in (encoder, type(encoder).load(tmp_path)):
        used = one.model.config._attn_implementation
        assert (used == NAME) == one.model._supports_sdpa
        assert one.model._supports_sdpa or kind.name.startswith(
            ("wavlm", "resnet", "mobilenet", "convnext")
        )


def test_real_mobilenet_and_minilm_have_a_cut_at_every_block(
    shared: Path, minilm: Path, picture: Callable[..., bytes]
) -> None:
    mobilenet = build_encoder(f"hf:{shared / 'models' / 'mobilenet-v2-imagenet'}?size=64").eval()
    assert list(mobilenet.cuts) == list(range(1, 18))
    check_cuts(mobilenet, [picture(0), picture(1)], tolerance=1e-5)
    texts = build_encoder(f"hf:{minilm}?pool=mean").eval()
    assert list(texts.cuts) == list(range(1, 7))
    check_cuts(texts, ["milk", "", "a longer text about ripe pears"], tolerance=1e-5)
