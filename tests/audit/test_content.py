"""The content-only panel: it finds traps, nothing where nothing is, and never scores what it was fitted to."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from fingerprint_jax.audit import content
from fingerprint_jax.data import phantom

LABELS = np.repeat([0, 1], 60)
GROUPS = np.array([f"p{i // 2}" for i in range(120)])


@pytest.fixture(scope="module")
def images():
    return phantom.subtask1(3, 32, 0.0, real=60, generated=2, unknown=2, reference=0, slices=1)["train_real"].images


def files(**changes):
    rng = np.random.default_rng(0)
    plain = {"bytes": rng.integers(900, 1100, 120).tolist(), "mode": ["L"] * 120, "metadata": [0] * 120}
    return plain | {"name": [f"{i:03d}" for i in (*range(60), *range(60))]} | changes


def aucs(images, files):
    found = content.scores(content.facts(images, files), LABELS, GROUPS)
    return {name: roc_auc_score(LABELS, scores) for name, scores in found.items()}


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_nothing_is_found_where_nothing_is(images):
    assert all(0.3 < auc < 0.7 for auc in aucs(images, files()).values())


def test_used_images_that_are_brighter_are_a_difference_of_intensity(images):
    brighter = np.clip(images + 4 * LABELS.astype(np.int64)[:, None, None], 0, 255).astype(np.uint8)
    assert aucs(brighter, files())["intensity"] > 0.95


def test_used_images_that_were_compressed_are_a_difference_of_texture(images):
    squeezed = np.stack([jpeg(image, 75) if label else image for image, label in zip(images, LABELS, strict=True)])
    assert aucs(squeezed, files())["texture"] > 0.8


def test_files_and_their_names_are_told_apart(images):
    found = aucs(images, files(mode=["L"] * 60 + ["P"] * 60, name=[f"{i:03d}" for i in (*range(60), *range(100, 160))]))
    assert found["files"] > 0.99 and found["names"] > 0.99
    assert aucs(images, files(metadata=[0] * 60 + [300] * 60))["files"] > 0.99


def test_a_score_is_of_the_model_that_did_not_see_the_image(images):
    facts = content.facts(images, files())["texture"]
    found = content.scores({"texture": facts}, LABELS, GROUPS, seed=1)["texture"]
    for seen, held in StratifiedGroupKFold(5, shuffle=True, random_state=1).split(facts, LABELS, GROUPS):
        varying = np.ptp(facts, axis=0) > 0
        scaler = StandardScaler().fit(facts[seen][:, varying])
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(facts[seen][:, varying]), LABELS[seen])
        np.testing.assert_allclose(found[held], model.decision_function(scaler.transform(facts[held][:, varying])), rtol=1e-6)
        assert not set(GROUPS[seen]) & set(GROUPS[held])


def test_facts_that_are_all_alike_say_nothing(images):
    assert not content.scores({"files": np.ones((120, 2))}, LABELS, GROUPS)["files"].any()


def test_levels_and_grid_are_what_their_names_say():
    image = np.zeros((1, 16, 24), np.uint8)
    image[0, 8:] = 80  # a step on the grid, down
    levels = content._levels(image)[0]
    assert levels[0] == 0 and levels[8] == 80 and levels[-1] == pytest.approx(entropy([0.5, 0.5], base=2))
    np.testing.assert_allclose(content._blockiness(image), [[80, 0]])


def test_only_one_set_depends_on_the_names(images):
    before, after = content.facts(images, files()), content.facts(images, files(name=[f"{i:03d}" for i in range(120)]))
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["names"]
