"""How far two sets of vectors are from each other."""

import numpy as np
from scipy.stats import norm

LEAST = 3  # vectors of a set


def kernel_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The kernel distance of two sets of features [N,D] and [M,D], and its 95% interval; of features of images it is called KID.

    The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, its unbiased estimate (Binkowski et al. 2018, arXiv
    1801.01401; Gretton et al. 2012, JMLR 13). It is 0 on average where both sets are draws of one distribution, and may then be
    below 0. The interval is normal, with the variance of a jackknife over the vectors of either set.

    Raises ValueError for a set of fewer than LEAST vectors.
    """
    if min(len(x), len(y)) < LEAST:
        raise ValueError(f"sets of {len(x)} and {len(y)}: a distance needs {LEAST} of each")
    x, y = (np.asarray(values, np.float64) for values in (x, y))
    cross = (x @ y.T / x.shape[1] + 1) ** 3
    own, left = zip(*map(_within, (x, y)), strict=True)
    n, m = cross.shape
    value = own[0] + own[1] - 2 * cross.mean()
    # The same without one vector of x, or of y.
    without_x = left[0] + own[1] - 2 * (cross.sum() - cross.sum(axis=1)) / ((n - 1) * m)
    without_y = own[0] + left[1] - 2 * (cross.sum() - cross.sum(axis=0)) / (n * (m - 1))
    variance = sum((len(part) - 1) * part.var() for part in (without_x, without_y))
    half = float(norm.ppf(0.975) * np.sqrt(variance))
    return float(value), (float(value) - half, float(value) + half)


def _within(x: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean kernel of two vectors of a set [N,D], and that without each of them [N]."""
    kernel, n = (x @ x.T / x.shape[1] + 1) ** 3, len(x)
    np.fill_diagonal(kernel, 0)
    total, of_each = kernel.sum(), kernel.sum(axis=1)
    return float(total / (n * (n - 1))), (total - 2 * of_each) / ((n - 1) * (n - 2))
