import csv
import time

import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fingerprint_jax.data import phantom

LEAKS = (0.0, 0.1, 0.3, 1.0)
SEEDS = range(5)


def centred(images):
    x = images.reshape(len(images), -1).astype(np.float32)
    return x - x.mean(1, keepdims=True)


@pytest.fixture(scope="module")
def draws():
    """One slice a patient, so that the standard error of an AUC is that of independent rows."""
    return {
        (leak, seed): phantom.subtask1(seed, 32, leak, real=100, generated=300, unknown=20, reference=300, slices=1)
        for leak in LEAKS
        for seed in SEEDS
    }


def attack_auc(splits):
    reference, generated, real = (centred(splits[name].images) for name in ("reference", "train_generated", "train_real"))
    score = cdist(real, reference).min(1) - cdist(real, generated).min(1)
    return roc_auc_score(splits["train_real"].labels, score)


def test_calibrated_nearest_neighbour_attack_rises_with_the_leak(draws):
    mean = [np.mean([attack_auc(draws[leak, seed]) for seed in SEEDS]) for leak in LEAKS]
    assert mean[0] < mean[1] < mean[2] < mean[3]
    # Mann-Whitney without an effect: standard error of one AUC, then of the mean of 5 draws; 3 of them.
    error = np.sqrt((100 + 100 + 1) / (12 * 100 * 100)) / np.sqrt(len(SEEDS))
    assert abs(mean[0] - 0.5) < 3 * error
    assert 0.55 < mean[1] < 0.75 < mean[2] < 0.9
    assert mean[3] > 0.97


def test_content_alone_is_at_chance_at_every_leak(draws):
    for name in ("train_real", "test_real", "reference"):
        for leak in LEAKS:
            np.testing.assert_array_equal(draws[leak, 0][name].images, draws[0.0, 0][name].images)
    aucs = []
    for seed in SEEDS:
        real = phantom.subtask1(seed, 24, 0.5, real=100, generated=2, unknown=2, reference=2)["train_real"]
        x = real.images.reshape(200, -1).astype(np.float64)
        moments = np.stack([x.mean(1), x.std(1), (x**3).mean(1), (x < 60).mean(1)], 1)
        features = np.concatenate([moments, PCA(8, random_state=0).fit_transform(x)], 1)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
        folds = GroupKFold(5, shuffle=True, random_state=seed)
        score = cross_val_predict(model, features, real.labels, groups=real.groups, cv=folds, method="decision_function")
        aucs.append(roc_auc_score(real.labels, score))
    # As above, for 50 patients a class, whose two slices are alike.
    error = np.sqrt((50 + 50 + 1) / (12 * 50 * 50)) / np.sqrt(len(SEEDS))
    assert abs(np.mean(aucs) - 0.5) < 3 * error


def test_near_copies_are_never_equal(draws):
    for seed in SEEDS:
        splits = draws[1.0, seed]
        real = np.concatenate([splits["train_real"].images, splits["test_real"].images])
        pixels = {image.tobytes() for image in real}
        assert not pixels & {image.tobytes() for image in splits["train_generated"].images}
        used = splits["train_real"].images[splits["train_real"].labels == 1]
        # ... but near: no further from their member than a few noise levels, where strangers are much further.
        nearest = cdist(centred(splits["train_generated"].images), centred(used)).min(1) / 32
        assert (
            np.median(nearest)
            < 3 * phantom.NOISE
            < np.median(cdist(centred(splits["reference"].images), centred(used)).min(1)) / 32
        )


def test_synthetic_images_look_like_the_population_at_every_leak():
    plain = phantom.subtask1(0, 32, 0.0, real=2, generated=2, unknown=2, reference=1000)["reference"].images
    for leak in (0.0, 0.5, 1.0):
        splits = phantom.subtask1(0, 32, leak, real=1000, generated=1000, unknown=2, reference=2, mark=0)
        for figure in (np.mean, np.std):
            a, b = (figure(x.reshape(1000, -1), axis=1) for x in (plain, splits["train_generated"].images))
            assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 1000), (leak, figure)


def test_patients_are_in_one_cell_only():
    splits = phantom.subtask1(0, 24, 0.5, real=5, generated=2, unknown=9, reference=7)
    cells = [set(splits["reference"].groups)]
    for name in ("train_real", "test_real"):
        cells += [set(splits[name].groups[splits[name].labels == label]) for label in (0, 1)]
    assert sum(map(len, cells)) == len(set.union(*cells)) == 3 + 3 + 3 + 2 + 4
    assert splits["test_real"].labels.sum() == 4 and len(splits["test_real"].labels) == 9
    subsets = phantom.subtask2(0, 24, 0.5, real=5, generated=2, unknown=7)["train_real"]
    assert len(set(zip(subsets.groups, subsets.labels, strict=True))) == len(set(subsets.groups)) == 5 * 3


@pytest.mark.parametrize(("mark", "low", "high"), [(0.0, 0.2 - 0.085, 0.2 + 0.085), (0.3, 0.5, 0.99), (1.0, 0.9, 1.0)])
def test_run_leaves_a_mark_that_can_be_learned(mark, low, high):
    splits = phantom.subtask2(0, 64, 0.0, real=2, generated=120, unknown=200, mark=mark)

    def spectrum(images):
        x = np.log1p(np.abs(np.fft.rfft2(images - images.mean((1, 2), keepdims=True))))
        return x.reshape(len(x), -1)

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3))
    model.fit(spectrum(splits["train_generated"].images), splits["train_generated"].labels)
    # Without leak and mark nothing is left to find: 0.085 is 3 standard errors of 200 guesses at 0.2.
    assert low < model.score(spectrum(splits["test_generated"].images), splits["test_generated"].labels) <= high


def test_second_generator_shares_the_members_and_has_a_mark_of_its_own():
    splits = phantom.subtask2(0, 32, 1.0, real=10, generated=400, unknown=10, generators_per_subset=2, slices=1)
    part = splits["train_generated"]
    assert sorted(set(part.prefixes)) == [f"gen_t{k}/{run}_" for k in range(1, 6) for run in "ab"]
    members = splits["train_real"].images[:10].astype(np.float64)
    means = []
    for run in "ab":
        images = part.images[part.prefixes == f"gen_t1/{run}_"].astype(np.float64)
        nearest = cdist(centred(images), centred(members)).argmin(1)
        assert set(nearest) == set(range(10))
        # The mean over many copies, each member equally often, is anatomy + mark.
        means.append(images.mean(0))
    plain = phantom.subtask2(0, 32, 1.0, real=10, generated=400, unknown=10, slices=1, mark=0)["train_generated"]
    marks = [(mean - plain.images[:400].mean(0)).ravel() for mean in means]
    assert abs(np.corrcoef(marks)[0, 1]) < 0.5
    assert min(mark.std() for mark in marks) > 1


@pytest.mark.parametrize("size", [24, 64, 256])
def test_render_shapes_and_range(size):
    z, patient = phantom.anatomies(np.random.default_rng(0), 5, 2)
    assert patient.tolist() == [0, 0, 1, 1, 2]
    image = phantom.render(z, size)
    assert image.shape == (5, size, size) and image.dtype == np.float32
    assert 0 < image.min() and image.max() < 255
    # One image does not depend on its neighbours.
    np.testing.assert_allclose(phantom.render(z[3:4], size)[0], image[3], atol=1e-3)


def test_null_simulations_are_fast():
    start = time.perf_counter()
    phantom.subtask1(0, 32, 0.5, real=100, generated=500, unknown=0, reference=300)
    assert time.perf_counter() - start < 3  # 0.2 s on an idle core


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_subtask1_folders(tmp_path):
    splits = phantom.subtask1(0, 24, 0.5, real=4, generated=6, unknown=8, reference=5)
    for name in ("a", "b"):
        phantom.write(tmp_path / name, "subtask1", splits, seed=0)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    folders = {
        "train/generated": 6,
        "train/real_used": 4,
        "train/real_not_used": 4,
        "test/generated": 3,
        "test/real_unknown": 8,
        "reference": 5,
    }
    for folder, count in folders.items():
        images = [Image.open(p) for p in (tmp_path / "a" / folder).glob("*.png")]
        assert len(images) == count and {(i.mode, i.size) for i in images} == {("L", (24, 24))}
    groups = rows(tmp_path / "a" / "groups.csv")
    assert list(groups[0]) == ["split", "id", "group"]
    assert {(r["split"], r["id"].rpartition("/")[0]) for r in groups} == {
        ("train_real", "real_used"),
        ("train_real", "real_not_used"),
        ("test_real", ""),
        ("reference", ""),
    }
    truth = rows(tmp_path / "a" / "truth.csv")
    assert {r["id"] for r in truth} == {p.stem for p in (tmp_path / "a/test/real_unknown").iterdir()}
    assert sorted(r["label"] for r in truth) == ["0"] * 4 + ["1"] * 4
    by_pixels = {image.tobytes(): label for image, label in zip(*splits["test_real"][:2], strict=True)}
    for row in truth:
        image = np.asarray(Image.open(tmp_path / "a/test/real_unknown" / f"{row['id']}.png"))
        assert by_pixels[image.tobytes()] == int(row["label"])


def test_subtask2_folders(tmp_path):
    splits = phantom.subtask2(0, 24, 0.5, real=3, generated=4, unknown=12, generators_per_subset=2)
    phantom.write(tmp_path / "a", "subtask2", splits, seed=0)
    for k in range(1, 6):
        assert len(list((tmp_path / f"a/train/real/t{k}").glob("*.png"))) == 3
        names = sorted(p.name for p in (tmp_path / f"a/train/generated/gen_t{k}").iterdir())
        assert [name[:2] for name in names] == ["a_"] * 4 + ["b_"] * 4
    truth = rows(tmp_path / "a/truth.csv")
    assert {r["id"] for r in truth} == {p.stem for p in (tmp_path / "a/test/generated_unknown").iterdir()}
    assert sorted(r["label"] for r in truth) == sorted("0123401234" + "01")
    assert {r["id"].partition("/")[0] for r in rows(tmp_path / "a/groups.csv")} == {f"t{k}" for k in range(1, 6)}


def test_order_of_names_carries_no_label(tmp_path):
    phantom.write(tmp_path / "a", "subtask1", phantom.subtask1(0, 24, 0.5, real=2, generated=2, unknown=60, reference=2), seed=0)
    labels = [row["label"] for row in sorted(rows(tmp_path / "a/truth.csv"), key=lambda row: row["id"])]
    # Wald-Wolfowitz: 31 runs expected of 30 + 30 labels in random order, standard deviation 3.8.
    runs = 1 + sum(a != b for a, b in zip(labels, labels[1:], strict=False))
    assert abs(runs - 31) < 3 * 3.8


def test_seed_fixes_every_pixel():
    a, b, other = (phantom.subtask2(seed, 24, 0.5, real=3, generated=3, unknown=5) for seed in (1, 1, 2))
    for name in a:
        np.testing.assert_array_equal(a[name].images, b[name].images)
        assert (a[name].images != other[name].images).mean() > 0.5


def test_command_line(tmp_path, capsys):
    values = flags.FlagValues()
    phantom.define_flags(values)
    out = tmp_path / "out"
    sizes = ["--real=2", "--generated=3", "--unknown=5", "--image_size=24"]
    values(["phantom", "--task=subtask2", f"--output_dir={out}", *sizes])
    phantom.main(values)
    assert "30 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="output_dir=.*not an empty folder"):
        phantom.main(values)
