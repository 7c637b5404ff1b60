"""Training rows weighed so that their mean in a space of kernels is that of the target."""

from __future__ import annotations

import numpy as np

from mmtransfer.methods.alignment import check_least
from mmtransfer.methods.reweighting import Reweighting
from mmtransfer.registry import register_method

RIDGE = 1e-6
PRECISION = 1e-9


@register_method("kmm")
class KernelMeanMatching(Reweighting):
    """Rows count so that source and target have one kernel mean (Huang et al., NeurIPS 2006).

    The weights w in [0, bound] of the n source rows minimise `w K w / 2 - k w`, where K holds the
    kernel values of source rows and k, per source row, n times its mean kernel value with the
    target; the mean of w lies within `tolerance` of 1.  The kernel is `exp(-|x - y|^2 / g)`, with g
    the median squared distance of all rows.  Takes memory of n^2 numbers of 8 bytes.  Features as
    in `Reweighting`.

    bound: largest weight
    tolerance: of the mean weight, by default `(sqrt(n) - 1) / sqrt(n)` as in the paper
    """

    def __init__(self, bound: float = 10.0, tolerance: float | None = None) -> None:
        super().__init__()
        check_least("the bound of kmm", bound, 1)
        check_least("the tolerance of kmm", 0 if tolerance is None else tolerance)
        self.bound, self.tolerance = bound, tolerance

    def weigh(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        from scipy.spatial.distance import cdist

        n = len(source)
        own = cdist(source, source, "sqeuclidean")
        across = cdist(source, target, "sqeuclidean")
        pairs = np.concatenate([own[np.triu_indices(n, 1)], across.ravel()])
        width = max(float(np.median(pairs)), PRECISION)
        kernel = np.exp(-own / width)
        wanted = n * np.exp(-across / width).mean(1)
        allowed = 1 - n**-0.5 if self.tolerance is None else self.tolerance
        return match(kernel, wanted, self.bound, allowed)


def match(kernel: np.ndarray, wanted: np.ndarray, bound: float, tolerance: float) -> np.ndarray:
    """The w in [0, bound] with the least `w K w / 2 - k w` whose mean is 1 within a tolerance.

    kernel: K (n, n), positive semi-definite; wanted: k (n,)
    """
    from scipy.optimize import brentq, minimize

    n = len(wanted)
    kernel = kernel + RIDGE * np.eye(n)
    last = np.ones(n)

    def least(price: float) -> np.ndarray:
        """With a price on the sum of the weights, their Lagrange multiplier."""
        nonlocal last

        def goal(w: np.ndarray) -> tuple[float, np.ndarray]:
            pull = kernel @ w
            slope = pull - wanted + price
            return float(w @ (0.5 * pull - wanted + price)), slope

        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-8}
        found = minimize(goal, last, jac=True, bounds=[(0, bound)] * n, options=options)
        last = found.x
        return last

    free = least(0.0)
    edge = float(np.clip(free.mean(), 1 - tolerance, 1 + tolerance))
    if edge == free.mean():
        return free
    # The mean falls as the price rises; at these two ends all weights are at a bound.
    highest = float(wanted.max())
    lowest = float((wanted - bound * kernel.sum(1)).min())
    price = brentq(lambda p: least(p).mean() - edge, lowest, highest, xtol=1e-10 * n, rtol=1e-12)
    return least(float(price))
