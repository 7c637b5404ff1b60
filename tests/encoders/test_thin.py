"""Thin architectures: the layers of the whole one, with fewer channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.thin import thinned
from mmtransfer.encoders.torchvision import architecture


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]


@pytest.mark.parametrize(("name", "size"), [("vgg11", 32), ("alexnet", 64), ("resnet18", 32)])
def test_every_layer_has_so_many_times_fewer_channels(name, size, tmp_path):
    with torch.device("meta"):
        whole, thin = architecture(name, size), architecture(name, size)
    pairs = list(zip(layers(whole), layers(thinned(thin, 8)), strict=True))
    assert len(pairs) > 7
    for old, new in pairs:
        assert type(old) is type(new)
        if isinstance(old, nn.Conv2d):
            assert new.out_channels * 8 == old.out_channels
            kept = ("kernel_size", "stride", "padding")
            assert [getattr(new, k) for k in kept] == [getattr(old, k) for k in kept]
        elif isinstance(old, nn.Linear):
            assert (new.in_features, new.out_features) == (
                old.in_features // 8,
                old.out_features // 8,
            )
        assert not any(p.is_meta for p in new.parameters())


def test_a_thin_encoder_keeps_the_scale_of_what_passes_and_is_saved(tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("torchvision:vgg16?size=32&thin=8&layer=penultimate")
    pixels = torch.randn(4, 3, 32, 32)
    deviation = encoder(pixels=pixels).tokens.std()
    assert 0.05 < deviation < 5  # 13 convolutions of PyTorch's default would leave nothing
    encoder.save(tmp_path)
    again = Encoder.load(tmp_path)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(pixels=pixels).tokens, encoder.eval()(pixels=pixels).tokens)


def test_what_cannot_be_thin_says_so():
    with pytest.raises(ValueError, match="DenseNet cannot be made thin. Valid: VGG"):
        build_encoder("torchvision:densenet121?size=32&thin=4")
    with pytest.raises(ValueError, match="no weights for 'resnet18' with 4 times fewer"):
        build_encoder("torchvision:resnet18:DEFAULT?thin=4")
    with pytest.raises(ValueError, match="thin"):
        build_encoder("torchvision:resnet18?thin=0")
