"""Every registered fusion keeps the contract; gates, weights and probes equal hand computation."""

import inspect
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.benchmark.fusion import members_of
from mmtransfer.features import Features
from mmtransfer.fusion.base import Fusion, PooledFusion, Standardise, build_fusion
from mmtransfer.registry import fusions
from mmtransfer.testing import check_fusion, random_features

WIDTHS = {"text": 5, "image": 3, "audio": 4}
NAMES = fusions.names()
POOLED = [
    name
    for name in NAMES
    if inspect.isclass(fusions.get(name)) and issubclass(fusions.get(name), PooledFusion)
]


def build(name: str, widths: dict[str, int] = WIDTHS, width: int = 8, **options: Any) -> Fusion:
    torch.manual_seed(0)
    return build_fusion(name, widths, width, **options).eval()


def features(rows: int = 7, missing: bool = True, seed: int = 1) -> dict[str, Features]:
    return random_features(WIDTHS, rows, torch.Generator().manual_seed(seed), missing)


def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


#: every fusion, and those that its options make another one
MEMBERS = members_of() | {
    **{f"mixture of {k}": {"name": "mixture_of_experts", "top": k} for k in (1, 2)},
    **{f"{name}, masked": {"name": name, "missing": "mask"} for name in ("concat", "gated")},
}


@pytest.mark.parametrize("member", MEMBERS)
def test_every_fusion_keeps_the_contract(member: str) -> None:
    check_fusion(lambda widths, width: build_fusion(MEMBERS[member], widths, width))


@pytest.mark.parametrize("name", NAMES)
def test_every_fusion_hears_each_modality(name: str) -> None:
    fusion, given = build(name), features(missing=False)
    before = fusion(given).vector
    for modality in WIDTHS:
        louder = Features(given[modality].tokens + 1, given[modality].mask)
        after = fusion({**given, modality: louder}).vector
        assert (after - before).abs().max() > 1e-5, f"{modality} is not heard"


@pytest.mark.parametrize("name", NAMES)
def test_every_fusion_tells_an_absent_modality_from_a_present_one(name: str) -> None:
    fusion, given = build(name), features(missing=False)
    before = fusion(given).vector
    for modality in WIDTHS:
        mask = torch.zeros_like(given[modality].mask)
        after = fusion({**given, modality: Features(given[modality].tokens, mask)}).vector
        assert (after - before).abs().max() > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_order_in_which_users_list_modalities_does_not_matter(name: str) -> None:
    turned = dict(reversed(WIDTHS.items()))
    first, second = build(name), build(name, turned)
    assert first.modalities == second.modalities == sorted(WIDTHS)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert torch.equal(first(features()).vector, second(features()).vector)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_fusion_gives_the_same_bits(name: str) -> None:
    fusion = build(name)
    twin = Fusion.from_config(json.loads(json.dumps(fusion.config()))).eval()
    twin.load_state_dict(fusion.state_dict())
    ours, theirs = fusion(features()), twin(features())
    assert torch.equal(ours.vector, theirs.vector)
    if ours.weights is not None:
        assert torch.equal(ours.weights, theirs.weights)


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_in_the_widths_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="at least one modality, found none"):
        build_fusion(name, {}, 4)
    with pytest.raises(ValueError, match="width of a fusion must be at least 1, found 0"):
        build_fusion(name, WIDTHS, 0)


def test_an_unknown_fusion_and_option_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown fusion 'gatted'.*mean 'gated'"):
        build_fusion("gatted", WIDTHS, 4)
    with pytest.raises(ValueError, match="'gated' has no option 'dropuot'.*mean 'dropout'"):
        build_fusion({"name": "gated", "dropuot": 0.1}, WIDTHS, 4)
    ready = build("concat")
    assert build_fusion(ready, {}, 0) is ready


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2])
def test_a_dropout_that_is_no_share_is_refused(name: str, dropout: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout must lie in \[0, 1\), found {dropout}"):
        build_fusion(name, WIDTHS, 4, dropout=dropout)


@pytest.mark.parametrize("name", POOLED)
def test_dropout_acts_in_training_only(name: str) -> None:
    fusion, plain = build(name, dropout=0.5), build(name)
    given = features()
    assert torch.equal(fusion(given).vector, plain(given).vector)
    fusion.train()
    assert not torch.equal(fusion(given).vector, fusion(given).vector)


@pytest.mark.parametrize("name", POOLED)
def test_standardising_equals_standardised_features(name: str) -> None:
    fusion, plain = build(name), build(name)
    given = features(rows=40)
    statistics, standard = {}, {}
    for modality, one in given.items():
        real = one.pooled()[one.present]
        mean, deviation = real.mean(0), real.std(0)
        statistics[modality] = (mean, deviation)
        standard[modality] = Features.of((one.pooled() - mean) / deviation)
        standard[modality].mask[~one.present] = False
    fusion.standardise(statistics)
    torch.testing.assert_close(fusion(given).vector, plain(standard).vector)
    # It is part of what is saved, and nothing that an optimizer could move.
    assert not any("scales" in key for key, _ in fusion.named_parameters())
    twin = build(name)
    twin.load_state_dict(fusion.state_dict())
    assert torch.equal(twin(given).vector, fusion(given).vector)


def test_a_feature_that_never_varies_is_not_blown_up() -> None:
    scale = Standardise(3)
    x = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 2.0]])
    assert torch.equal(scale(x), x)  # the identity before it is fitted
    scale.fit(x.mean(0), x.std(0))
    s = math.sqrt(2)
    torch.testing.assert_close(scale(x), torch.tensor([[-1 / s, 0, 0], [1 / s, 0, 0]]))


def test_concat_is_the_layer_written_out_by_hand() -> None:
    fusion, given = build("concat"), features()
    statistics = {name: (torch.randn(d), torch.rand(d) + 0.5) for name, d in WIDTHS.items()}
    fusion.standardise(statistics)
    parameters = dict(fusion.named_parameters())
    for name in WIDTHS:
        torch.nn.init.normal_(parameters[f"absent.{name}"])
    for row in range(7):
        parts = []
        for name in sorted(WIDTHS):
            one = given[name]
            if one.mask[row].any():
                mean, deviation = statistics[name]
                x = (one.tokens[row][one.mask[row]].mean(0) - mean) / deviation
                parts.append(linear(fusion.projections[name], x))  # type: ignore[index]
            else:
                parts.append(parameters[f"absent.{name}"])
        expected = F.gelu(linear(fusion.join, F.gelu(torch.cat(parts))))  # type: ignore[arg-type]
        torch.testing.assert_close(fusion(given).vector[row], expected)


def test_gated_for_two_modalities_is_the_z_and_1_minus_z_of_the_paper() -> None:
    widths = {"image": 3, "text": 5}
    fusion = build("gated", widths)
    given = {name: one for name, one in features(missing=False).items() if name in widths}
    h1, h2 = (
        torch.tanh(linear(fusion.projections[name], given[name].pooled()))  # type: ignore[index]
        for name in ("image", "text")
    )
    # Of the two rows of gate logits only the difference counts: one gate z = sigmoid(W [h1, h2]).
    weight, bias = fusion.gate.weight, fusion.gate.bias
    weight, bias = weight[:8] - weight[8:], bias[:8] - bias[8:]
    z = torch.sigmoid(torch.cat([h1, h2], 1) @ weight.T + bias)
    fused = fusion(given)
    torch.testing.assert_close(fused.vector, z * h1 + (1 - z) * h2)
    torch.testing.assert_close(fused.weights, torch.stack([z.mean(1), 1 - z.mean(1)], 1))


def test_gated_with_one_modality_present_is_that_modality_alone() -> None:
    fusion, given = build("gated"), features(missing=False)
    for position, name in enumerate(sorted(WIDTHS)):
        alone = {
            n: one if n == name else Features(one.tokens, torch.zeros_like(one.mask))
            for n, one in given.items()
        }
        fused = fusion(alone)
        h = torch.tanh(linear(fusion.projections[name], given[name].pooled()))  # type: ignore[index]
        torch.testing.assert_close(fused.vector, h)
        assert torch.equal(fused.weights, F.one_hot(torch.tensor([position] * 7), 3).float())


def test_gated_weights_are_per_row_mean_gates_of_those_present() -> None:
    fusion, given = build("gated"), features()
    weights = fusion(given).weights
    present = torch.stack([given[name].present for name in sorted(WIDTHS)], 1)
    assert torch.equal(weights > 0, present)
    torch.testing.assert_close(weights.sum(1), torch.ones(7))


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(build(n), "absent")])
def test_the_vector_of_an_absent_modality_learns_from_rows_that_lack_it(name: str) -> None:
    fusion, given = build(name), features(missing=False)
    given["text"].mask[2] = False
    (fusion(given).vector * torch.randn(7, 8)).sum().backward()
    gradient = dict(fusion.named_parameters())["absent.text"].grad
    assert gradient.abs().max() > 0
    assert dict(fusion.named_parameters())["absent.image"].grad.abs().max() == 0
