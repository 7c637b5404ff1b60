"""Fused vectors of source and target with equal means in a space of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.alignment import both_sides, check_least
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method

TINY = 1e-8


@register_method("mmd")
class MMD(Method):
    """Adds the maximum mean discrepancy of source and target (DAN, Long et al., ICML 2015).

    The mean kernel value of pairs within the source, and within the target, less that of pairs
    across, on fused vectors, without a row's pair with itself (Gretton et al., JMLR 2012, eq. 3).
    The kernel is the mean of Gaussians `exp(-|x - y|^2 / g)` whose g are the median squared
    distance of all pairs, times powers of 2; the paper learns the weights of the kernels, here
    they are equal.  A statistic of each micro-batch; with fewer than two rows on a side it is 0.

    weight: of the discrepancy, next to the loss of the tasks
    kernels: how many powers of 2, around 1
    """

    needs = ("unlabelled", "fused")

    def __init__(self, weight: float = 1.0, kernels: int = 5) -> None:
        check_least("the weight of mmd", weight)
        check_least("kernels of mmd", kernels, 1)
        self.weight, self.kernels = weight, kernels

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        return loss + self.weight * discrepancy(*both_sides(batch, outputs), self.kernels)


def discrepancy(
    source: Tensor, here: Tensor, target: Tensor, there: Tensor, kernels: int
) -> Tensor:
    """Vectors (n, D), (m, D) and which rows count (n,), (m,) -> the unbiased squared discrepancy.

    It may be slightly below 0.
    """
    rows, side = torch.cat([source, target]), torch.cat([here.float(), -there.float()])
    distances = squared_distances(rows)
    other = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    pairs = torch.outer(side, side) * other  # 1 within a side, -1 across, 0 for what is no pair
    median = torch.where(pairs != 0, distances.detach(), torch.nan).nanmedian()
    median = torch.nan_to_num(median).clamp_min(TINY)
    powers = torch.arange(kernels, device=rows.device) - (kernels - 1) / 2
    widths = median * 2.0**powers
    values = (-distances.unsqueeze(2) / widths).exp().mean(2)  # (n + m, n + m)
    n, m = here.sum(), there.sum()
    counts = torch.cat([(n - 1).expand(len(here)), (m - 1).expand(len(there))]).clamp_min(1)
    each = torch.cat([n.expand(len(here)), m.expand(len(there))]).clamp_min(1)
    within = (values * (pairs > 0)).sum(1) / (each * counts)
    across = (values * (pairs < 0)).sum() / (n * m).clamp_min(1)
    return torch.where((n > 1) & (m > 1), within.sum() - across, 0 * values.sum())


def squared_distances(rows: Tensor) -> Tensor:
    """Vectors (n, D) -> (n, n); in the memory of the result."""
    rows = rows - rows.detach().mean(0)  # far from 0 the differences below would lose digits
    squares = rows.square().sum(1)
    return (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * rows @ rows.T).clamp_min(0)
