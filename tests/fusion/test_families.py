"""Each family of fusions equals its paper's formula, written out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import Fusion, build_fusion
from mmtransfer.fusion.tokens import Block
from mmtransfer.testing import random_features

WIDTHS = {"audio": 4, "image": 3, "text": 5}  # in sorted order
ROWS, WIDTH = 7, 8


def build(name: str, widths: dict[str, int] = WIDTHS, **options: Any) -> Any:
    torch.manual_seed(0)
    fusion: Fusion = build_fusion(name, widths, WIDTH, **options).eval()
    with torch.no_grad():
        for parameter in getattr(fusion, "absent", nn.ParameterDict()).values():
            nn.init.normal_(parameter)
    return fusion


def features(widths: dict[str, int] = WIDTHS, missing: bool = True) -> dict[str, Features]:
    return random_features(widths, ROWS, torch.Generator().manual_seed(1), missing)


def presence(given: dict[str, Features]) -> Tensor:
    return torch.stack([given[name].present for name in sorted(given)], 1)


def projected(fusion: Any, given: dict[str, Features]) -> list[Tensor]:
    """By hand: the projected pooled vectors, (B, D) each, zeros where absent and masked."""
    vectors = []
    for name in sorted(given):
        x = fusion.projections[name](given[name].pooled())
        absent = fusion.absent[name] if fusion.missing == "learned" else torch.zeros(())
        vectors.append(torch.where(given[name].present[:, None], x, absent))
    return vectors


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# -- on pooled vectors --------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["learned", "mask"])
def test_sum_and_max(missing: str) -> None:
    given = features()
    for name in ("sum", "max"):
        fusion = build(name, missing=missing)
        counted = presence(given) | (missing == "learned")
        h = torch.stack([F.gelu(x) for x in projected(fusion, given)])  # (M, B, W)
        rows = []
        for b in range(ROWS):
            kept = h[counted[b], b]
            rows.append(kept.sum(0) if name == "sum" else kept.max(0).values)
        close(fusion(given).vector, F.gelu(fusion.join(torch.stack(rows))))


def test_weighted_is_one_softmax_for_all_rows_over_what_is_present() -> None:
    fusion, given = build("weighted"), features()
    nn.init.normal_(fusion.scores)
    fused, raw = fusion(given), fusion.scores.exp() * presence(given)
    close(fused.weights, raw / raw.sum(1, keepdim=True))
    h = torch.stack([F.gelu(x) for x in projected(fusion, given)], 1)
    close(fused.vector, F.gelu(fusion.join((fused.weights[..., None] * h).sum(1))))


def test_attention_scores_each_modality_by_its_own_vector() -> None:
    fusion, given = build("attention"), features()
    fused = fusion(given)
    h = [F.gelu(x) for x in projected(fusion, given)]
    raw = torch.cat([torch.exp(fusion.score(torch.tanh(fusion.hidden(x)))) for x in h], 1)
    raw = raw * presence(given)
    weights = raw / raw.sum(1, keepdim=True)
    close(fused.weights, weights)
    mixed = sum(w[:, None] * x for w, x in zip(weights.unbind(1), h, strict=True))
    close(fused.vector, F.gelu(fusion.join(mixed)))


def test_film_scales_and_shifts_each_modality_by_the_others() -> None:
    fusion, given = build("film"), features()
    h = dict(zip(WIDTHS, (F.gelu(x) for x in projected(fusion, given)), strict=True))
    modulated = []
    for name, x in h.items():
        others = torch.cat([value for other, value in h.items() if other != name], 1)
        both = fusion.conditions[name](others)
        modulated.append(F.gelu((1 + both[:, :WIDTH]) * x + both[:, WIDTH:]))
    close(fusion(given).vector, F.gelu(fusion.join(torch.cat(modulated, 1))))


def test_bilinear_with_one_factor_is_mlb() -> None:
    fusion, given = build("bilinear", missing="mask"), features()
    present = presence(given)
    product = torch.ones(ROWS, WIDTH)
    for m, x in enumerate(projected(fusion, given)):
        product = product * torch.where(present[:, m, None], torch.tanh(x), 1.0)
    close(fusion(given).vector, fusion.join(product))


def test_bilinear_with_several_factors_is_mfb() -> None:
    fusion, given = build("bilinear", factors=3), features(missing=False)
    a, b, c = projected(fusion, given)
    z = (a * b * c).reshape(ROWS, WIDTH, 3).sum(2)
    z = z.sign() * z.abs().sqrt()
    z = z / z.norm(dim=1, keepdim=True) * WIDTH**0.5
    torch.testing.assert_close(fusion(given).vector, fusion.join(z), atol=5e-3, rtol=5e-3)


def test_the_root_of_mfb_has_a_finite_slope_where_a_product_is_zero() -> None:
    fusion, given = build("bilinear", factors=2), features(missing=False)
    nn.init.zeros_(fusion.projections["text"].weight)
    nn.init.zeros_(fusion.projections["text"].bias)
    fusion(given).vector.sum().backward()
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in fusion.parameters() if p.grad is not None
    )


def outer(vectors: list[Tensor]) -> Tensor:
    """By hand: all products of one entry of each modality, each with a 1 at its end."""
    ones = [torch.cat([x, torch.ones(len(x), 1)], 1) for x in vectors]
    columns = itertools.product(*(range(x.shape[1]) for x in ones))
    return torch.stack(
        [torch.stack([x[:, i] for x, i in zip(ones, c, strict=True)]).prod(0) for c in columns], 1
    )


@pytest.mark.parametrize("missing", ["learned", "mask"])
def test_tensor_fusion_is_the_outer_product(missing: str) -> None:
    fusion, given = build("tensor", size=2, missing=missing), features()
    product = outer([F.gelu(x) for x in projected(fusion, given)])
    assert product.shape == (ROWS, 27)
    close(fusion(given).vector, fusion.join(product))


def test_tensor_fusion_without_a_modality_is_tensor_fusion_of_the_others() -> None:
    fusion, given = build("tensor", size=2, missing="mask"), features(missing=False)
    text = given["text"]
    given["text"] = Features(text.tokens, torch.zeros_like(text.mask))
    product = outer([F.gelu(x) for x in projected(fusion, given)[:2]])
    weight = fusion.join.weight.unflatten(1, (9, 3))[..., -1]  # of the entries with the 1 of text
    close(fusion(given).vector, F.linear(product, weight, fusion.join.bias))


def test_the_size_of_the_tensor_is_bounded() -> None:
    for count in (1, 2, 3, 5, 8):
        widths = {f"m{k}": 4 for k in range(count)}
        fusion = build_fusion("tensor", widths, 256)
        assert fusion.join.in_features <= 4096


def test_low_rank_fusion_of_full_rank_is_tensor_fusion() -> None:
    d = 3  # entries of each modality, with the 1
    whole = build("tensor", size=d - 1)
    rank = d * d
    low = build("low_rank_tensor", size=d - 1, rank=rank)
    low.load_state_dict(
        {n: t for n, t in whole.state_dict().items() if not n.startswith("join")}, strict=False
    )
    weight = whole.join.weight.detach().reshape(WIDTH, d, d, d)
    with torch.no_grad():
        low.factors.zero_()
        for r, (i, j) in enumerate(itertools.product(range(d), range(d))):
            low.factors[0, r, i] = 1.0
            low.factors[1, r, j] = 1.0
            low.factors[2, r] = weight[:, i, j].T
        low.bias.copy_(whole.join.bias)
    given = features()
    close(low(given).vector, whole(given).vector)


def test_a_mixture_of_experts_weighs_its_experts_for_each_row() -> None:
    fusion, given = build("mixture_of_experts", experts=3), features()
    x = torch.cat([F.gelu(v) for v in projected(fusion, given)], 1)
    weights = fusion.router(x).softmax(1)
    expected = torch.zeros(ROWS, WIDTH)
    for e in range(3):
        rows = slice(e * WIDTH, (e + 1) * WIDTH)
        layer = F.linear(x, fusion.expert.weight[rows], fusion.expert.bias[rows])
        expected = expected + weights[:, e, None] * F.gelu(layer)
    close(fusion(given).vector, expected)
    sparse = build("mixture_of_experts", experts=3, top=1)
    chosen = weights.argmax(1)
    for b in range(ROWS):
        rows = slice(int(chosen[b]) * WIDTH, (int(chosen[b]) + 1) * WIDTH)
        layer = F.linear(x[b], sparse.expert.weight[rows], sparse.expert.bias[rows])
        close(sparse(given).vector[b], weights[b, chosen[b]] * F.gelu(layer))
    two = build("mixture_of_experts", experts=3, top=2)
    kept = weights.masked_fill(F.one_hot(weights.argmin(1), 3).bool(), 0)
    kept = kept / kept.sum(1, keepdim=True)
    layers = F.gelu(F.linear(x, two.expert.weight, two.expert.bias)).unflatten(1, (3, WIDTH))
    close(two(given).vector, (kept.unsqueeze(2) * layers).sum(1))


# -- on decisions -------------------------------------------------------------------------------


def decide(fusion: Any, given: dict[str, Features]) -> tuple[Tensor, Any]:
    torch.manual_seed(3)
    head = fusion.head(lambda width: nn.Linear(width, 4))
    fused: Fused = fusion(given)
    return fusion.decide(head, fused), head


@pytest.mark.parametrize("rule", ["mean", "weighted", "product", "stacking"])
def test_late_fusion_with_a_linear_head_per_modality_equals_its_closed_form(rule: str) -> None:
    fusion, given = build("late", rule=rule, hidden=False), features()
    if rule == "weighted":
        nn.init.normal_(fusion.scores)
    found, head = decide(fusion, given)
    present = presence(given)
    # One linear map per modality: head after projection.
    logits = []
    for m, name in enumerate(WIDTHS):
        a, b = head.heads[m], fusion.projections[name]
        weight, bias = a.weight @ b.weight, a.weight @ b.bias + a.bias
        logits.append(given[name].pooled() @ weight.T + bias)
    z = torch.stack(logits, 1) * present[..., None]  # (B, M, C)
    if rule == "product":
        # The product of the experts' probabilities, normalised.
        probabilities = torch.where(present[..., None], torch.stack(logits, 1).softmax(2), 1.0)
        product = probabilities.prod(1)
        close(found.softmax(1), product / product.sum(1, keepdim=True))
        return
    raw = present.float() * (fusion.scores.exp() if rule == "weighted" else 1.0)
    weights = raw / raw.sum(1, keepdim=True)
    if rule == "stacking":  # begins as the mean over all, absent ones as zeros
        weights = present / 3
    close(found, (weights[..., None] * z).sum(1))


def test_stacking_learns_from_which_modality_a_logit_comes() -> None:
    fusion, given = build("late", rule="stacking"), features(missing=False)
    found, head = decide(fusion, given)
    found[:, 0].sum().backward()
    gradient = head.stack.weight.grad[0].reshape(3, 4)
    assert gradient.abs().min() > 0
    assert len({round(float(g), 6) for g in gradient.flatten()}) == 12


def test_every_task_has_a_head_per_modality() -> None:
    fusion = build("late")
    heads = [fusion.head(lambda width, c=c: nn.Linear(width, c)) for c in (4, 2)]
    fused = fusion(features())
    assert [fusion.decide(head, fused).shape for head in heads] == [(ROWS, 4), (ROWS, 2)]
    assert sum(p.numel() for p in heads[1].parameters()) == 3 * 2 * (WIDTH + 1)


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown rule 'stack'.*mean 'stacking'"):
        build("late", rule="stack")


# -- on tokens ----------------------------------------------------------------------------------


def test_a_block_is_the_transformer_layer_of_torch() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, growth=2).eval()
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, F.gelu, batch_first=True, norm_first=True
    ).eval()
    with torch.no_grad():
        attention, mlp = layer.self_attn, block.mlp
        parts = (block.query, block.key, block.value)
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        zeros = torch.zeros(8)
        attention.in_proj_bias.copy_(torch.cat([block.query.bias, zeros, block.value.bias]))
        attention.out_proj.load_state_dict(block.out.state_dict())
        for ours, theirs in (
            (block.norm, layer.norm1),
            (mlp[0], layer.norm2),
            (mlp[1], layer.linear1),
            (mlp[3], layer.linear2),
        ):
            theirs.load_state_dict(ours.state_dict())
        x = torch.randn(ROWS, 5, 8)
        mask = torch.arange(5) < torch.randint(1, 6, (ROWS, 1))
        close(block(x, Features(x, mask))[mask], layer(x, src_key_padding_mask=~mask)[mask])


def changed(given: dict[str, Features], name: str) -> dict[str, Features]:
    return {**given, name: Features(given[name].tokens + 1, given[name].mask)}


def outputs_of(module: nn.Module, fusion: nn.Module, given: dict[str, Features]) -> Tensor:
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    fusion(given)
    handle.remove()
    return kept[0]


def test_modalities_meet_in_the_bottlenecks_only_and_one_layer_later() -> None:
    fusion, given = build("bottleneck", layers=2), features(missing=False)
    other = changed(given, "image")
    first, second = fusion.blocks["text"]
    assert torch.equal(outputs_of(first, fusion, given), outputs_of(first, fusion, other))
    assert not torch.equal(outputs_of(second, fusion, given), outputs_of(second, fusion, other))


def test_a_bottleneck_fusion_of_one_layer_is_refused_and_so_are_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="layers must be 2, or more, found 1"):
        build("bottleneck", layers=1)
    for name in ("transformer", "bottleneck", "perceiver", "cross_attention"):
        with pytest.raises(ValueError, match="heads must divide the width of the fusion, 8.*3"):
            build(name, heads=3)


def test_cross_attention_reads_all_other_modalities() -> None:
    fusion, given = build("cross_attention"), features(missing=False)
    to_image = fusion.cross["image"]
    assert len(to_image) == 2  # from audio and from text
    from_audio = to_image[0][0]
    before = outputs_of(from_audio, fusion, given)
    assert torch.equal(before, outputs_of(from_audio, fusion, changed(given, "text")))
    assert not torch.equal(before, outputs_of(from_audio, fusion, changed(given, "audio")))


def test_latents_never_look_at_padding_and_their_number_is_that_of_the_option() -> None:
    fusion, given = build("perceiver", latents=3), features()
    assert outputs_of(fusion.thinking[0], fusion, given).shape == (ROWS, 3, WIDTH)


@pytest.mark.parametrize("name", ["transformer", "bottleneck", "perceiver", "cross_attention"])
def test_order_of_tokens_within_a_modality_does_not_matter(name: str) -> None:
    """Encoders have told their tokens where they are; the fusion adds no positions."""
    fusion, given = build(name), features()
    turned = {n: Features(f.tokens.flip(1), f.mask.flip(1)) for n, f in given.items()}
    close(fusion(turned).vector, fusion(given).vector)


@pytest.mark.parametrize("name", ["transformer", "bottleneck", "perceiver", "cross_attention"])
@pytest.mark.parametrize("missing", ["learned", "mask"])
def test_fusions_on_tokens_can_learn_or_mask_what_is_absent(name: str, missing: str) -> None:
    fusion, given = build(name, missing=missing), features()
    assert hasattr(fusion, "absent") == (missing == "learned")
    (fusion(given).vector * torch.randn(ROWS, WIDTH)).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in fusion.parameters())
    if missing == "learned":
        assert fusion.absent["text"].grad.abs().max() > 0
