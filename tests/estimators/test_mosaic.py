"""Votes against a loop over patches, and what they must and must not see."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from fingerprint_jax import methods
from fingerprint_jax.data import phantom
from fingerprint_jax.estimators import Features, mosaic, patches
from fingerprint_jax.features.register import registered
from tests.conftest import load_config
from tests.estimators.test_local_match import _features, _patch, _smooth

GRID = {"patch": 4, "stride": 3, "radius": 1, "width": 0.5}


def _distances(query, others, *, patch, stride, radius, **_) -> np.ndarray:
    """Squared distances [K,N] of the patches of one image to the nearest of each other image, patch by patch."""
    last, found = len(query) - patch, []
    for y in range(0, last + 1, stride):
        for x in range(0, last + 1, stride):
            near = [
                [
                    np.mean((_patch(query, y, x, patch) - _patch(other, b, a, patch)) ** 2)
                    for b in range(max(y - radius, 0), min(y + radius, last) + 1)
                    for a in range(max(x - radius, 0), min(x + radius, last) + 1)
                ]
                for other in others
            ]
            found.append(np.min(near, axis=1))
    return np.array(found)


def _mean_vote(number, asking, among) -> float:
    """The mean vote of the patches of some images, itself left out, for one of the images that they vote among."""
    shares = []
    for value, index in zip(asking.values, asking.index, strict=True):
        if index != number:
            others = among.index != index
            near = softmax(-_distances(value, among.values[others], **GRID) / (2 * GRID["width"] ** 2), axis=1)
            shares.append(near[:, among.index[others] == number])
    return float(np.mean(shares))


@pytest.mark.parametrize("block", [3, 128])
def test_the_score_is_that_of_a_loop(block, monkeypatch):
    monkeypatch.setattr(patches, "BLOCK", block)
    values = np.float32(_smooth(np.random.default_rng(0), 18, 10))
    query = _features(values[:3], 0)
    # The second query is in the reference, the third among the synthetic ones, the first among the rivals.
    reference = Features(values[[3, 4, 5, 1, 6]], np.full(5, 0), np.array([103, 104, 105, 1, 106]))
    generated = Features(values[[8, 9, 10, 2]], np.full(4, -1), np.array([208, 209, 210, 2]))
    rivals = Features(values[[0, 16, 17]], np.full(3, -1), np.array([0, 316, 317]))
    found = mosaic.mosaic(query, {"generated": generated, "reference": reference, "rivals": rivals}, seed=5, **GRID)
    expected = np.zeros(3)
    sides = np.array_split(np.random.default_rng(5).permutation(5), 2)
    for half, asking in (sides, sides[::-1]):
        index = np.unique(np.concatenate([query.index, rivals.index, reference.index[half]]))
        all_of_them = {i: v for part in (query, rivals, reference) for i, v in zip(part.index, part.values, strict=True)}
        among = Features(np.stack([all_of_them[i] for i in index]), np.full(len(index), -1), index)
        real = Features(reference.values[asking], reference.labels[asking], reference.index[asking])
        least = mosaic.GAIN / len(index)
        for i in range(3):
            votes = [_mean_vote(query.index[i], side, among) for side in (generated, real)]
            expected[i] += (np.log(votes[0] + least) - np.log(votes[1] + least)) / 2
    assert found.shape == (3, 1) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [3, 128])
def test_the_votes_for_sets_are_those_of_a_loop(block, monkeypatch):
    monkeypatch.setattr(patches, "BLOCK", block)
    values = np.float32(_smooth(np.random.default_rng(1), 12, 10))
    labels = np.array([0, 2, 1, 0, 1, 2, 0, 1])
    labelled, query = Features(values[4:], labels, 100 + np.arange(8)), _features(values[:4], 0)
    found = mosaic.mosaic_sets(query, {"labelled": labelled}, seed=0, **GRID)
    for i in range(4):
        near = np.exp(-_distances(query.values[i], labelled.values, **GRID) / (2 * GRID["width"] ** 2))
        sets = np.stack([near[:, labels == k].mean(axis=1) for k in range(3)], axis=1)
        np.testing.assert_allclose(found[i], (sets / sets.sum(axis=1, keepdims=True)).mean(axis=0), rtol=1e-3)
    two = Features(values[4:], labels % 2, labelled.index)
    assert mosaic.mosaic_sets(query, {"labelled": two}, seed=0, **GRID).shape == (4, 1)


def test_the_image_that_copies_were_made_of_ranks_first():
    values = np.float32(_smooth(np.random.default_rng(0), 60, 24))
    generated, grid = values[40:].copy(), {"seed": 0, "patch": 8, "stride": 4, "radius": 0}
    generated[5:9] = values[4]
    gallery = {"generated": _features(generated, 200), "reference": _features(values[10:40], 100)}
    assert mosaic.mosaic(_features(values[:10], 0), gallery, **grid)[:, 0].argmax() == 4
    labelled = {"labelled": Features(values[:10], np.arange(10), np.arange(100, 110))}
    assert mosaic.mosaic_sets(_features(generated[7:8], 0), labelled, **grid).argmax() == 4


def test_no_label_is_read_and_that_the_images_compete_is_said():
    values = _smooth(np.random.default_rng(0), 40, 16)
    gallery = {"generated": _features(values[10:20], 100), "reference": _features(values[20:], 200)}
    query = _features(values[:10], 0)
    whole = mosaic.mosaic(query, gallery, seed=0, **GRID)
    other = dataclasses.replace(query, labels=np.arange(10) % 2)
    np.testing.assert_array_equal(mosaic.mosaic(other, gallery, seed=0, **GRID), whole)
    alone = Features(query.values[6:7], query.labels[6:7], query.index[6:7])
    assert (mosaic.mosaic(alone, gallery, seed=0, **GRID) != whole[6:7]).any()
    for path, why in (("configs/subtask1/mosaic.py", ["estimator.name='mosaic': the images"]), ("configs/subtask1/domias.py", [])):
        found = methods.transductive(load_config(path, "").member)
        assert len(found) == len(why) and all(text.startswith(start) for text, start in zip(found, why, strict=True))


def test_images_of_other_data_stand_beside_the_run_own():
    values = _smooth(np.random.default_rng(0), 40, 16)
    gallery = {"generated": _features(values[10:20], 100), "reference": _features(values[20:], 200)}
    query = _features(values[:10], 0)
    elsewhere = dataclasses.replace(query, index=np.full(10, -1))
    found = [mosaic.mosaic(each, gallery, seed=0, **GRID) for each in (query, elsewhere)]
    np.testing.assert_array_equal(*found)


def test_without_a_leak_neither_side_votes_more():
    values = _smooth(np.random.default_rng(3), 160, 16)
    gallery = {"generated": _features(values[40:100], 100), "reference": _features(values[100:], 200)}
    scores = mosaic.mosaic(_features(values[:40], 0), gallery, seed=0, patch=8, stride=4, width=0.5)[:, 0]
    assert abs(scores.mean()) < 2 * scores.std() / np.sqrt(40) + 0.05


def test_two_programs_serve_all_blocks(monkeypatch):
    monkeypatch.setattr(patches, "BLOCK", 3)
    values = _smooth(np.random.default_rng(0), 24, 12)
    gallery = {"generated": _features(values[8:12], 100), "reference": _features(values[12:], 200)}
    before = mosaic._logs._cache_size(), mosaic._weights._cache_size()
    with jax.transfer_guard("disallow"):
        mosaic.mosaic(_features(values[:8], 0), gallery, seed=0, patch=5, stride=2, radius=1, width=0.1)
    assert (mosaic._logs._cache_size(), mosaic._weights._cache_size()) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("leak, low, high", [(0.0, 0.3, 0.7), (0.3, 0.75, 1.0)])
def test_a_leak_of_the_phantom_is_found_and_none_is_not(leak, low, high, monkeypatch):
    monkeypatch.setattr(patches, "BLOCK", 64)
    splits = phantom.subtask1(seed=4, size=48, leak=leak, real=60, generated=120, unknown=2, reference=120)
    query, generated, reference = (
        _features(registered(splits[name].images[..., None], 48), 1000 * i)
        for i, name in enumerate(("train_real", "train_generated", "reference"))
    )
    scores = mosaic.mosaic(query, {"generated": generated, "reference": reference}, seed=0)
    assert low <= roc_auc_score(splits["train_real"].labels, scores[:, 0]) <= high


def test_bad_input_is_named():
    few = _features(np.zeros((3, 16, 16)), 0)
    with pytest.raises(ValueError, match="gallery.reference is missing"):
        mosaic.mosaic(few, {"generated": few}, seed=0)
    with pytest.raises(ValueError, match="gallery.reference has 3 images: mosaic needs at least 4"):
        mosaic.mosaic(few, {"generated": few, "reference": few}, seed=0)
    many = _features(np.zeros((4, 16, 16)), 0)
    with pytest.raises(ValueError, match="estimator.patch=17: use 2 to 16"):
        mosaic.mosaic(many, {"generated": many, "reference": many}, seed=0, patch=17)
    with pytest.raises(ValueError, match=re.escape("features of shape (9,): mosaic_sets needs square images")):
        mosaic.mosaic_sets(
            _features(np.zeros((2, 9)), 0), {"labelled": Features(np.zeros((2, 9)), np.arange(2), np.arange(2))}, seed=0
        )
