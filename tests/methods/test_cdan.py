"""The product of vectors and classes, its random map, and weights by entropy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from mmtransfer.features import Outputs
from mmtransfer.methods.cdan import CDAN, Multilinear, certainty
from mmtransfer.tasks.classification import Classification

from .test_alignment import target
from .test_dann import sides


class Model:
    tasks: ClassVar = {"kind": Classification("xy"), "good": Classification([0, 1, 2])}

    fusion = SimpleNamespace(width=4)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_product_holds_each_number_times_each_probability():
    vectors, probabilities = drawn(5, 3), drawn(5, 2).softmax(1)
    found = Multilinear(3, 2, 6)(vectors, probabilities)
    expected = torch.einsum("bc,bd->bcd", probabilities, vectors).reshape(5, 6)
    torch.testing.assert_close(found, expected)


def test_the_random_map_keeps_inner_products_on_average():
    """What the paper shows of it (theorem 1): that of two maps is that of the products."""
    vectors, probabilities = drawn(2, 30), drawn(2, 8).softmax(1)
    exact = Multilinear(30, 8, 240)(vectors, probabilities)
    many = []
    for seed in range(200):
        torch.manual_seed(seed)
        mapped = Multilinear(30, 8, 200)(vectors, probabilities)
        many.append(mapped @ mapped.T)
    assert mapped.shape == (2, 200)
    torch.testing.assert_close(torch.stack(many).mean(0), exact @ exact.T, atol=0.4, rtol=0.05)


def test_rows_of_which_the_model_is_sure_count_twice_as_much():
    found = certainty(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([2, 1 + 1 / 4, 1 + 1 / 2])


@pytest.mark.parametrize("entropy", [True, False])
def test_the_loss_of_equal_opinions_is_log_2_times_the_weights(entropy):
    source, unlabelled, batch = sides()
    torch.manual_seed(0)

    method = CDAN(entropy=entropy, task="good")
    method.build(Model)
    assert method.module[1][0].in_features == 12
    for parameter in method.module.parameters():
        torch.nn.init.zeros_(parameter)
    logits = {"good": torch.zeros(3, 3)}
    there = {"good": torch.tensor([[1e4, 0.0, 0.0]] * 2)}
    outputs = Outputs(logits, fused=source, unlabelled=Outputs(there, fused=unlabelled))
    found = method.on_loss(torch.tensor(0.0), Model, batch, outputs).item()
    weights = (1 + math.exp(-math.log(3)), 2) if entropy else (1, 1)
    assert found == pytest.approx(math.log(2) * sum(weights) / 2)


def test_an_unknown_task_names_the_nearest(fit):
    with pytest.raises(ValueError, match="unknown task 'kid' of cdan.*mean 'kind'"):
        fit({"name": "cdan", "task": "kid"}, further=target())


def test_the_random_map_is_part_of_checkpoints(fit, tmp_path):
    spec = {"name": "cdan", "largest": 5}
    trainer, _ = fit(spec, further=target(), output=tmp_path)
    module = trainer.strategy.methods[0].module
    again = fit(spec, further=target(), output=tmp_path, resume=True)[0].strategy.methods[0].module
    assert {"0.vectors", "0.classes"} < set(module.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
