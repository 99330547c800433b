"""Textures, against closed forms and other libraries' words for them."""

import numpy as np
from scipy import ndimage, stats
from skimage.feature import graycomatrix, graycoprops

from fingerprint_jax.features import texture


def _noise(count=3, height=20, width=24):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1)).astype(np.uint8)


def _one(image) -> np.ndarray:
    return np.asarray(image, np.uint8)[None, ..., None]


def test_lbp_of_an_edge_by_hand():
    height, width, bright = 9, 12, 5
    image = np.zeros((height, width))
    image[:, width - bright :] = 200
    expected = np.zeros(10)
    # Outside is dark, and dark pixels have no darker neighbours. A side of the bright ones sees five bright, a corner three.
    expected[3] = 4
    expected[5] = 2 * (height - 2) + 2 * (bright - 2)
    expected[8] = height * width - expected.sum()
    np.testing.assert_allclose(texture.lbp(_one(image))[0], expected / image.size, rtol=1e-6)


def test_lbp_of_noise_is_a_distribution_and_options_count():
    found = texture.lbp(_noise(), points=16, radius=2.0)
    assert found.shape == (3, 18)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert not np.allclose(found, texture.lbp(_noise(), points=16, radius=3.0))


def test_glcm_of_a_checkerboard_by_hand():
    board = 255 * (np.add.outer(np.arange(18), np.arange(19)) % 2)
    other, same = [255**2, -1, np.sqrt(0.5), 1 / (1 + 255**2)], [0, 1, np.sqrt(0.5), 1]
    expected = np.array([other, same, other, same]).T  # properties x angles
    np.testing.assert_allclose(texture.glcm(_one(board))[0].reshape(4, 4), expected, rtol=1e-6, atol=1e-6)


def test_glcm_as_by_scikit_image():
    flat, half = np.full((18, 18), 7, np.uint8), np.repeat([3, 250], 9)[None].repeat(18, axis=0)
    for image in (*_noise(2)[..., 0], _noise(1)[0, ..., 0] // 32, flat, half.astype(np.uint8)):
        table = graycomatrix(image, [1], np.pi / 4 * np.arange(4), levels=256, symmetric=True, normed=True)
        expected = np.stack([graycoprops(table, name)[0] for name in ("contrast", "correlation", "energy", "homogeneity")])
        np.testing.assert_allclose(texture.glcm(_one(image))[0].reshape(4, 4), expected, rtol=1e-6, atol=1e-9)


def test_gabor_is_the_correlation_with_the_formula():
    images = _noise(2, 24, 30)
    found = texture.gabor(images).reshape(2, 2, 3, 3)
    y, x = np.mgrid[-10:11, -10:11]
    for f, frequency in enumerate((0.1, 0.3, 0.5)):
        for t, theta in enumerate(np.deg2rad([0, 45, 90])):
            along, across = x * np.cos(theta) + y * np.sin(theta), -x * np.sin(theta) + y * np.cos(theta)
            envelope = np.exp(-0.5 * (along**2 + (0.5 * across) ** 2) / 4**2) / (2 * np.pi * 4 * 8)
            kernel = envelope * np.cos(2 * np.pi * frequency * along)
            for image, row in zip(images[..., 0], found, strict=True):
                response = ndimage.correlate(image / 255, kernel, mode="mirror")
                np.testing.assert_allclose(row[:, f, t], [response.mean(), response.std()], rtol=1e-4, atol=1e-6)


def test_wavelet_bands_are_sums_and_differences_of_blocks():
    images = _noise(2, 16, 20)
    x = images[..., 0] / 255
    expected = []
    for _ in range(2):
        a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
        details = [(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
        expected = [(band**2).mean(axis=(1, 2)) for band in details] + expected
        x = (a + b + c + d) / 2
    expected = np.stack([(x**2).mean(axis=(1, 2)), *expected], axis=1)
    np.testing.assert_allclose(texture.wavelet(images), expected, rtol=1e-5)


def test_moments_are_those_of_scipy():
    images = _noise() // 2 + _noise() ** 2 // 3  # skewed
    x = images.reshape(3, -1) / 255
    expected = np.stack([x.mean(axis=1), x.var(axis=1), stats.skew(x, axis=1), stats.kurtosis(x, axis=1)], axis=1)
    np.testing.assert_allclose(texture.moments(images), expected, rtol=1e-5)
    np.testing.assert_allclose(texture.moments(_one(np.full((18, 18), 51))), [[0.2, 0, 0, 0]], rtol=1e-6)


def test_otsu_counts_components_by_hand():
    image = np.full((20, 20), 10)
    image[2:6, 2:6] = image[6:9, 6:8] = 200  # they touch at a corner
    image[15:17, 3:13] = 220
    np.testing.assert_allclose(texture.otsu(_one(image)), [[2, (16 + 6 + 20) / 400 / 2]], rtol=1e-6)
    np.testing.assert_array_equal(texture.otsu(_one(np.full((18, 18), 9))), [[0, 0]])


def test_texture_is_all_of_them_side_by_side():
    images = _noise()
    parts = [f(images) for f in (texture.glcm, texture.gabor, texture.wavelet, texture.moments, texture.otsu)]
    assert [part.shape[1] for part in parts] == [16, 18, 7, 4, 2]
    np.testing.assert_array_equal(texture.texture(images), np.concatenate(parts, axis=1))
