"""The fixed parts of our network, against scipy and numpy."""

import numpy as np
from scipy.ndimage import correlate

from fingerprint_jax.backbones import fingerprint_net
from fingerprint_jax.features.residual import FILTERS

IMAGES = np.random.default_rng(0).integers(0, 60, (2, 21, 18, 2)).astype(np.float32)


def test_residuals_are_those_of_the_filters_in_steps_and_cut_off():
    found = np.asarray(fingerprint_net.high_pass(IMAGES))
    kinds = len(fingerprint_net.STEPS) * len(FILTERS)
    assert found.shape == (2, 19, 16, 2 * kinds)
    for n, c in np.ndindex(2, 2):
        for s, step in enumerate(fingerprint_net.STEPS):
            for f, weights in enumerate(FILTERS):
                kernel = np.zeros((3, 3))
                for (down, across), weight in weights.items():
                    kernel[1 + down, 1 + across] = weight
                expected = np.clip(correlate(IMAGES[n, ..., c].astype(np.float64), kernel)[1:-1, 1:-1] / step, -3, 3)
                np.testing.assert_allclose(found[n, ..., c * kinds + s * len(FILTERS) + f], expected, rtol=1e-4, atol=1e-4)


def test_a_wave_is_in_the_band_of_its_frequency():
    side = 64
    y, x = np.mgrid[:side, :side]
    # 20 periods down and 12 across: of 64 rows from -32 four are a band, of 33 columns from 0 about four.
    image = 100 + 50 * np.cos(2 * np.pi * (20 * y + 12 * x) / side)
    spectrum = np.asarray(fingerprint_net.log_spectrum(image[None, ..., None].astype(np.float32)))[0, ..., 0]
    assert spectrum.shape == fingerprint_net.BANDS
    assert np.unravel_index(spectrum.argmax(), spectrum.shape) == ((20 + 32) // 4, 12 * 8 // 33)


def test_bands_are_the_means_of_the_powers_logarithm():
    image = IMAGES[:1, :, :, :1]
    height, width = image.shape[1:3]
    window = np.outer(np.hanning(height), np.hanning(width))
    centred = (image[0, ..., 0] - image.mean()).astype(np.float64) * window
    power = np.log(np.abs(np.fft.fftshift(np.fft.rfft2(centred), axes=0)) ** 2 + 1)
    rows, columns = np.arange(height) * 16 // height, np.arange(width // 2 + 1) * 8 // (width // 2 + 1)
    expected = [[power[np.ix_(rows == a, columns == b)].mean() for b in range(8)] for a in range(16)]
    np.testing.assert_allclose(np.asarray(fingerprint_net.log_spectrum(image))[0, ..., 0], expected, rtol=1e-3, atol=1e-3)
