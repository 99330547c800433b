"""Grey levels, as vectors and maps."""

import numpy as np
import pytest

from fingerprint_jax.features import pixels


def test_pixels_are_grey_levels_row_by_row():
    images = np.arange(0, 240, 5, dtype=np.uint8).reshape(2, 4, 6, 1)
    np.testing.assert_allclose(pixels.pixels(images), images.reshape(2, 24) / 255, rtol=1e-6)
    np.testing.assert_allclose(pixels.images(images), images[..., 0] / 255, rtol=1e-6)


def test_smaller_ones_are_means_of_areas():
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 12, 1)).astype(np.uint8)
    expected = images.reshape(2, 3, 2, 3, 4).mean(axis=(2, 4)).reshape(2, 9) / 255
    np.testing.assert_allclose(pixels.pixels(images, size=3), expected, rtol=1e-5)
    thirds = np.array([[30, 60, 90]] * 3, np.uint8)[None, ..., None]  # each area has a pixel and a half of its rows and columns
    np.testing.assert_allclose(pixels.pixels(thirds, size=2) * 255, [[40, 80, 40, 80]], rtol=1e-5)


@pytest.mark.parametrize("size", [7, -1])
def test_a_size_above_the_images_is_refused(size):
    with pytest.raises(ValueError, match=f"features.size={size}: use at most 6 for images of 12x6 pixels, or 0 to keep them"):
        pixels.pixels(np.zeros((1, 6, 12, 1), np.uint8), size=size)
