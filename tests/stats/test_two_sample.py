"""The kernel distance against scikit-learn's kernel, and against itself without each vector."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from fingerprint_jax.stats.two_sample import kernel_distance


def _brute(x, y):
    kernel = lambda a, b: polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1)  # noqa: E731
    within = [kernel(a, a)[~np.eye(len(a), dtype=bool)].mean() for a in (x, y)]
    return sum(within) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize(("n", "m"), [(3, 3), (12, 7)])
def test_it_is_that_of_all_pairs_and_its_interval_that_of_a_jackknife(n, m):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 5)), rng.normal(0.5, 1, size=(m, 5))
    value, (low, high) = kernel_distance(x, y)
    assert value == pytest.approx(_brute(x, y))
    parts = [
        np.array([_brute(np.delete(x, i, 0), y) for i in range(n)]) if n > 3 else None,
        np.array([_brute(x, np.delete(y, i, 0)) for i in range(m)]) if m > 3 else None,
    ]
    if n > 3:
        variance = sum((len(part) - 1) / len(part) * np.sum((part - part.mean()) ** 2) for part in parts)
        assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance))
    assert (low + high) / 2 == pytest.approx(value)


def test_of_one_distribution_it_is_0_on_average_and_of_two_above_it():
    rng = np.random.default_rng(1)
    same = [kernel_distance(*rng.normal(size=(2, 40, 8)))[0] for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200) and min(same) < 0
    low, _ = kernel_distance(rng.normal(size=(200, 8)), rng.normal(1, 1, size=(200, 8)))[1]
    assert low > 0


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match="sets of 2 and 5: a distance needs 3 of each"):
        kernel_distance(np.zeros((2, 4)), np.zeros((5, 4)))
