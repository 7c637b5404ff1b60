"""New layers on top of a source network: the contract, and that they begin where it ends."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.encoders.base import build_encoder
from mmtransfer.features import Features
from mmtransfer.testing import check_encoder

SPECS = {
    "extended:small-cnn?size=16&widths=[4,6]&added=2": ("image", "conv"),
    "extended:tiny-vit?layers=1&width=16": ("image", "transformer"),
    "extended:mlp?size=8&widths=[6]&added=2": ("image", "mlp"),
    "extended:tiny-bert?layers=1&width=16&added=2": ("text", "transformer"),
    "extended:extended:small-cnn?size=16&widths=[4,6]": ("image", "conv"),
}


@pytest.fixture
def values(picture):
    return {"image": [picture(k) for k in range(3)], "text": ["a", "two words", "and three"]}


@pytest.mark.parametrize("spec", SPECS)
def test_the_contract_holds_and_the_kind_suits_the_source(spec, values):
    torch.manual_seed(0)
    encoder = build_encoder(spec)
    modality, kind = SPECS[spec]
    assert (encoder.modality, encoder.kind) == (modality, kind)
    check_encoder(encoder, values[modality])


def test_new_layers_are_stages_above_those_of_the_source(values):
    encoder = build_encoder("extended:small-cnn?size=16&widths=[4,6]&added=2")
    source = encoder.inner
    assert encoder.stages == [*source.stages, *encoder.layers]
    assert list(encoder.cuts) == [1, 2, 3]
    inputs = encoder.collate(values["image"])
    with torch.no_grad():
        entering = encoder.eval().below(2, **inputs)
        torch.testing.assert_close(entering.tokens, source(**inputs).tokens)
        for layer in encoder.layers:  # without a say of the new layers the source is left
            layer.conv.weight.zero_()
            layer.conv.bias.zero_()
        torch.testing.assert_close(encoder(**inputs).tokens, source(**inputs).tokens)


def test_a_convolution_reads_neighbours_on_the_map():
    encoder = build_encoder("extended:small-cnn?size=16&widths=[4,6]")
    tokens = torch.randn(1, 16, 6)
    torch.nn.init.ones_(encoder.layers[0].conv.weight)
    tokens.requires_grad_()
    reached = []
    for cell in (0, 5):
        encoder.layers[0].norm = torch.nn.Identity()
        found = encoder.layers[0](Features.of(tokens.abs())).tokens[0, cell].sum()
        grad = torch.autograd.grad(found, tokens)[0]
        reached.append(grad[0].abs().sum(1).nonzero().flatten().tolist())
    assert reached == [[0, 1, 4, 5], [0, 1, 2, 4, 5, 6, 8, 9, 10]]


def test_padding_is_never_heard(values):
    encoder = build_encoder("extended:tiny-bert?layers=1&width=16").eval()
    features = encoder.inner(**encoder.collate(values["text"]))
    depth = len(encoder.inner.stages)
    noise = features.tokens.masked_fill(~features.mask.unsqueeze(-1), float("nan"))
    found = encoder.above(depth, Features(noise, features.mask))
    torch.testing.assert_close(found.pooled(), encoder.above(depth, features).pooled())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("extended:mlp?size=8&kind=cnov", "Did you mean 'conv'"),
        ("extended:tiny-vit?kind=conv", "needs a square map, which HuggingFaceEncoder does not"),
        ("extended:mlp?added=0", "added"),
        ("extended:tiny-vitt", "Did you mean 'tiny-vit'"),
        ("extended:tiny-vit?layer=2", "Did you mean 'layers'"),
        ("extended", "needs a source: extended:<specification of another encoder>"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(spec)
