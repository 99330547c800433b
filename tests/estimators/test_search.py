"""Nearest neighbours against those of scikit-learn in float64."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from fingerprint_jax.estimators import search


def _draw(queries=30, rows=200, dimensions=12, offset=0.0):
    rng = np.random.default_rng(0)
    return tuple((rng.normal(size=(n, dimensions)) + offset).astype(np.float32) for n in (queries, rows))


def _expected(query, gallery, k):
    model = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(gallery.astype(np.float64))
    return model.kneighbors(query.astype(np.float64))


@pytest.mark.parametrize("block", [1, 7, 64, 200, 4096])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_it_is_exact_whatever_the_block(k, block, monkeypatch):
    monkeypatch.setattr(search, "QUERIES", 12)
    query, gallery = _draw()
    distances, positions = search.nearest(query, gallery, k, block=block)
    expected, order = _expected(query, gallery, k)
    assert distances.dtype == np.float32 and positions.dtype == np.int64
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


def test_small_distances_far_from_the_origin_are_kept():
    query, gallery = _draw(offset=1000.0)
    near = gallery[:30] + np.float32(1 / 1024)  # exact at this offset
    distances, positions = search.nearest(near, gallery, 1)
    np.testing.assert_array_equal(positions[:, 0], np.arange(30))
    np.testing.assert_allclose(distances, _expected(near, gallery, 1)[0], rtol=1e-4)
    copies, _ = search.nearest(gallery, gallery, 1)
    assert not copies.any()


def test_candidates_that_a_matrix_product_cannot_order_are_ordered_by_their_differences():
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1000, (20, 1, 12))
    gallery = (centres + rng.normal(size=(20, 6, 12)) / 100).reshape(-1, 12).astype(np.float32)
    query = (centres[:, 0] + rng.normal(size=(20, 12)) / 100).astype(np.float32)
    distances, positions = search.nearest(query, gallery, 2)
    expected, order = _expected(query, gallery, 120)
    # The six rows of a centre are all candidates, and their squared distances differ by less than the table is rounded by.
    rounding = np.finfo(np.float32).eps * (gallery**2).sum(axis=1).mean()
    assert np.median(np.diff(expected[:, :6] ** 2)) < rounding / 10 and expected[:, 6].min() > 100
    np.testing.assert_array_equal(positions, order[:, :2])
    np.testing.assert_allclose(distances, expected[:, :2], rtol=1e-5)


def test_rows_of_unit_length_are_ordered_by_the_inner_product():
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in _draw())
    distances, positions = search.nearest(query, gallery, 6)
    dots = query.astype(np.float64) @ gallery.T.astype(np.float64)
    np.testing.assert_array_equal(positions, np.argsort(-dots, axis=1)[:, :6])
    np.testing.assert_allclose(1 - distances**2 / 2, -np.sort(-dots, axis=1)[:, :6], rtol=1e-5)


def test_a_row_is_not_its_own_neighbour():
    _, gallery = _draw()
    index = 5 + np.arange(200)
    distances, positions = search.nearest(gallery, gallery, 3, query_index=index, gallery_index=index, block=64)
    expected, order = _expected(gallery, gallery, 4)
    np.testing.assert_array_equal(positions, order[:, 1:])
    np.testing.assert_allclose(distances, expected[:, 1:], rtol=1e-6)
    distances, positions = search.nearest(gallery[:2], gallery[:2], 2, query_index=index[:2], gallery_index=index[:2])
    assert positions.tolist() == [[1, -1], [0, -1]] and np.isinf(distances[:, 1]).all()


@pytest.mark.parametrize("k", [0, 201])
def test_more_neighbours_than_rows_are_refused(k):
    query, gallery = _draw()
    with pytest.raises(ValueError, match=f"k={k}: the gallery has 200 rows"):
        search.nearest(query, gallery, k)
