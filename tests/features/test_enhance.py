"""Filters, against SciPy and closed forms."""

import numpy as np
import pytest
from scipy import ndimage

from fingerprint_jax.features.enhance import FILTERS, enhance


def _one(image) -> np.ndarray:
    return np.asarray(image, np.uint8)[None, ..., None]


def _noise():
    return np.random.default_rng(0).integers(100, 130, (2, 18, 23, 1)).astype(np.uint8)


@pytest.mark.parametrize("filter", list(FILTERS))
def test_images_stay_images_and_constant_ones_constant(filter):
    images = _noise()
    images[1] = 77
    found = enhance(images, filter)
    assert found.dtype == np.uint8 and found.shape == images.shape
    assert (found[1] == (128 if filter in ("laplacian", "hessian") else 77)).all()
    np.testing.assert_array_equal(enhance(images[:1], filter)[0], found[0])


def test_none_is_the_image():
    np.testing.assert_array_equal(enhance(_noise(), "none"), _noise())


def test_gaussian_and_laplacian_are_those_of_scipy():
    images = _noise()
    for image, smooth, edges in zip(images, enhance(images, "gaussian"), enhance(images, "laplacian"), strict=True):
        image = image[..., 0].astype(float)
        np.testing.assert_array_equal(smooth[..., 0], np.rint(ndimage.gaussian_filter(image, 1, mode="nearest")))
        np.testing.assert_array_equal(edges[..., 0], np.clip(128 - ndimage.laplace(image), 0, 255))


def test_derivatives_of_a_parabola_are_its_curvature():
    y, x = np.mgrid[-9:10, -9:10]
    inside = np.s_[0, 8:-8, 8:-8, 0]
    for image, curvature in ((x**2, 2), (y**2 + x**2 / 2, 2), (x * y + 81, 1), (200 - x**2, 0)):
        assert (enhance(_one(image), "hessian")[inside] == 128 + curvature).all(), curvature
    for image, curvature in ((x**2, 2), (y**2 + x**2, 4), (200 - x**2, -2)):
        assert (enhance(_one(image), "laplacian")[inside] == 128 - curvature).all(), curvature


def test_derivatives_are_cut_off():
    image = np.zeros((9, 9))
    image[4, 4] = 255
    found = enhance(_one(image), "laplacian")[0, ..., 0]
    assert found[4, 4] == 255 and found[4, 5] == 0 and found[4, 6] == 128


def test_bilateral_keeps_an_edge_and_smooths_noise():
    rng = np.random.default_rng(0)
    image = np.where(np.arange(24) < 12, 40, 200) + rng.integers(-4, 5, (20, 24))
    found = enhance(_one(image), "bilateral")[0, ..., 0].astype(float)
    for side in (np.s_[:, :12], np.s_[:, 12:]):
        assert found[side].std() < 0.6 * image[side].std()
        assert abs(found[side].mean() - image[side].mean()) < 0.5
    assert (np.diff(found[:, 11:13], axis=1) > 140).all()
