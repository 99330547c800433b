"""Attacks of the literature against scikit-learn and their definitions; planted copies; a query in its own reference."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity

from fingerprint_jax import estimators
from fingerprint_jax.estimators import membership
from tests.estimators.streams import join, rows, take


def _draw(queries=8, generated=60, reference=25, dimensions=5, seed=0):
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=(n, dimensions)) for n in (queries, generated, reference)]
    query, generated, reference = (rows(x, first=1000 * i) for i, x in enumerate(values))
    return query, {"generated": generated, "reference": reference}


@pytest.mark.parametrize(("size", "subset", "k"), [(6, 3, 1), (6, 3, 2), (7, 2, 2), (5, 5, 3), (1, 1, 1), (9, 1, 1)])
def test_the_weights_are_the_mean_over_all_subsets(size, subset, k):
    distances = np.sort(np.random.default_rng(size).uniform(size=size))
    expected = np.mean([np.mean(distances[list(chosen)][:k]) for chosen in itertools.combinations(range(size), subset)])
    weights = membership.subset_weights(size, subset, k)
    np.testing.assert_allclose(weights @ distances[: len(weights)], expected, rtol=1e-5)


def test_the_weights_are_cut_where_nothing_is_left():
    weights = membership.subset_weights(7000, 200, 1)
    np.testing.assert_allclose(weights[:3], 200 / 7000 * np.array([1, 6800 / 6999, 6800 * 6799 / 6999 / 6998]), rtol=1e-5)
    assert len(weights) < 600 and np.isclose(weights.sum(), 1)


@pytest.mark.parametrize("k", [1, 3])
def test_gan_leaks_is_the_distance_to_the_nearest_against_that_to_as_many_references(k):
    query, gallery = _draw()
    near, far = (np.sort(cdist(query.values, gallery[s].values), axis=1) for s in ("generated", "reference"))
    bare = estimators.get("gan_leaks", k=k, calibrated=False)(query, gallery, seed=0)
    np.testing.assert_allclose(bare[:, 0], -near[:, :k].mean(axis=1), rtol=1e-5)
    # The generated images are more: their distance is the mean over random subsets of 25.
    rng = np.random.default_rng(1)
    draws = [np.sort(rng.permuted(near, axis=1)[:, :25], axis=1)[:, :k].mean(axis=1) for _ in range(4000)]
    found = estimators.get("gan_leaks", k=k)(query, gallery, seed=0)
    np.testing.assert_allclose(found[:, 0], far[:, :k].mean(axis=1) - np.mean(draws, axis=0), atol=0.03)
    # The same the other way round.
    swapped = {"generated": gallery["reference"], "reference": gallery["generated"]}
    np.testing.assert_allclose(estimators.get("gan_leaks", k=k)(query, swapped, seed=0), -found, rtol=1e-4, atol=1e-6)


def test_sets_of_one_distribution_are_as_near_whatever_their_sizes():
    query, gallery = _draw(queries=400, generated=1500, reference=60)
    found = estimators.get("gan_leaks")(query, gallery, seed=0)[:, 0]
    assert abs(found.mean()) < 0.05
    plain = [cdist(query.values, gallery[s].values).min(axis=1).mean() for s in ("reference", "generated")]
    assert plain[0] - plain[1] > 0.3  # what a difference of the sizes alone would be taken for


def test_monte_carlo_counts_within_the_median_of_the_known_rows():
    query, gallery = _draw()
    known = gallery | {"labelled": rows(np.random.default_rng(3).normal(size=(10, 5)), np.resize([0, 1], 10), first=5000)}
    distances = cdist(query.values, gallery["generated"].values)
    for streams in (["reference"], ["labelled"], ["reference", "labelled"]):
        least = np.concatenate([cdist(known[s].values, gallery["generated"].values).min(axis=1) for s in streams])
        expected = np.mean(distances <= np.median(least), axis=1)
        given = {s: known[s] for s in ("generated", *streams)}
        np.testing.assert_allclose(estimators.get("monte_carlo")(query, given, seed=0)[:, 0], expected, rtol=1e-6)
    assert 0 < expected.mean() < 0.5
    # A row in both streams counts once.
    once = estimators.get("monte_carlo")(query, gallery, seed=0)
    far = np.argsort(cdist(gallery["reference"].values, gallery["generated"].values).min(axis=1))[-12:]
    twice = gallery | {"labelled": take(gallery["reference"], far)}
    np.testing.assert_array_equal(estimators.get("monte_carlo")(query, twice, seed=0), once)


@pytest.mark.parametrize("components", [2, 16])
def test_domias_is_a_ratio_of_two_kernel_densities(components):
    query, gallery = _draw()
    x = gallery["generated"].values.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    pca = PCA(min(components, 5)).fit((x - mean) / deviation)
    project = lambda values: pca.transform((values - mean) / deviation) / np.sqrt(pca.explained_variance_)  # noqa: E731
    bandwidth = 25 ** (-1 / (pca.n_components_ + 4))
    logs = [
        KernelDensity(bandwidth=bandwidth).fit(project(gallery[s].values)).score_samples(project(query.values))
        for s in ("generated", "reference")
    ]
    scott = KernelDensity(bandwidth="scott").fit(project(gallery["reference"].values))
    np.testing.assert_allclose(scott.score_samples(project(query.values)), logs[1], rtol=1e-6)
    found = estimators.get("domias", components=components)(query, gallery, seed=0)
    np.testing.assert_allclose(found[:, 0], logs[0] - logs[1], rtol=1e-3, atol=1e-4)


def test_logan_scores_by_the_classifiers_that_did_not_see_the_query():
    query, gallery = _draw(reference=20)
    generated, reference = gallery["generated"], gallery["reference"]
    fold = np.random.default_rng(7).permutation(20) % 5
    logits = []
    for number in range(5):
        x = np.concatenate([generated.values, reference.values[fold != number]]).astype(np.float64)
        y = np.repeat([1, 0], [60, 16])
        weight = np.where(y, 76 / 2 / 60, 76 / 2 / 16)
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        model = LogisticRegression(C=0.1).fit((x - mean) / deviation, y, sample_weight=weight)
        logits.append(model.decision_function((np.concatenate([query.values, reference.values]) - mean) / deviation))
    logits = np.stack(logits, axis=1)
    expected = np.concatenate([logits[:8].mean(axis=1), logits[8:][np.arange(20), fold]])
    asked = join(query, reference)
    order = np.random.default_rng(0).permutation(28)
    found = estimators.get("logan_d1", C=0.1)(take(asked, order), gallery, seed=7)
    np.testing.assert_allclose(found[:, 0], expected[order], rtol=1e-3, atol=1e-4)


DISTANCE_ATTACKS = [
    ("gan_leaks", {}),
    ("gan_leaks", {"calibrated": False}),
    ("gan_leaks", {"k": 3}),
    ("monte_carlo", {}),
    ("domias", {}),
    ("similarity", {"measure": "cosine"}),
    ("similarity", {"measure": "euclidean", "readout": "knn", "k": 3}),
    ("similarity", {"measure": "jaccard"}),
    ("similarity", {"measure": "ssim"}),
]


@pytest.mark.parametrize(("name", "options"), DISTANCE_ATTACKS)
def test_a_planted_copy_has_the_highest_score(name, options):
    rng = np.random.default_rng(0)
    draw = lambda count, first: rows(rng.uniform(0, 1, (count, 16, 16)), first=first)  # noqa: E731
    query, gallery = draw(12, 0), {"generated": draw(60, 100), "reference": draw(40, 300)}
    copies = np.clip(query.values[[7] * 4] + rng.normal(0, 0.02, (4, 16, 16)), 0, 1)  # the generator repeats it
    gallery["generated"] = join(gallery["generated"], rows(copies, first=200))
    scores = estimators.get(name, **options)(query, gallery, seed=0)[:, 0]
    assert scores.argmax() == 7 and np.sum(scores == scores[7]) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [("gan_leaks", {}), ("gan_leaks", {"k": 3}), ("monte_carlo", {}), ("domias", {})],
)
@pytest.mark.parametrize("reference", [24, 25, 90])
def test_a_query_in_its_own_reference_changes_nothing(name, options, reference):
    query, gallery = _draw(reference=reference)
    estimate = estimators.get(name, **options)
    for row in range(8):
        asked = take(query, [row])
        own = gallery | {"reference": join(gallery["reference"], asked)}
        np.testing.assert_allclose(estimate(asked, own, seed=0), estimate(asked, gallery, seed=0), rtol=1e-5, atol=1e-6)
        stranger = gallery | {"reference": join(gallery["reference"], rows(asked.values, first=9000))}
        if name != "monte_carlo":  # another image of the same content is a reference like any other
            assert estimate(asked, stranger, seed=0) < estimate(asked, gallery, seed=0)
