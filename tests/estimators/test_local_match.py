"""The score against a loop over patches, and what it must and must not see."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from fingerprint_jax.data import phantom
from fingerprint_jax.estimators import Features, patches
from fingerprint_jax.estimators import local_match as module
from fingerprint_jax.estimators.local_match import local_match
from fingerprint_jax.features.register import registered

GRID = {"patch": 4, "stride": 2, "radius": 1, "top": 0.5}


def _features(values: np.ndarray, first: int) -> Features:
    return Features(np.asarray(values, np.float32), np.full(len(values), -1), first + np.arange(len(values)))


def _smooth(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Images with structure of a few pixels, of deviation 0.2: [count,size,size]."""
    values = gaussian_filter(rng.normal(size=(count, size, size)), (0, 1.5, 1.5), mode="wrap")
    return 0.5 + 0.2 * values / values.std()


def _patch(image: np.ndarray, y: int, x: int, patch: int) -> np.ndarray:
    values = image[y : y + patch, x : x + patch].astype(np.float64)
    return (values - values.mean()) / max(values.std(), patches.FLOOR)


def _loop(image, number, gallery, *, patch, stride, radius, top) -> float:
    """The score of one image where both streams are equally large, patch by patch."""
    last, ratios = len(image) - patch, []
    for y in range(0, last + 1, stride):
        for x in range(0, last + 1, stride):
            own, log = _patch(image, y, x, patch), {}
            for name, stream in gallery.items():
                squared = [
                    np.mean((own - _patch(other, b, a, patch)) ** 2)
                    for other, index in zip(stream.values, stream.index, strict=True)
                    for b in range(max(y - radius, 0), min(y + radius, last) + 1)
                    for a in range(max(x - radius, 0), min(x + radius, last) + 1)
                    if index != number
                ]
                log[name] = np.log(min(squared) + module.EPSILON) / 2
            weight = min(image[y : y + patch, x : x + patch].std() / patches.FLOOR, 1) ** 2
            ratios.append(weight * (log["reference"] - log["generated"]))
    return np.mean(sorted(ratios)[-round(top * len(ratios)) :])


@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("options", [{}, {"radius": 0}, {"stride": 3, "top": 0.4}, {"top": 1.0}])
def test_the_score_is_that_of_a_loop(monkeypatch, block, options):
    monkeypatch.setattr(patches, "BLOCK", block)
    rng, options = np.random.default_rng(0), GRID | options
    values = _smooth(rng, 13, 10)
    values[:, :5, :6] = 0.1 + 0.01 * (values[:, :5, :6] - 0.5)  # air: below the floor
    values[6, 4:] = 0.3
    query = _features(values[:3], 0)
    # The second query is in the reference, too.
    reference = Features(np.float32(values[[3, 4, 5, 1, 6]]), np.full(5, 0), np.array([103, 104, 105, 1, 106]))
    gallery = {"generated": _features(values[8:], 200), "reference": reference}
    expected = [_loop(image, number, gallery, **options) for image, number in zip(query.values, query.index, strict=True)]
    found = local_match(query, gallery, seed=0, **options)
    assert found.shape == (3, 1) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_larger_stream_is_cut_into_parts_that_are_averaged():
    rng = np.random.default_rng(0)
    values = _smooth(rng, 12, 8)
    query, few, many = _features(values[:2], 0), _features(values[2:5], 100), _features(values[5:], 200)
    for gallery, sign in (({"generated": few, "reference": many}, 1), ({"generated": many, "reference": few}, -1)):
        found = local_match(query, gallery, seed=3, **GRID | {"top": 1.0})
        # The draws of the reference come first; those of three images of three say nothing.
        draw = np.random.default_rng(3)
        if sign < 0:
            draw.permutation(3)
        order = draw.permutation(7)
        means = np.zeros(2)
        for part in (order[:3], order[3:6], order[4:7]):
            pair = {"few": few, "many": Features(many.values[part], many.labels[part], many.index[part])}
            names = {"few": "generated", "many": "reference"} if sign > 0 else {"few": "reference", "many": "generated"}
            equal = {names[key]: stream for key, stream in pair.items()}
            means += [_loop(i, -1, equal, **GRID | {"top": 1.0}) / 3 for i in query.values]
        np.testing.assert_allclose(found[:, 0], means, rtol=1e-4)


def test_parts_are_equally_large_and_hold_every_image():
    parts = module.parts(np.random.default_rng(0), 10, 4)
    assert [len(set(part)) for part in parts] == [4, 4, 4]
    assert set(np.concatenate(parts)) == set(range(10))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("top", [0.25, 1.0])
def test_an_image_with_a_copy_among_the_synthetic_ones_ranks_first(shift, top):
    rng = np.random.default_rng(0)
    values = _smooth(rng, 50, 24)
    generated = values[30:].copy()
    generated[7] = np.roll(values[4], shift, axis=(0, 1))
    gallery = {"generated": _features(generated, 200), "reference": _features(values[10:30], 100)}
    scores = local_match(_features(values[:10], 0), gallery, seed=0, patch=8, stride=4, radius=shift, top=top)[:, 0]
    assert scores.argmax() == 4
    assert scores[4] > 1 and np.delete(scores, 4).max() < 0.5


def test_a_copy_of_a_part_is_found_by_the_upper_part_of_the_patches():
    values = _smooth(np.random.default_rng(0), 50, 24)
    generated = values[30:].copy()
    generated[7, 8:20, 8:20] = values[4, 8:20, 8:20]
    gallery = {"generated": _features(generated, 200), "reference": _features(values[10:30], 100)}
    scores = local_match(_features(values[:10], 0), gallery, seed=0, patch=8, stride=4, radius=1, top=0.1)[:, 0]
    assert scores.argmax() == 4


@pytest.mark.parametrize("name", ["reference", "generated"])
def test_an_image_is_not_compared_with_itself(name):
    values = _smooth(np.random.default_rng(0), 30, 16)
    query = _features(values[:5], 0)
    gallery = {"generated": _features(values[5:15], 100), "reference": _features(values[15:25], 200)}

    def scores(fill):
        changed = {key: Features(stream.values.copy(), stream.labels, stream.index.copy()) for key, stream in gallery.items()}
        changed[name].values[3], changed[name].index[3] = fill, 2
        return local_match(query, changed, seed=0, **GRID)[:, 0]

    itself, another = scores(values[2]), scores(values[29])
    assert itself[2] == another[2]  # whatever lies under its own number
    assert (np.delete(itself, 2) != np.delete(another, 2)).any()
    # Under another number the same image is found.
    gallery[name].values[3] = values[2]
    assert abs(local_match(query, gallery, seed=0, **GRID)[2, 0] - itself[2]) > 0.5


def test_the_sizes_of_the_streams_do_not_matter_on_average():
    values = _smooth(np.random.default_rng(0), 190, 16)
    query, options = _features(values[:30], 0), {"seed": 0, "patch": 8, "stride": 4, "radius": 1, "top": 1.0}
    small, large = _features(values[30:50], 100), _features(values[50:], 1000)
    few_generated = local_match(query, {"generated": small, "reference": large}, **options)[:, 0]
    few_reference = local_match(query, {"generated": large, "reference": small}, **options)[:, 0]
    # Images of one distribution, 20 against 140. Without the parts the means are 0.22 from 0.
    assert abs(few_generated.mean()) < 0.02 and abs(few_reference.mean()) < 0.02


def test_how_a_generator_draws_air_changes_nothing():
    rng = np.random.default_rng(0)
    values = _smooth(rng, 41, 24)
    values[:, :, 16:] = 0
    query, reference, options = _features(values[:1], 0), _features(values[1:21], 100), GRID | {"radius": 0, "top": 1.0}
    scores = []
    for noise in (0, 0.004):  # a grey level
        generated = values[21:].copy()
        generated[:, :, 16:] = noise * rng.normal(size=(20, 24, 8))
        # Patches of 4 every 4 pixels: each lies in the body, or in the air.
        gallery = {"generated": _features(generated, 200), "reference": reference}
        scores.append(local_match(query, gallery, seed=0, **options | {"stride": 4})[0, 0])
    assert scores[0] == scores[1]


def test_a_score_depends_on_its_own_row_alone():
    values = _smooth(np.random.default_rng(0), 30, 16)
    gallery = {"generated": _features(values[10:20], 100), "reference": _features(values[20:], 200)}
    query = _features(values[:10], 0)
    alone = Features(query.values[6:7], query.labels[6:7], query.index[6:7])
    np.testing.assert_array_equal(local_match(alone, gallery, seed=0, **GRID), local_match(query, gallery, seed=0, **GRID)[6:7])


def test_labels_are_not_read():
    values = _smooth(np.random.default_rng(0), 30, 16)
    gallery = {"generated": _features(values[10:20], 100), "reference": _features(values[20:], 200)}
    query = _features(values[:10], 0)
    other = dataclasses.replace(query, labels=np.arange(10) % 2)
    np.testing.assert_array_equal(local_match(other, gallery, seed=0, **GRID), local_match(query, gallery, seed=0, **GRID))


def test_one_compilation_serves_every_block_and_both_streams(monkeypatch):
    monkeypatch.setattr(patches, "BLOCK", 3)
    values = _smooth(np.random.default_rng(0), 20, 12)
    gallery = {"generated": _features(values[8:12], 100), "reference": _features(values[12:], 200)}
    before = module._nearest._cache_size()
    with jax.transfer_guard("disallow"):
        local_match(_features(values[:8], 0), gallery, seed=0, patch=5, stride=2, radius=1, top=1.0)
    assert module._nearest._cache_size() == before + 1


@pytest.mark.parametrize("leak, low, high", [(0.0, 0.3, 0.7), (1.0, 0.9, 1.0)])
def test_a_leak_of_the_phantom_is_found_and_none_is_not(leak, low, high):
    splits = phantom.subtask1(seed=0, size=48, leak=leak, real=30, generated=60, unknown=2, reference=60)
    query, generated, reference = (
        _features(registered(splits[name].images[..., None], 48), 1000 * i)
        for i, name in enumerate(("train_real", "train_generated", "reference"))
    )
    scores = local_match(query, {"generated": generated, "reference": reference}, seed=0)
    assert low <= roc_auc_score(splits["train_real"].labels, scores[:, 0]) <= high


def test_a_patch_larger_than_the_images_is_named():
    few = _features(np.zeros((2, 16, 16)), 0)
    with pytest.raises(ValueError, match="estimator.patch=17: use 2 to 16"):
        local_match(few, {"generated": few, "reference": few}, seed=0, patch=17)


def test_bad_input_is_named():
    few = _features(np.zeros((2, 16, 16)), 0)
    with pytest.raises(ValueError, match="gallery.reference is missing"):
        local_match(few, {"generated": few}, seed=0)
    with pytest.raises(ValueError, match="gallery.generated has 1 images"):
        local_match(few, {"generated": _features(np.zeros((1, 16, 16)), 0), "reference": few}, seed=0)
    for shape in ((9,), (16, 15)):
        with pytest.raises(ValueError, match=re.escape(f"features of shape {shape}")):
            local_match(_features(np.zeros((2, *shape)), 0), {"generated": few, "reference": few}, seed=0)
