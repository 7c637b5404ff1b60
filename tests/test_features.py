"""What flows: masks decide, padding never leaks, and rows come back to where they belong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtransfer.features import Activations, Batch, Features, Inputs, proper_subsets

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32)


def ragged(lengths: list[int], seed: int, width: int = 3, filler: float = math.nan) -> Features:
    """Features with so many real tokens per row, at random places; `filler` everywhere else."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(lengths), 5, width, generator=generator)
    ranks = torch.rand(len(lengths), 5, generator=generator).argsort(1).argsort(1)
    mask = ranks < torch.tensor(lengths).unsqueeze(1)
    return Features(torch.where(mask.unsqueeze(-1), tokens, filler), mask)


@given(LENGTHS, SEEDS)
@settings(deadline=None)
def test_pooled_is_the_mean_of_the_real_tokens_and_zero_where_absent(
    lengths: list[int], seed: int
) -> None:
    features = ragged(lengths, seed)
    for row, length in enumerate(lengths):
        real = features.tokens[row][features.mask[row]]
        expected = real.mean(0) if length else torch.zeros(3)
        torch.testing.assert_close(features.pooled()[row], expected)
    assert features.present.tolist() == [length > 0 for length in lengths]


@given(LENGTHS, SEEDS)
@settings(deadline=None)
def test_pooled_sends_gradient_to_real_tokens_only(lengths: list[int], seed: int) -> None:
    features = ragged(lengths, seed)  # NaN in the padding must not reach the gradient either
    features.tokens.requires_grad_(True)
    features.pooled().sum().backward()
    share = features.mask / features.mask.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(features.tokens.grad, share.unsqueeze(-1).expand(-1, -1, 3))


@given(LENGTHS, SEEDS)
@settings(deadline=None)
def test_pool_keeps_presence_and_pooling_again_changes_nothing(
    lengths: list[int], seed: int
) -> None:
    features = ragged(lengths, seed)
    pooled = features.pool()
    assert pooled.tokens.shape == (len(lengths), 1, 3)
    assert torch.equal(pooled.present, features.present)
    assert torch.equal(pooled.pooled(), features.pooled())


@given(LENGTHS, SEEDS, st.integers(0, 4))
@settings(deadline=None)
def test_scatter_places_rows_and_leaves_the_others_absent(
    lengths: list[int], seed: int, more: int
) -> None:
    features = ragged(lengths, seed, filler=0.0)
    size = len(lengths) + more
    rows = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: len(lengths)]
    placed = features.scatter(rows, size)
    assert torch.equal(placed.tokens[rows], features.tokens)
    assert torch.equal(placed.mask[rows], features.mask)
    others = torch.ones(size, dtype=torch.bool)
    others[rows] = False
    assert not placed.mask[others].any()
    assert not placed.pooled()[others].any()


def test_scatter_passes_gradients_back_to_its_rows() -> None:
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    placed = Features.of(tokens).scatter(torch.tensor([3, 1]), 5)
    weights = torch.randn(5, 3, 4)
    (placed.tokens * weights).sum().backward()
    assert torch.equal(tokens.grad, weights[[3, 1]])


def test_one_vector_per_sample_is_one_token() -> None:
    vectors = torch.randn(4, 6)
    features = Features.of(vectors)
    assert features.tokens.shape == (4, 1, 6)
    assert features.width == 6
    assert torch.equal(features.pooled(), vectors)
    assert features.present.all()


def test_absent_features_hold_no_row_and_pool_to_zero() -> None:
    features = Features.absent(3, 5, like=torch.zeros(1))
    assert features.present.tolist() == [False] * 3
    assert torch.equal(features.pooled(), torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("tokens", "mask"), [((2, 3), (2, 3)), ((2, 3, 4), (3, 2)), ((2, 3, 4), (2, 3, 4))]
)
def test_shapes_that_do_not_belong_together_are_named(
    tokens: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"tokens \(B, T, D\).*mask \(B, T\).*found") as caught:
        Features(torch.zeros(tokens), torch.zeros(mask, dtype=torch.bool))
    assert str(tokens) in str(caught.value)
    assert str(mask) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pooling_keeps_the_precision_and_counts_right(dtype: torch.dtype) -> None:
    tokens = torch.full((1, 300, 1), 1.5, dtype=dtype)  # 300 ones do not fit bf16 one by one
    pooled = Features.of(tokens).pooled()
    assert pooled.dtype == dtype
    assert pooled.item() == pytest.approx(1.5, rel=2**-7)


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch(
        {
            "text": Inputs({"ids": torch.zeros(2, 3)}, torch.tensor([0, 2])),
            "image": Features.of(torch.zeros(3, 4)),
        },
        {"label": torch.zeros(3)},
        torch.arange(3),
        {"text": [1]},
        {"label": torch.ones(3)},
        torch.ones(3, 2, dtype=torch.bool),
    )
    moved = batch.to("meta")
    text, image = moved.inputs["text"], moved.inputs["image"]
    assert isinstance(text, Inputs)
    assert isinstance(image, Features)
    tensors = [*text.values.values(), text.rows, image.tokens, image.mask]
    tensors += [moved.targets["label"], moved.index, moved.held["label"], moved.present]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(moved) == 3
    assert moved.unreadable == {"text": [1]}


def test_a_batch_knows_which_rows_have_which_modality() -> None:
    vectors = Features.of(torch.zeros(2, 1, 5))
    inputs = {
        "text": Inputs({"ids": torch.zeros(2, 3)}, torch.tensor([0, 2])),
        "image": Features.of(torch.zeros(2, 4)).scatter(torch.tensor([1, 2]), 3),
        "audio": Activations(vectors, 1, torch.tensor([0])),
    }
    batch = Batch(inputs, {}, torch.arange(3))
    found = batch.having(["audio", "image", "none", "text"])
    assert found.int().tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 1]]


def test_hidden_features_are_absent_and_of_the_same_shape() -> None:
    features = Features.of(torch.ones(2, 3, 4))
    assert not features.hidden().present.any()
    assert features.hidden().tokens.shape == (2, 3, 4)
    assert features.present.all()


def test_proper_subsets_leave_out_nothing_and_everything() -> None:
    assert proper_subsets(["a"]) == []
    assert proper_subsets(["a", "b", "c"]) == [
        *[("a",), ("b",), ("c",)],
        *[("a", "b"), ("a", "c"), ("b", "c")],
    ]
    assert len(proper_subsets("abcde")) == 2**5 - 2
