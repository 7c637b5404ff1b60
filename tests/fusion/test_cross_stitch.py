"""Cross-stitch: streams and stitches by hand, and heads that take their own streams."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmtransfer.encoders.base import build_encoder
from mmtransfer.features import Features
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.classification import Classification


def build(**options):
    torch.manual_seed(0)
    return build_fusion("cross_stitch", {"x": 3}, 4, **options).eval()


def test_two_layers_by_hand():
    fusion = build(stay=0.75)
    with torch.no_grad():
        fusion.stitches[1].copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    x = torch.randn(5, 3)
    a = b = fusion.projections["x"](x)
    for number, s in enumerate(([[0.75, 0.25], [0.25, 0.75]], [[1.0, -2.0], [0.5, 3.0]])):
        one, two = (F.gelu(layer(v)) for layer, v in zip(fusion.dense[number], (a, b), strict=True))
        a, b = s[0][0] * one + s[0][1] * two, s[1][0] * one + s[1][1] * two
    found = fusion({"x": Features.of(x)})
    torch.testing.assert_close(found.parts, torch.stack([a, b], 1))
    torch.testing.assert_close(found.vector, (a + b) / 2)


@pytest.mark.parametrize("streams", [2, 3, 5])
def test_at_first_a_stream_keeps_most_of_itself(streams):
    for stitch in build(streams=streams).stitches:
        torch.testing.assert_close(stitch.sum(1), torch.ones(streams))
        torch.testing.assert_close(stitch.diagonal(), torch.full((streams,), 0.9))


def test_without_stitches_tasks_have_nothing_in_common_but_the_projection():
    fusion = build(stay=1.0)
    heads = [fusion.head(lambda width: nn.Linear(width, 2)) for _ in range(2)]
    found = fusion({"x": Features.of(torch.randn(5, 3))})
    fusion.decide(heads[0], found).square().sum().backward()
    for layers in fusion.dense:
        assert layers[0].weight.grad.abs().max() > 0
        assert not layers[1].weight.grad.any()


def test_each_task_of_a_model_reads_its_own_stream(tmp_path):
    encoder = build_encoder("mlp?shape=[3]&widths=[3]")
    tasks = {"one": Classification(["a", "b"]), "two": Classification(["c", "d"])}
    model = TransferModel({"x": encoder}, build(), tasks).eval()
    rows = [{"x": [1.0, 2.0, 3.0]}]
    before = model.predict(rows)[0]
    model.save_pretrained(tmp_path)
    again = TransferModel.from_pretrained(tmp_path)
    assert again.predict(rows)[0] == before
    assert [again.heads[name].stream for name in tasks] == [0, 1]
    with torch.no_grad():  # what enters the second stream alone
        model.fusion.stitches[1][1] += 1
    after = model.predict(rows)[0]
    assert after["one"] == before["one"]
    assert after["two"] != before["two"]


def test_more_tasks_than_streams_are_refused():
    encoder = build_encoder("mlp?shape=[3]&widths=[3]")
    tasks = {name: Classification(["a", "b"]) for name in ("one", "two", "three")}
    with pytest.raises(ValueError, match="has 2 streams and the model more tasks: set streams"):
        TransferModel({"x": encoder}, build(), tasks)
    for options in ({"streams": 1}, {"layers": 0}, {"stay": 1.5}):
        with pytest.raises(ValueError, match="cross_stitch needs|stay must lie"):
            build(**options)
