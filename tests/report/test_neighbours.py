"""Nearest images: against scipy, and that the pairs on the page are what they are said to be."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fingerprint_jax import methods
from fingerprint_jax.data.source import Rows
from fingerprint_jax.evaluation import decide
from fingerprint_jax.report import neighbours
from fingerprint_jax.training import inference


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_nearest_is_that_of_scipy(block):
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(100, 1, (n, 16)).astype(np.float32) for n in (50, 130))
    query[3] = gallery[77] + np.float32(1e-3)  # almost one image, far from the origin
    distance = cdist(query, gallery)
    index, found = neighbours.nearest(query, gallery, block)
    np.testing.assert_array_equal(index, distance.argmin(axis=1))
    np.testing.assert_allclose(found, distance.min(axis=1), rtol=1e-6)


def look_alikes(run, split):
    predictions, rows = methods.predict(run, split), run.rows(split)
    decided = decide.decide(run, split, predictions)
    return rows, neighbours.look_alikes(run, split, rows, predictions, decided, run.source.summary["classes"])


def test_pairs_of_membership_are_the_nearest_and_of_one_rank(membership):
    rows, found = look_alikes(membership, "heldout")
    encoder = methods.network(membership)
    assert encoder.workdir.name == "fold0-seed0" and "20 of 40 images" in found.space

    state = inference.restore(encoder)[1]
    unseen = encoder.rows("heldout")
    synthetic = Rows.concatenate([membership.rows("train_generated"), membership.rows("test_generated")])
    reference = membership.rows("reference")
    gallery = inference.encode(encoder, state, synthetic)["embedding"]
    mine, theirs = (cdist(inference.encode(encoder, state, r)["embedding"], gallery) for r in (unseen, reference))
    ranks = mine.min(axis=1).argsort().argsort()
    for (query, nearest, _), (other, others_nearest, _) in [[pair.pictures for pair in case] for case in found.cases]:
        i = unseen.ids.tolist().index(query.caption)
        assert nearest.caption.startswith(synthetic.ids[mine[i].argmin()] + ", at ")
        j = reference.ids.tolist().index(other.caption)
        assert others_nearest.caption.startswith(synthetic.ids[theirs[j].argmin()] + ", at ")
        # As large a share of the 30 references is nearer as of the 20 images.
        assert theirs.min(axis=1).argsort().argsort()[j] == int((ranks[i] + 0.5) / 20 * 30)
    assert [name for name, _, _ in found.distances] == ["used", "not used", "reference images, not used"]


def test_without_a_reference_the_page_says_so(membership, monkeypatch):
    monkeypatch.setattr(membership.source, "splits", [s for s in membership.source.splits if s != "reference"])
    _, found = look_alikes(membership, "heldout")
    assert "has no split reference" in found.missing and all(len(case) == 1 for case in found.cases)


def test_pixels_stand_in_where_there_is_no_embedding(membership, monkeypatch):
    monkeypatch.setattr(inference, "outputs", lambda run, rows, source: {"error": np.zeros(len(rows))})
    _, found = look_alikes(membership, "heldout")
    assert "pixels, averaged" in found.space and len(found.cases) == 4


def test_large_pictures_are_made_smaller():
    assert neighbours._shrink(np.zeros((300, 600), np.uint8)).shape == (128, 256)
