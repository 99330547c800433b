"""The radial spectrum, against a loop over frequencies and closed forms."""

import math

import numpy as np
import pytest

from fingerprint_jax.features.frequency import radial_spectrum


def _radius(u, v, height, width):
    """Share of the highest frequency, that of a checkerboard."""
    fy, fx = (min(k, n - k) / n for k, n in ((u, height), (v, width)))
    return math.hypot(fy, fx) * math.sqrt(2)


@pytest.mark.parametrize(("height", "width", "bins"), [(6, 8, 3), (9, 7, 2)])
def test_rings_are_those_of_a_loop_over_frequencies(height, width, bins):
    image = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    w = [[math.sin(math.pi * y / height) ** 2 * math.sin(math.pi * x / width) ** 2 for x in range(width)] for y in range(height)]
    windowed = (image - image.mean()) * np.array(w)
    rings = {k: [] for k in range(bins + 1)}
    for u in range(height):
        for v in range(width):
            wave = [[np.exp(-2j * math.pi * (u * y / height + v * x / width)) for x in range(width)] for y in range(height)]
            power = abs((windowed * np.array(wave)).sum()) ** 2 / (np.array(w) ** 2).sum()
            rings[round(_radius(u, v, height, width) * bins)].append(math.log(power + 1 / 12))
    expected = [np.mean(rings[k]) for k in range(1, bins + 1)]
    np.testing.assert_allclose(radial_spectrum(image[None, ..., None], bins=bins)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("u", "v", "ring"), [(0, 11, 2), (11, 0, 2), (12, 12, 3), (6, 0, 1), (16, 16, 4)])
def test_a_sinusoid_stands_in_its_ring(u, v, ring):
    y, x = np.mgrid[:32, :32]
    wave = np.rint(128 + 100 * np.cos(2 * np.pi * (u * y + v * x) / 32)).astype(np.uint8)
    assert radial_spectrum(wave[None, ..., None], bins=4)[0].argmax() == ring - 1


def test_a_checkerboard_has_the_power_of_the_window():
    size, amplitude = 32, 100
    y, x = np.mgrid[:size, :size]
    board = (128 + amplitude * (-1) ** (x + y)).astype(np.uint8)
    # A Hann window has the sums size / 2 and, of its square, 3 / 8 size in each direction; of the power, a quarter goes to each of
    # the two neighbours in a direction. There is no more in the ring, from half the highest frequency up.
    peak = amplitude**2 * (size / 2) ** 4 / (size * 3 / 8) ** 2
    powers = [peak] + [peak / 4] * 4 + [peak / 16] * 4
    count = sum(round(_radius(a, b, size, size)) == 1 for a in range(size) for b in range(size))
    expected = (sum(math.log(power + 1 / 12) for power in powers) + (count - 9) * math.log(1 / 12)) / count
    np.testing.assert_allclose(radial_spectrum(board[None, ..., None], bins=1), [[expected]], rtol=1e-4)


def test_white_noise_has_its_variance_in_every_ring():
    noise = np.rint(np.random.default_rng(0).normal(128, 20, (400, 32, 48, 1))).astype(np.uint8)
    found = radial_spectrum(noise).mean(axis=0)
    assert found.shape == (16,)
    # Powers are exponential variables, and the mean logarithm of one is Euler's constant below that of its mean.
    np.testing.assert_allclose(found[:12], math.log(400) - np.euler_gamma, atol=0.05)


def test_a_constant_image_has_the_power_of_the_rounding():
    np.testing.assert_allclose(radial_spectrum(np.full((1, 18, 18, 1), 93, np.uint8)), np.full((1, 9), math.log(1 / 12)), rtol=1e-6)


@pytest.mark.parametrize("size", range(4, 40))
def test_as_many_rings_as_half_the_shorter_side_are_never_empty(size):
    for height, width in ((size, size), (size, size + 7), (size + 20, size)):
        assert np.isfinite(radial_spectrum(np.zeros((1, height, width, 1), np.uint8))).all()


@pytest.mark.parametrize("bins", [10, -1])
def test_more_rings_than_frequencies_are_refused(bins):
    with pytest.raises(ValueError, match=f"features.bins={bins}: use at most 9 for images of 27x18 pixels, or 0"):
        radial_spectrum(np.zeros((1, 18, 27, 1), np.uint8), bins=bins)
