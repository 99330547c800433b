"""Principal components, against the singular values of the standardised rows."""

import numpy as np
import pytest

from fingerprint_jax.estimators import reduce


@pytest.mark.parametrize("whiten", [False, True])
def test_components_are_the_singular_vectors_of_standardised_rows(whiten):
    rng = np.random.default_rng(0)
    x, query = (rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)) + 3 for n in (40, 5))
    z, q = ((part - x.mean(axis=0)) / x.std(axis=0) for part in (x, query))
    _, values, directions = np.linalg.svd(z, full_matrices=False)
    scale = values / np.sqrt(len(x) - 1) if whiten else np.ones(6)
    found = reduce.pca(x, query, 3, seed=0, whiten=whiten)
    for rows, projected in zip((z, q), found, strict=True):
        expected = rows @ directions[:3].T / scale[:3]
        np.testing.assert_allclose(np.abs(projected), np.abs(expected), rtol=1e-6, atol=1e-9)
    if whiten:
        np.testing.assert_allclose(found[0].var(axis=0, ddof=1), 1, rtol=1e-6)


def test_no_more_components_than_rows_or_features():
    x = np.random.default_rng(0).normal(size=(4, 9))
    assert [part.shape for part in reduce.pca(x, x[:2], 100, seed=0)] == [(4, 4), (2, 4)]
