"""Copies, against a loop over pairs and shifts, procedures worked by hand, and copies that were put there."""

import io

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr

from fingerprint_jax.audit import copies
from fingerprint_jax.data import phantom

SHIFTED = [(2, -2), (-1, 2), (-2, 0)]


def _draw(seed, count, height=11, width=9):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def _phantoms(seed, real=40, reference=200, generated=60):
    """Real, reference and synthetic images of one draw without leak."""
    splits = phantom.subtask1(
        seed=seed, size=32, leak=0.0, real=real // 2, generated=generated, unknown=2, reference=reference, slices=1
    )
    return [splits[name].images for name in ("train_real", "reference", "train_generated")]


def _expected(query, other):
    """The least distance of two images over the 25 shifts."""
    height, width = query.shape
    found = []
    for y in range(5):
        for x in range(5):
            a, b = query[2:-2, 2:-2].ravel(), other[y : height - 4 + y, x : width - 4 + x].ravel()
            found.append(2 - 2 * (pearsonr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0))
    return np.sqrt(max(0, min(found)))


def _worked(monkeypatch, distance, known, **options):
    """What `find` makes of given distances of real and reference images."""
    pairs = iter([(np.array([*distance, *known]), np.arange(len(distance) + len(known))), (np.array([0.5, 0.7]), None)])
    monkeypatch.setattr(copies, "nearest", lambda *_: next(pairs))
    return copies.find(np.zeros((len(distance), 8, 8)), np.zeros((len(known), 8, 8)), np.zeros((2, 8, 8)), **options)


@pytest.mark.parametrize("block", [1, 4, 1024])
def test_the_nearest_is_that_of_a_loop_over_pairs_and_shifts(block, monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", block)
    query, gallery = _draw(0, 7), _draw(1, 10)
    query[2], gallery[3] = 77, 201  # constant
    query[5], gallery[8] = np.where(np.arange(9) == 4, 255, 0), 255 - query[4]
    expected = np.array([[_expected(a, b) for b in gallery] for a in query])
    compiled = copies._best._cache_size()
    with jax.transfer_guard("disallow"):
        distance, match = copies.nearest(query, gallery)
    assert copies._best._cache_size() == compiled + 1
    np.testing.assert_allclose(distance, expected.min(axis=1), rtol=1e-9, atol=1e-7)
    varies = np.arange(7) != 2  # what a constant image matches is as good as any other
    np.testing.assert_array_equal(match[varies], expected.argmin(axis=1)[varies])
    assert distance[2] == np.sqrt(2)


@pytest.mark.parametrize("block", [2, 1024])
def test_pairs_of_a_group_are_left_out(block, monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", block)
    images, groups = _draw(0, 7), np.array([0, 0, 1, 2, 2, 2, 3])
    images[[1, 5]] = images[[0, 6]]
    expected = np.array([[_expected(a, b) for b in images] for a in images])
    expected[groups[:, None] == groups] = np.inf
    distance, match = copies.nearest(images, images, groups, groups)
    np.testing.assert_allclose(distance, expected.min(axis=1), rtol=1e-9, atol=1e-7)
    np.testing.assert_array_equal(match, expected.argmin(axis=1))
    distance, match = copies.nearest(images[:2], images[:2], groups[:2], groups[:2])
    assert np.isinf(distance).all() and match.tolist() == [-1, -1]


def test_large_images_are_compared_in_smaller_blocks(monkeypatch):
    monkeypatch.setattr(copies, "ELEMENTS", 3 * 99)
    shapes = []
    best = copies._best
    monkeypatch.setattr(copies, "_best", lambda *sides: shapes.extend(side[0].shape for side in sides) or best(*sides))
    copies.nearest(_draw(0, 7), _draw(1, 10))
    assert set(shapes) == {(3, 11, 9)}


def test_p_is_the_share_of_reference_images_as_near():
    known = np.array([0.3, 0.1, 0.2, 0.2, 0.4])
    p = copies.conformal_p(np.array([0.0, 0.1, 0.15, 0.2, 0.5]), known)
    np.testing.assert_allclose(p, np.array([1, 2, 2, 4, 6]) / 6)


def test_a_patient_is_its_nearest_image_on_both_sides(monkeypatch):
    """Three patients of two images, four of the reference of two: nearest images at 0.2, 0.4, 0.6, 0.8."""
    known, of = [0.2, 0.9, 0.9, 0.4, 0.6, 0.9, 0.8, 0.9], np.repeat(list("abcd"), 2)
    asked = np.array(["x", "y", "x", "z", "z", "y"])
    found = _worked(monkeypatch, [0.1, 0.3, 0.5, 0.7, 0.9, 0.1], known, groups=asked, reference_groups=of, fdr=0.31)
    np.testing.assert_allclose(found.p, np.array([1, 2, 3, 4, 5, 1]) / 5)
    # Of the patients: 1/5, 1/5 and 4/5 against 0.103, 0.207, 0.31. Two are found, each by one of its images.
    assert found.flagged.tolist() == [True, False, False, False, False, True]
    assert found.smallest_p == 1 / 5 and found.fewest == 2


def test_of_the_patients_found_all_images_are_flagged_that_would_have_been_enough(monkeypatch):
    known, of = np.arange(1.0, 100).repeat(2), np.arange(99).repeat(2)
    found = _worked(monkeypatch, [0.5, 1.5, 50.5, 50.5, 2.5, 60.5], known, groups=np.array(list("xxxyyy")), reference_groups=of)
    # Three images a patient, two a patient of the reference: two parts, so that p is twice as large. Patients: 0.02 and 0.06.
    np.testing.assert_allclose(found.p, [0.02, 0.04, 1, 1, 0.06, 1])
    assert found.flagged.tolist() == [True, False, False, False, False, False]
    found = _worked(
        monkeypatch, [0.5, 1.5, 50.5, 50.5, 2.5, 60.5], known, groups=np.array(list("xxxyyy")), reference_groups=of, fdr=0.06
    )
    assert found.flagged.tolist() == [True, True, False, False, True, False]


def _null_p(rng, images, of_reference, parts):
    """The p of a patient who was not copied, of so many images, beside 19 of the reference; `parts` as `find` takes them, or 1."""

    def nearest(count, each):
        own = rng.normal(size=(count, 1)) + rng.normal(size=(count, each))
        return own.min(axis=1)

    return min(1, parts * copies.conformal_p(nearest(1, images), nearest(19, of_reference))[0])


def test_p_is_uniform_where_nothing_is_copied():
    rng = np.random.default_rng(0)
    for images, of_reference, parts in ((1, 1, 1), (5, 5, 1), (5, 2, 3), (2, 5, 1)):
        found = np.array([_null_p(rng, images, of_reference, parts) for _ in range(2000)])
        for level in (0.05, 0.2, 0.5):
            error = 4 * np.sqrt(level * (1 - level) / 2000)
            share = np.mean(found <= level + 1e-9)
            assert share < level + error
            assert images != of_reference or share > level - error  # as many images: exact
    # The nearest of five images beside single ones, without the parts: too many small p.
    naive = np.array([_null_p(rng, 5, 1, 1) for _ in range(2000)])
    assert np.mean(naive <= 0.05) > 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_flagged_is_benjamini_and_hochberg_by_hand(monkeypatch):
    known = np.arange(1.0, 100)  # p of a distance d is (1 + floor(d)) / 100
    # Sorted p 0.01 0.02 0.03 0.51 0.99 against 0.01 0.02 0.03 0.04 0.05: the third is the last that is not above.
    found = _worked(monkeypatch, [50.5, 1.5, 0.6, 98.5, 2.5], known)
    np.testing.assert_allclose(found.p, [0.51, 0.02, 0.01, 0.99, 0.03])
    assert found.flagged.tolist() == [False, True, True, False, True]
    # 0.02 and 0.03 are above theirs, 0.03 <= 0.03 takes them along.
    found = _worked(monkeypatch, [1.5, 1.5, 2.5, 98.5, 98.5], known)
    assert found.flagged.tolist() == [True, True, True, False, False]
    found = _worked(monkeypatch, [1.5, 1.5, 2.5, 98.5, 98.5], known, fdr=0.04)
    assert not found.flagged.any()


@pytest.mark.parametrize(
    ("count", "references", "fdr", "fewest"),
    [
        (5, 99, 0.05, 1),  # 0.01 <= 0.05 / 5
        (5, 99, 0.02, 3),  # 0.01 <= 0.012
        (200, 999, 0.05, 4),
        (2, 3, 0.05, 3),  # 1/4 is above 0.05
    ],
)
def test_fewest_says_what_the_reference_can_support(count, references, fdr, fewest, monkeypatch):
    found = _worked(monkeypatch, np.zeros(count), np.ones(references), fdr=fdr)
    assert found.fewest == fewest and found.smallest_p == 1 / (references + 1)
    for together in range(1, count + 1):
        nearest = np.where(np.arange(count) < together, 0, 2)
        flagged = _worked(monkeypatch, nearest, np.ones(references), fdr=fdr).flagged
        assert flagged.any() == (together >= fewest)


def test_groups_bound_the_smallest_p(monkeypatch):
    found = _worked(monkeypatch, [0.1], [0.2, 0.3, 0.4, 0.5], reference_groups=np.array(["a", "b", "b", "a"]))
    assert found.smallest_p == 1 / 3 and found.p.tolist() == [1 / 3]


def test_the_smallest_p_counts_the_parts_of_a_patient(monkeypatch):
    """Two images a patient beside a reference patient of one: each p is doubled."""
    asked, of = np.repeat(list("xy"), 2), np.array(["a", "b", "b"])
    found = _worked(monkeypatch, [0.1, 0.1, 0.1, 0.1], [0.2, 0.3, 0.4], groups=asked, reference_groups=of)
    assert found.smallest_p == 2 / 3 and found.p.tolist() == [2 / 3] * 4


def test_verbatim_and_shifted_copies_are_named():
    real, reference, generated = _phantoms(0)
    generated[10:13] = real[[3, 17, 30]]
    generated[13:16] = [np.roll(real[i], shift, (0, 1)) for i, shift in zip((5, 21, 38), SHIFTED, strict=True)]
    found = copies.find(real, reference, generated)
    copied = [3, 5, 17, 21, 30, 38]
    assert np.flatnonzero(found.flagged).tolist() == np.flatnonzero(found.closer).tolist() == copied
    assert found.match[copied].tolist() == [10, 13, 11, 14, 12, 15]
    assert not found.distance[copied].any() and found.p[copied].tolist() == [1 / 201] * 6
    # The reference beside it, in the order of its distances.
    near, match = copies.nearest(reference, generated)
    np.testing.assert_array_equal(found.reference_distance, np.sort(near))
    np.testing.assert_array_equal(near[found.reference], found.reference_distance)
    np.testing.assert_array_equal(match[found.reference], found.reference_match)


def test_brightness_contrast_and_compression_hide_no_copy():
    def compressed(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        return np.asarray(Image.open(file))

    real, reference, generated = _phantoms(1)
    x = real.astype(float)
    generated[:3] = np.clip(x[0] + 30, 0, 255), 0.6 * x[1] + 20, 255 * (x[2] / 255) ** 0.8
    generated[3:5] = compressed(real[3]), compressed(np.roll(real[4], (-2, 1), (0, 1)))
    found = copies.find(real, reference, generated)
    assert found.flagged[:5].all() and found.flagged.sum() <= 6  # a rate is held: where there are copies, one may be none
    assert np.flatnonzero(found.closer).tolist() == list(range(5))
    assert found.match[:5].tolist() == list(range(5))


def test_without_a_copy_nothing_is_flagged():
    for seed in range(3):
        assert not copies.find(*_phantoms(seed)).flagged.any()


def test_images_of_one_patient_are_no_yardstick():
    real, reference, generated = _phantoms(0)
    generated[0], reference[1] = real[0], np.roll(reference[0], 1, axis=0)  # one slice and the next
    groups = np.arange(len(reference))
    assert not copies.find(real, reference, generated).closer.any()
    groups[1] = 0
    found = copies.find(real, reference, generated, reference_groups=groups)
    assert np.flatnonzero(found.closer).tolist() == [0] and found.closest_reference_pair > 0.1


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="images of 9x11 and 11x9 pixels: use one size"):
        copies.nearest(_draw(0, 2), _draw(0, 2, 9, 11))
    with pytest.raises(ValueError, match="of at least 6 pixels a side"):
        copies.nearest(_draw(0, 2, 5, 5), _draw(0, 2, 5, 5))
    with pytest.raises(ValueError, match="reference: 3 images of 1 patients"):
        copies.find(_draw(0, 2), _draw(1, 3), _draw(2, 2), reference_groups=np.zeros(3))
