"""Co-occurrences of the residual, against a count pixel by pixel."""

import numpy as np
import pytest
from scipy.ndimage import correlate

from fingerprint_jax.features import residual

LEVELS = 2
BINS = 2 * LEVELS + 1


def _table(features: np.ndarray, filter: int, offset: int) -> np.ndarray:
    """Frequencies [BINS,BINS] of one filter and offset: first residual, second residual."""
    return features.reshape(len(residual.FILTERS), len(residual.OFFSETS), BINS, BINS)[filter, offset] ** 2


def _kernel(weights: dict) -> np.ndarray:
    out = np.zeros((3, 3))
    for (down, across), weight in weights.items():
        out[1 + down, 1 + across] = weight
    return out


def test_pairs_are_counted_as_by_a_loop_over_pixels():
    image = np.random.default_rng(0).integers(100, 110, (9, 7)).astype(np.uint8)
    (found,) = residual.cooccurrence(image[None, ..., None], step=2.0, levels=LEVELS)
    for f, weights in enumerate(residual.FILTERS):
        filtered = correlate(image.astype(np.float64), _kernel(weights))[1:-1, 1:-1]
        codes = np.clip(np.rint(filtered / 2.0), -LEVELS, LEVELS).astype(int) + LEVELS
        height, width = codes.shape
        for o, (down, across) in enumerate(residual.OFFSETS):
            expected, count = np.zeros((BINS, BINS)), 0
            for y in range(height):
                for x in range(width):
                    if 0 <= y + down < height and 0 <= x + across < width:
                        expected[codes[y, x], codes[y + down, x + across]] += 1
                        count += 1
            np.testing.assert_allclose(_table(found, f, o), expected / count, atol=1e-6)


def test_filters_see_no_brightness_and_second_differences_no_slope():
    assert all(sum(weights.values()) == 0 for weights in residual.FILTERS)
    ramp = np.broadcast_to(10 * np.arange(8, dtype=np.uint8), (8, 8))
    (found,) = residual.cooccurrence(ramp[None, ..., None], step=10.0, levels=LEVELS)
    slope = [1, 0, 0, 0, 0, 0]  # one step a pixel, seen by the first difference across alone
    for f, code in enumerate(slope):
        for o in range(len(residual.OFFSETS)):
            expected = np.zeros((BINS, BINS))
            expected[LEVELS + code, LEVELS + code] = 1
            np.testing.assert_allclose(_table(found, f, o), expected, atol=1e-6)


def test_an_image_is_scored_alone_however_many_are_handled_at_once(monkeypatch):
    images = np.random.default_rng(1).integers(0, 255, (5, 8, 8, 1)).astype(np.uint8)
    whole = residual.cooccurrence(images, step=4.0, levels=LEVELS)
    monkeypatch.setattr(residual, "BLOCK", 2 * 8 * 8)
    np.testing.assert_array_equal(residual.cooccurrence(images, step=4.0, levels=LEVELS), whole)


def test_steps_stand_side_by_side():
    images = np.random.default_rng(2).integers(0, 255, (3, 8, 8, 1)).astype(np.uint8)
    expected = [residual.cooccurrence(images, step=step, levels=LEVELS) for step in (2.0, 4.0)]
    np.testing.assert_array_equal(residual.features(images, steps=(2.0, 4.0), levels=LEVELS), np.concatenate(expected, axis=1))
    with pytest.raises(ValueError, match=r"features.steps=\(\): use at least one step"):
        residual.features(images, steps=())
