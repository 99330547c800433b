"""The content-only panel finds differences that were put there, and none where there is none."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dct
from scipy.stats import kurtosis, skew
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from fingerprint_jax import features
from fingerprint_jax.audit import content, panel
from fingerprint_jax.data import phantom


@pytest.fixture(scope="module")
def split():
    """40 real images of 32 px, half of them used by nobody's generator."""
    return phantom.subtask1(seed=0, size=32, leak=0.0, real=20, generated=2, unknown=2, reference=2, slices=1)["train_real"]


def _files(count, **changed):
    ids = [f"{k:04d}" for k in np.random.default_rng(0).permutation(count)]
    return {"bytes": np.full(count, 900), "mode": ["L"] * count, "metadata_bytes": np.zeros(count, int), "id": ids} | changed


def _jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _facts(images, files):
    return content.facts(images, panel.views(images), files)


def _aucs(facts, labels, seed=0):
    found = content.scores(facts, labels, np.arange(len(labels)), seed)
    return {name: roc_auc_score(labels, values) for name, values in found.items()}


def _normal(count=200, columns=10, seed=0):
    return np.random.default_rng(seed).normal(size=(count, columns))


def test_four_grey_levels_tell_used_from_not_used(split):
    images = np.clip(split.images + 4 * split.labels[:, None, None], 0, 255).astype(np.uint8)
    aucs = _aucs(_facts(images, _files(40)), split.labels)
    assert aucs["intensity"] > 0.98 and aucs["texture"] < 0.8 and aucs["files"] == 0.5


def test_compression_of_the_used_images_shows_in_the_texture(split):
    images = np.stack([_jpeg(x, 75) if used else x for x, used in zip(split.images, split.labels, strict=True)])
    aucs = _aucs(_facts(images, _files(40)), split.labels)
    assert aucs["texture"] > 0.9 and aucs["files"] == 0.5


def test_mirrored_images_lie_otherwise_and_no_other_kind_sees_it(split):
    images = np.where(split.labels[:, None, None] == 1, split.images[..., ::-1], split.images)
    aucs = _aucs(_facts(images, _files(40)), split.labels)
    assert aucs["layout"] > 0.98 and aucs["intensity"] < 0.7 and aucs["texture"] < 0.7


def test_the_layout_is_the_principal_components_of_the_images_and_of_registered_ones(split):
    found = content.layout(split.images, panel.views(split.images))
    assert found.shape == (40, 32)
    for columns, view in zip((found[:, :16], found[:, 16:]), panel.views(split.images)[::2], strict=True):
        expected = PCA(16, svd_solver="full").fit_transform(view.reshape(40, -1).astype(float))
        signs = np.sign((columns * expected).sum(axis=0))
        # The last ones are close to the next, which a randomised decomposition tells less well.
        np.testing.assert_allclose((columns * signs)[:, :8], expected[:, :8], atol=0.01)
    assert content.layout(split.images[:6], panel.views(split.images[:6])).shape == (6, 12)


def test_alike_images_have_an_auc_of_a_half():
    labels = np.arange(200) % 2
    aucs = [_aucs({"intensity": _normal(seed=s)}, labels, s)["intensity"] for s in range(20)]
    assert abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / np.sqrt(20) and np.std(aucs) < 0.08


def test_a_palette_more_bytes_or_metadata_show_in_the_files():
    labels, images = np.arange(12) % 2, np.zeros((12, 16, 16), np.uint8)
    for change in (
        {"mode": np.where(labels, "P", "L")},
        {"bytes": 900 + 100 * labels},
        {"metadata_bytes": 30 * labels},
    ):
        facts = _facts(images, _files(12, **change))
        assert tuple(facts) == content.KINDS
        aucs = _aucs(facts, labels)
        assert aucs["files"] == 1 and aucs["intensity"] == aucs["texture"] == 0.5  # constant images are all alike


def test_order_is_the_rank_of_the_numbers_in_the_names():
    images = np.zeros((4, 16, 16), np.uint8)
    facts = _facts(images, _files(4, id=["b/p9/s2", "a/p10/s1", "c/p9/s1", "a/p009/s10"]))
    assert facts["order"][:, 0].tolist() == [0.375, 0.875, 0.125, 0.625]
    labels = np.arange(20) % 2
    images = np.zeros((20, 16, 16), np.uint8)
    together = _facts(images, _files(20, id=[f"x{k + 20 * used}" for k, used in enumerate(labels)]))
    assert _aucs(together, labels)["order"] > 0.95


def test_numbers_that_each_class_begins_anew_say_nothing():
    labels = np.array([1] * 5 + [0] * 15)
    ids = [f"real_used/used_{k}" for k in range(5)] + [f"real_not_used/not_used_{k}" for k in range(15)]
    facts = _facts(np.zeros((20, 16, 16), np.uint8), _files(20, id=ids))
    assert _aucs(facts, labels)["order"] == 0.5


def test_new_names_and_another_order_change_nothing_but_the_order(split):
    rng = np.random.default_rng(1)
    files = _files(40, bytes=rng.integers(500, 900, 40))
    patient = np.arange(40) // 2
    groups, renamed = (np.array([f"patient {k}" for k in names])[patient] for names in (range(20), rng.permutation(20)))
    before = _facts(split.images, files)
    expected = content.scores(before, split.labels, groups, seed=0)
    rows = rng.permutation(40)
    moved = {"bytes": files["bytes"][rows], "id": [f"new {k}" for k in rng.permutation(40)]}
    after = _facts(split.images[rows], _files(40, **moved))
    found = content.scores(after, split.labels[rows], renamed[rows], seed=0)
    np.testing.assert_allclose(found["layout"], expected["layout"][rows], atol=1e-6)
    for name in ("files", "intensity", "texture"):
        np.testing.assert_array_equal(after[name], before[name][rows])
        np.testing.assert_allclose(found[name], expected[name][rows], atol=1e-9)
    assert not np.allclose(after["order"], before["order"][rows])


def test_intensities_are_those_of_numpy_and_scipy():
    images = np.random.default_rng(0).integers(0, 200, (3, 16, 20), dtype=np.uint8)
    found = content.intensity(images)
    flat = images.reshape(3, -1).astype(float)
    moments = flat.mean(1) / 255, flat.var(1) / 255**2, skew(flat, axis=1), kurtosis(flat, axis=1)
    np.testing.assert_allclose(found[:, :4], np.stack(moments, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[:, 4:13], np.percentile(flat, [0, 1, 5, 25, 50, 75, 95, 99, 100], axis=1).T)
    assert found.shape == (3, 18) and found.dtype == np.float64


def test_textures_are_those_of_the_features_and_the_residual(split):
    images = split.images[:3]
    found = _facts(images, _files(3))["texture"]
    for first, last, name in ((0, 10, "lbp"), (10, 26, "glcm"), (26, 28, "otsu")):
        np.testing.assert_array_equal(found[:, first:last], features.get(name)(images[..., None]))
    x = images.astype(float)
    across = np.diff(x, axis=2)[:, 1:-1, 1:], np.diff(x, axis=1)[:, 1:, 1:-1]
    np.testing.assert_allclose(found[:, 28:30].T, [np.log1p(np.square(d).mean(axis=(1, 2))) for d in across], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 34:], content.blockiness(images))


def test_entropy_levels_and_body_of_a_square():
    image = np.zeros((1, 32, 32), np.uint8)
    image[0, 8:24, 4:28] = 200
    p = 16 * 24 / 32**2
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    np.testing.assert_allclose(content.intensity(image)[0, 13:], [entropy, 2 / 256, p, 16 / 32, 24 / 32])


def test_blockiness_is_that_of_the_grid():
    tiles = np.kron(np.random.default_rng(0).integers(0, 256, (4, 4)), np.ones((8, 8), int)).astype(np.uint8)[None]
    # Differences of blocks of one level each are all at borders: mean m against 0.
    m = sum(np.abs(np.diff(tiles[0].astype(int), axis=axis)).sum() / (32 * 3) for axis in (0, 1))
    ratio, zeros = content.blockiness(tiles)[0]
    assert ratio == pytest.approx(np.log((m + 0.1) / 0.1)) and zeros > 0.1
    assert content.blockiness(np.full((1, 32, 32), 9, np.uint8)).tolist() == [[0, 0]]
    assert content.blockiness(tiles[:, :11]).tolist() == [[0, 0]]


def test_zeros_are_counted_by_the_cosine_transform():
    image = np.random.default_rng(0).normal(0, 3, (2, 19, 17))
    expected = []
    for x in image:
        blocks = [x[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] for i in range(2) for j in range(2)]
        found = [dct(dct(block, axis=0, norm="ortho"), axis=1, norm="ortho") for block in blocks]
        expected.append(np.mean(np.abs(found) < 0.5))
    np.testing.assert_allclose(content._zeros(image), expected)


@pytest.mark.parametrize("quality", [75, 90, 95])
def test_compressed_images_have_more_zeros_on_the_grid(quality, split):
    grid = content.blockiness(np.stack([_jpeg(x, quality) for x in split.images]))[:, 1]
    assert grid.min() > np.abs(content.blockiness(split.images)[:, 1]).max()


def test_scores_are_the_logits_of_models_that_did_not_see_the_group():
    labels, groups = np.repeat(np.arange(40) % 2, 3), np.repeat(np.arange(40), 3)
    x = _normal(120, 4) + 0.7 * labels[:, None]
    x[:, 2], x[:, 3] = 7, np.arange(120)  # constant: dropped; in order, so that the folds are those of these rows
    found = content.scores({"intensity": x}, labels, groups, seed=3)["intensity"]
    slow = np.full(120, np.nan)
    for train, held in StratifiedGroupKFold(5, shuffle=True, random_state=3).split(x, labels, groups):
        assert not set(groups[train]) & set(groups[held])
        seen, asked = x[train][:, [0, 1, 3]], x[held][:, [0, 1, 3]]
        weight = {k: len(train) / (2 * (labels[train] == k).sum()) for k in (0, 1)}
        mean, deviation = seen.mean(axis=0), seen.std(axis=0)
        model = LogisticRegression(C=1.0, class_weight=weight, max_iter=1000).fit((seen - mean) / deviation, labels[train])
        slow[held] = ((asked - mean) / deviation) @ model.coef_[0] + model.intercept_[0]
    np.testing.assert_allclose(found, slow, atol=1e-6)


def test_a_class_of_fewer_groups_than_folds_is_refused():
    labels, groups = np.arange(40) % 2, np.arange(40)
    groups[labels == 1] = 100 + np.arange(20) % 4
    with pytest.raises(ValueError, match="class 1 has 4 groups, the content-only panel needs 5"):
        content.scores({"intensity": _normal(40)}, labels, groups, 0)


def test_what_shows_nothing_is_an_image_of_noise_at_one_level():
    rng = np.random.default_rng(0)
    black = np.zeros((6, 20, 20), np.uint8)
    black[1, 3, 3] = 1
    black[2] = rng.integers(0, 3, (20, 20))
    black[3, 0, :3] = 200  # less than 1% of 400 pixels
    black[4, 0, :4] = 200
    black[5] = rng.integers(0, 255, (20, 20))
    assert content.shown(black).tolist() == [False, False, False, False, True, True]
    assert not content.shown(np.full((1, 8, 8), 77, np.uint8)).any()


@pytest.mark.parametrize("name", content.CHANGES)
def test_synthetic_images_that_were_mirrored_turned_or_inverted_are_noticed(name):
    real = phantom.subtask1(seed=4, size=32, leak=0.0, real=60, generated=60, unknown=2, reference=60, slices=1)
    known = np.concatenate([real["train_real"].images, real["reference"].images])
    known = np.where(np.add.outer(np.arange(32), 2 * np.arange(32)) < 30, 255 - known, known)  # no symmetry
    made = real["train_generated"].images
    made = np.where(np.add.outer(np.arange(32), 2 * np.arange(32)) < 30, 255 - made, made).astype(np.uint8)
    assert content.turned(made, known) is None
    back = {"turned by 90 degrees": "turned by 270 degrees", "turned by 270 degrees": "turned by 90 degrees"}
    turn, _, inverted = name.partition(" and ")
    expected = back.get(turn, turn) + f" and {inverted}" * bool(inverted)
    changed = np.ascontiguousarray(np.rint(255 * content.CHANGES[name](made / 255)).astype(np.uint8))
    found = content.turned(changed, known)
    assert found["change"] == expected and found["share"] > 0.9 and found["images"] == 60
    half = np.concatenate([changed[:30], made[30:]])  # as an augmentation leaves them
    assert content.turned(half, known) is None
    assert content.turned(made[:, :, :24], known[:, :, :24]) is None
