"""Maps of fused vectors in the plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from mmtransfer.registry import nearest

MAPS = ("pca", "tsne")


@dataclass(frozen=True)
class Embedding:
    """Points (n, 2) of the rows (n,); explained: share of the variance by axis, of PCA only."""

    points: Tensor
    rows: Tensor
    explained: tuple[float, ...] = ()


def sampled(rows: int, most: int, seed: int = 0) -> Tensor:
    """At most so many row numbers, drawn without repetition, in order."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def embed(vectors: Tensor, method: str = "pca", rows: int = 1000, seed: int = 0) -> Embedding:
    """Vectors (N, D) -> points in the plane, of a sample of the rows.

    method: "pca" (Pearson 1901), or "tsne" (van der Maaten & Hinton, JMLR 2008) on the first 50
        principal components, with perplexity 30 or a third of fewer rows; distances between
        clusters of t-SNE mean nothing
    rows: how many at most
    Vectors that are all the same lie at zero.
    Raises `ValueError` for fewer than four rows or an unknown method.
    """
    if method not in MAPS:
        raise ValueError(f"unknown method {method!r}.{nearest(method, MAPS)}")
    if len(vectors) < 4:
        raise ValueError(f"a map needs at least four rows, found {len(vectors)}")
    chosen = sampled(len(vectors), rows, seed)
    kept = vectors[chosen].double().numpy()
    if (kept == kept[0]).all():  # t-SNE divides by their deviation, and ends the process
        return Embedding(torch.zeros(len(kept), 2), chosen, (0.0, 0.0) if method == "pca" else ())
    components = min(2 if method == "pca" else 50, *kept.shape)
    reduced = PCA(components, svd_solver="full").fit(kept)
    points = reduced.transform(kept)
    if method == "pca":
        explained = tuple(float(share) for share in reduced.explained_variance_ratio_)
    else:
        perplexity = min(30.0, (len(kept) - 1) / 3)
        init = "pca" if points.shape[1] > 1 else "random"
        mapper = TSNE(2, perplexity=perplexity, init=init, random_state=seed)
        points, explained = mapper.fit_transform(points), ()
    found = torch.from_numpy(points).float()
    if found.shape[1] < 2:  # vectors of width 1
        found = torch.cat([found, torch.zeros_like(found)], 1)
    return Embedding(found, chosen, explained)
