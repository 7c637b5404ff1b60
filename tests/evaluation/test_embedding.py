"""Maps keep what they are made of, and are the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.evaluation.embedding import MAPS, embed, sampled


def clusters(rows: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 8, generator=generator) + 20 * (torch.arange(rows) % 3 == 0)[:, None]


def test_the_axes_of_pca_are_singular_vectors() -> None:
    vectors = clusters()
    found = embed(vectors, "pca")
    centred = (vectors - vectors.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(found.points.double().abs(), (u * s)[:, :2].abs(), rtol=0, atol=1e-4)
    assert found.explained == pytest.approx((s**2 / (s**2).sum())[:2].tolist())


def test_clusters_stay_apart_in_t_sne_and_the_seed_decides() -> None:
    vectors = clusters()
    first, again = embed(vectors, "tsne", seed=3), embed(vectors, "tsne", seed=3)
    assert torch.equal(first.points, again.points)
    label = torch.arange(60) % 3 == 0
    distances = torch.cdist(first.points, first.points).fill_diagonal_(float("inf"))
    assert (label[distances.argmin(1)] == label).all()


def test_rows_are_a_sample_without_repetition() -> None:
    rows = sampled(100, 20, seed=1)
    assert len(set(rows.tolist())) == 20
    assert rows.tolist() == sorted(rows.tolist()) == sampled(100, 20, seed=1).tolist()
    assert rows.tolist() != sampled(100, 20, seed=2).tolist()
    found = embed(clusters(), rows=10)
    assert (found.points.shape, found.rows.shape) == ((10, 2), (10,))
    assert embed(torch.rand(5, 1), "tsne").points.shape == (5, 2)
    with pytest.raises(ValueError, match="four rows, found 3"):
        embed(torch.rand(3, 2))
    with pytest.raises(ValueError, match="'t-sne'.*'tsne'"):
        embed(torch.rand(5, 2), "t-sne")


@pytest.mark.parametrize("method", MAPS)
def test_vectors_that_are_all_the_same_lie_at_one_point(method: str) -> None:
    found = embed(torch.full((12, 5), 0.3), method)
    assert torch.equal(found.points, torch.zeros(12, 2))
    assert sum(found.explained) == 0
