"""The panel against the estimators, and what must not change it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from fingerprint_jax import estimators
from fingerprint_jax.audit import panel
from fingerprint_jax.estimators import Features


def images(count: int, size: int = 24, seed: int = 0) -> np.ndarray:
    """Smooth images, of which no two are alike: uint8 [count,size,size]."""
    values = gaussian_filter(np.random.default_rng(seed).normal(size=(count, size, size)), (0, 1.5, 1.5), mode="wrap")
    return np.uint8(np.clip(128 + 60 * values / values.std(), 0, 255))


@pytest.fixture(scope="module")
def sets():
    """30 real, 45 synthetic, 20 reference images: the synthetic ones are cut into parts."""
    return np.split(images(95), [30, 75])


@pytest.fixture(scope="module")
def scores(sets):
    return panel.scores(*sets)


def test_gan_leaks_is_that_of_the_pixels(sets, scores):
    real, generated, reference = (x.reshape(len(x), -1) / 255 for x in sets)
    far, near = cdist(real, reference), np.sort(cdist(real, generated), axis=1)
    # The mean over all subsets of 20 of the 45: the j-th is the nearest of one with this chance.
    chance = np.cumprod(np.r_[20 / 45, (25 - np.arange(25)) / (44 - np.arange(25))])
    np.testing.assert_allclose(scores[:, 0], far.min(axis=1) - near[:, :26] @ chance, atol=1e-5)


def test_the_others_are_the_estimators_on_their_views(sets):
    rng = np.random.default_rng(0)
    small = rng.permutation(sets[1])[:20]  # of the reference's size: no parts are drawn
    found = panel.scores(sets[0], small, sets[2])
    for column, name in ((1, "local_match"), (2, "mosaic")):
        query, generated, reference = (
            Features(panel.views(x)[1], np.full(len(x), -1), 1000 * i + np.arange(len(x)))
            for i, x in enumerate((sets[0], small, sets[2][panel.canonical(sets[2])]))
        )
        expected = estimators.get(name)(query, {"generated": generated, "reference": reference}, seed=0)
        np.testing.assert_allclose(found[:, column], expected[:, 0], atol=2e-4)


def test_both_directions_are_the_ranks_among_the_images_asked_about():
    found = np.array([[0.3, 1, 5], [0.1, 1, 6], [0.2, 0, 7]])
    np.testing.assert_array_equal(panel.with_both(found), np.column_stack([found, [(2.5 + 1) / 2, (2.5 + 2) / 2, (1 + 3) / 2]]))


def test_equal_images_are_one_that_is_asked_about(sets, scores):
    found = panel.scores(np.repeat(sets[0], 3, axis=0), *sets[1:])
    np.testing.assert_allclose(found[::3, :3], scores[:, :3], rtol=0, atol=1e-5)
    assert (found[::3] == found[1::3]).all()


def test_names_and_columns_go_together(sets, scores):
    assert len(panel.METHODS) == scores.shape[1] == 4 and panel.METHODS[:3] == tuple(panel.OPTIONS)
    np.testing.assert_allclose(scores[:, 3], rankdata(scores[:, 1:3], axis=0).mean(axis=1))


def test_the_order_of_images_changes_nothing(sets, scores):
    rng = np.random.default_rng(1)
    for moved in range(3):
        orders = [rng.permutation(len(x)) if i == moved else np.arange(len(x)) for i, x in enumerate(sets)]
        found = panel.scores(*(x[order] for x, order in zip(sets, orders, strict=True)))
        np.testing.assert_allclose(found, scores[orders[0]], rtol=0, atol=1e-6)


def test_the_seed_draws_the_parts(sets, scores):
    other = panel.scores(*sets, seed=1)
    np.testing.assert_array_equal(other[:, 0], scores[:, 0])
    assert (other[:, 2] != scores[:, 2]).any()


def test_a_copy_is_found_by_each_and_one_in_the_reference_speaks_against_use(sets, scores):
    real, generated, reference = sets
    found = panel.scores(real, np.concatenate([generated, real[7:8]]), np.concatenate([reference, real[3:4]]))
    assert (found[:, :2].argmax(axis=0) == 7).all() and (found[:, :2].argmin(axis=0) == 3).all()
    assert found[7, 2] > scores[7, 2] and found[3, 2] < scores[3, 2]  # one vote of 46


def test_larger_images_are_averaged():
    pixels, square, box = panel.views(np.kron(images(2, 64), np.ones((1, 2, 2), np.uint8)))
    assert pixels.shape == (2, 64 * 64) and square.shape == box.shape == (2, 64, 64)
    np.testing.assert_allclose(pixels, images(2, 64).reshape(2, -1) / 255, atol=1e-6)
    np.testing.assert_array_equal(square.reshape(2, -1), pixels)
    assert [view.shape for view in panel.views(images(2, 32))] == [(2, 32 * 32), (2, 32, 32), (2, 64, 64)]


@pytest.mark.parametrize(("shape", "levels", "side"), [((40, 80), 3200, 40), ((20, 30), 600, 32), ((200, 120), 4096, 64)])
def test_patches_are_those_of_square_images(shape, levels, side):
    block = np.tile(np.uint8(np.linspace(0, 255, shape[1])), (3, shape[0], 1))
    pixels, square, _ = panel.views(block)
    assert pixels.shape == (3, levels) and square.shape == (3, side, side)
    np.testing.assert_allclose(square[:, side // 2], np.tile((np.arange(side) + 0.5) / side, (3, 1)), atol=0.02)


def test_blocks_change_nothing(monkeypatch, sets):
    whole = panel.views(sets[0])
    monkeypatch.setattr(panel, "_BLOCK", 7)
    for a, b in zip(panel.views(sets[0]), whole, strict=True):
        np.testing.assert_array_equal(a, b)
