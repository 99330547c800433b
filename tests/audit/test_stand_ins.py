"""The controls that see what the attacks see: content that is not linear is seen, and a leak of single images is not taken away."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from fingerprint_jax.audit import content, panel, stages, stand_ins, verdict
from fingerprint_jax.data import phantom
from tests.audit import content_differences


@pytest.fixture(scope="module")
def splits():
    """Phantoms of 32 px without a leak."""
    return phantom.subtask1(seed=3, size=32, leak=0.0, real=40, generated=60, unknown=2, reference=60, slices=1)


def bent(count=200, seed=0):
    """Facts [N,6] whose classes differ in the distance from 0 alone: no linear classifier sees it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6))
    return x, (np.linalg.norm(x, axis=1) < np.sqrt(5.35)).astype(int)  # the median of chi-square with 6 degrees


def test_a_bend_is_seen_by_the_kernel_and_by_no_line():
    x, labels = bent()
    groups = np.arange(len(x))
    assert roc_auc_score(labels, stand_ins.kernel(x, labels, groups, 0)) > 0.8
    assert roc_auc_score(labels, content.scores({"x": x}, labels, groups, 0)["x"]) < 0.65


def test_the_kernel_is_a_machine_that_saw_neither_the_image_nor_its_group():
    x, labels = bent(60)
    groups = np.arange(60) // 2
    labels = labels[2 * groups]
    found = stand_ins.kernel(x, labels, groups, 1)
    for train, held in content.folds(x, labels, groups, 1):
        assert not set(groups[train]) & set(groups[held])
        expected = SVC(C=1.0, kernel="rbf", gamma="scale", class_weight="balanced").fit(x[train], labels[train])
        np.testing.assert_allclose(found[held], expected.decision_function(x[held]))


def test_likeness_is_that_of_the_synthetic_images_and_cross_fitted():
    rng = np.random.default_rng(0)
    generated, reference = rng.normal(size=(80, 4)) + [2, 0, 0, 0], rng.normal(size=(90, 4))
    reference[:30] += [2, 0, 0, 0]  # a third of the reference has the content of the synthetic images
    real = np.repeat([[2.0, 0, 0, 0], [0, 0, 0, 0]], 10, axis=0)
    of_real, of_reference = stand_ins.likeness(real, generated, reference, 0)
    assert of_real[:10].min() > of_real[10:].max()
    assert roc_auc_score(np.arange(90) < 30, of_reference) > 0.75
    alike = stand_ins.most_alike(of_reference, np.arange(90))
    assert alike.sum() == 45 and alike[:30].sum() > 24
    same, _ = stand_ins.likeness(real, reference, reference, 0)
    assert np.abs(same).max() < np.abs(of_real).max()


def test_relatives_of_the_others_in_the_reference_are_seen_without_a_synthetic_image(splits):
    """Patients with two images: the reference has the second of those not used."""
    rng = np.random.default_rng(0)
    real = splits["train_real"].images
    used, others = real[:40], real[40:]
    siblings = np.clip(others.astype(int) + rng.normal(0, 3, others.shape), 0, 255).round().astype(np.uint8)
    labels = np.repeat([1, 0], 40)
    for reference, seen in ((np.concatenate([siblings, splits["reference"].images]), True), (splits["reference"].images, False)):
        found = stand_ins.apart(panel.views(np.concatenate([used, others])), panel.views(reference))
        assert set(found) == {"reference", "reference_local"}
        for name, values in found.items():
            area = roc_auc_score(labels, values)
            assert area > 0.95 if seen else 0.3 < area < 0.7, name
    # The distance to the nearest of the reference, of whole images.
    pixels, known = (panel.views(x)[0].astype(np.float64) for x in (real, splits["reference"].images))
    expected = np.sqrt(((pixels[:, None] - known[None]) ** 2).sum(axis=2)).min(axis=1)
    np.testing.assert_allclose(found["reference"], expected, rtol=1e-5)


def test_half_of_whole_groups_is_most_alike():
    groups = np.array(list("aabbccc"))
    assert stand_ins.most_alike(np.array([1.0, 3, 5, 5, 0, 9, 9]), groups).tolist() == [
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert stand_ins.most_alike(np.arange(4.0), np.arange(4)).tolist() == [False, False, True, True]


def test_sight_gives_each_kind_the_same_weight_and_no_column_more(splits):
    images = splits["train_real"].images
    seen = stand_ins.sight(images, panel.views(images))
    assert seen.shape == (80, 18 + 8 + 32)
    varies = seen.std(axis=0) > 0
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-9)
    for columns in (slice(0, 18), slice(18, 26), slice(26, 58)):
        part = seen[:, columns][:, varies[columns]]
        np.testing.assert_allclose(part.std(axis=0), 1 / np.sqrt(columns.stop - columns.start))


def test_coarse_is_the_mean_distance_to_a_fifth():
    rng = np.random.default_rng(0)
    real, generated, reference = (rng.normal(size=(n, 5)).astype(np.float32) for n in (7, 40, 40))

    def mean_of_nearest(others):
        return np.sort(np.linalg.norm(real[:, None] - others[None], axis=2), axis=1)[:, :8].mean(axis=1)

    expected = mean_of_nearest(reference) - mean_of_nearest(generated)
    np.testing.assert_allclose(stand_ins.coarse(real, generated, reference), expected, rtol=1e-5)


def test_a_few_images_that_were_kept_are_coarsely_nothing():
    """Each used image stands once among the synthetic ones: the nearest tells them without an error, a fifth of them hardly."""
    rng = np.random.default_rng(1)
    real, reference = rng.normal(size=(100, 16)).astype(np.float32), rng.normal(size=(400, 16)).astype(np.float32)
    generated = np.concatenate([real[:50], rng.normal(size=(350, 16))]).astype(np.float32)
    labels = np.arange(100) < 50
    assert roc_auc_score(labels, stand_ins.coarse(real, generated, reference)) < 0.65
    assert roc_auc_score(labels, -np.linalg.norm(real[:, None] - generated[None], axis=2).min(axis=1)) == 1


def test_alone_is_the_panel_on_the_other_folds(splits):
    real = splits["train_real"]
    order = panel.canonical(real.images)
    images, labels, groups = real.images[order], real.labels[order], np.arange(len(order))
    views = panel.views(images)
    found = stand_ins.alone(views, labels, groups, 2)
    for train, held in content.folds(views[0], labels, groups, 2):
        train, held = np.sort(train), np.sort(held)
        used, others = train[labels[train] == 1], train[labels[train] == 0]
        expected = panel.scores(images[held], images[used], images[others], 2)
        np.testing.assert_allclose(found[held], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bend", "clusters"])
@pytest.mark.parametrize("number", [0, 1])
def test_content_that_is_not_linear_is_no_evidence(kind, number):
    """Two kinds of `make null`, with a reference of both contents and of one; the linear controls alone called each evidence."""
    pool = phantom.subtask1(content_differences.SEED, 32, 0.0, 2, 2, unknown=2, reference=700, slices=1)["reference"].images
    x = pool.reshape(len(pool), -1).astype(float)
    components = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[0][:, :10] * np.sqrt(len(pool))
    found = content_differences.sides(kind, pool, components, (40, 120, 150), number)
    assert content_differences.Arrays(*found, seed=number).verdict() != verdict.EVIDENCE


def test_a_leak_of_single_images_stays_evidence():
    found = phantom.subtask1(7, 32, 0.6, 40, 120, unknown=2, reference=150, slices=1)
    real = found["train_real"]
    arrays = [real.images[real.labels == label] for label in (1, 0)] + [found[n].images for n in ("train_generated", "reference")]
    audit = content_differences.Arrays(*arrays, seed=0)
    assert audit.verdict() == verdict.EVIDENCE
    assert len(audit.sides["real"]) == 80 and stages.ALPHA == 0.05
