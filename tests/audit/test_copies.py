"""Copies: distances by a slow loop, p-values and the false discovery rate by their definitions, and what they see through."""

import io

import numpy as np
import pytest
from PIL import Image

from fingerprint_jax.audit import copies
from fingerprint_jax.data import phantom

RNG = np.random.default_rng(0)


def slow(query, others):
    """Distances [N,G] by numpy's correlation, a loop over pairs and windows."""
    s = copies.SHIFT
    height, width = query.shape[1:]
    out = np.empty((len(query), len(others)))
    for i, a in enumerate(query):
        for j, b in enumerate(others):
            best = -1.0
            for y in range(2 * s + 1):
                for x in range(2 * s + 1):
                    window = b[y : y + height - 2 * s, x : x + width - 2 * s]
                    best = max(best, np.corrcoef(a[s:-s, s:-s].ravel(), window.ravel())[0, 1])
            out[i, j] = np.sqrt(2 - 2 * best)
    return out


@pytest.mark.parametrize("shape", [(9, 9), (8, 11)])
def test_the_nearest_is_that_of_a_loop_over_pairs_and_windows(shape, monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", 4)  # several blocks, both sides
    a, b = (RNG.integers(0, 256, (n, *shape)).astype(np.uint8) for n in (5, 11))
    distance, position = copies.nearest(a, b)
    expected = slow(a, b)
    np.testing.assert_array_equal(position, expected.argmin(axis=1))
    np.testing.assert_allclose(distance, expected.min(axis=1), rtol=1e-4)
    marks = np.array([0, 0, 1, 1, 2])
    distance, _ = copies.nearest(a, a, marks, marks)
    expected = slow(a, a)
    expected[marks[:, None] == marks] = np.inf
    np.testing.assert_allclose(distance, expected.min(axis=1), rtol=1e-4)


def test_a_constant_image_is_near_to_nothing():
    flat = np.full((1, 9, 9), 7, np.uint8)
    distance, _ = copies.nearest(flat, np.concatenate([flat, RNG.integers(0, 256, (2, 9, 9)).astype(np.uint8)]))
    assert distance[0] == pytest.approx(np.sqrt(2))


def test_p_values_and_the_false_discovery_rate_are_as_defined(monkeypatch):
    known = {"real": [0.1, 0.25, 0.2, 0.9], "reference": [0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.9], "pair": [0.15]}
    given = iter([known["real"], known["reference"], known["pair"]])
    monkeypatch.setattr(copies, "nearest", lambda *arguments: (np.array(next(given)), np.zeros(9, int)))
    found = copies.find(*(np.zeros((n, 8, 8), np.uint8) for n in (4, 9, 1)), np.arange(9).astype(str), fdr=0.3)
    np.testing.assert_allclose(found.p, [0.1, 0.2, 0.2, 1.0])
    # Benjamini & Hochberg: the largest k whose k-th p is at most 0.3 k / 4; 0.2 <= 0.225 at k = 3.
    assert found.flagged.tolist() == [True, True, True, False] and found.closer.tolist() == [True, False, False, False]
    assert found.smallest_p == 0.1 and found.fewest == 2  # 0.1 <= 0.3 * 2 / 4


def test_too_small_a_reference_can_find_nothing():
    images = RNG.integers(0, 256, (6, 8, 8)).astype(np.uint8)
    found = copies.find(images[:3], images[3:], images[:3], np.arange(3).astype(str))
    assert found.fewest == 4 and found.smallest_p == 0.25 and not found.flagged.any() and found.closer.all()


def shifted(image, down, across):
    padded = np.pad(image, 2, mode="edge")
    return padded[2 + down : 2 + down + image.shape[0], 2 + across : 2 + across + image.shape[1]]


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return np.asarray(Image.open(buffer))


@pytest.fixture(scope="module")
def unused():
    """Phantoms of 32 px without a leak: 60 real, 300 reference and 150 synthetic ones."""
    splits = phantom.subtask1(5, 32, 0.0, real=30, generated=100, unknown=2, reference=300, slices=1)
    generated = np.concatenate([splits[name].images for name in ("train_generated", "test_generated")])
    return splits["train_real"].images, splits["reference"], generated


def test_six_planted_copies_are_named_and_nothing_else(unused):
    real, reference, generated = unused
    planted = generated.copy()
    planted[[3, 50, 120]] = real[[2, 20, 40]]
    for place, i, shift in ((7, 5, (2, -1)), (8, 6, (-2, 2)), (9, 55, (0, 1))):
        planted[place] = shifted(real[i], *shift)
    found = copies.find(real, reference.images, planted, reference.groups)
    assert np.flatnonzero(found.flagged).tolist() == [2, 5, 6, 20, 40, 55]
    assert found.match[[2, 5, 6, 20, 40, 55]].tolist() == [3, 7, 8, 50, 120, 9]
    assert found.closer[found.flagged].all() and found.distance[2] < 1e-3
    assert not copies.find(real, reference.images, generated, reference.groups).flagged.any()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.clip(0.8 * x + 25, 0, 255).astype(np.uint8),
        lambda x: np.clip(1.2 * x.astype(float) - 10, 0, 255).astype(np.uint8),
        jpeg,
    ],
)
def test_brightness_contrast_and_re_encoding_hide_no_copy(unused, change):
    real, reference, generated = unused
    planted = generated.copy()
    for place, i in enumerate(range(0, 60, 10)):
        planted[place] = change(real[i])
    found = copies.find(real, reference.images, planted, reference.groups)
    assert np.flatnonzero(found.flagged).tolist() == list(range(0, 60, 10))


def test_two_images_of_a_patient_do_not_count_as_a_close_pair():
    reference = RNG.integers(0, 256, (6, 8, 8)).astype(np.uint8)
    reference[1] = reference[0]
    alone = copies.find(reference[:1], reference, reference[2:], np.array(list("abcdef")))
    together = copies.find(reference[:1], reference, reference[2:], np.array(list("aacdef")))
    assert alone.closest_reference_pair < 1e-3 < together.closest_reference_pair
