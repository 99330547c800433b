"""Controls hold the images they should, cut as they say; what can be found in them is what they are to show."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from absl import flags
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fingerprint_jax.data import builder, controls, folders, packing, phantom
from fingerprint_jax.data.source import Source

SMALL = {"size": 48, "leak": 0.0, "real": 12, "generated": 100, "unknown": 50}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A phantom of five subsets, six patients of two slices each."""
    root = tmp_path_factory.mktemp("controls")
    phantom.write(root / "images", "subtask2", phantom.subtask2(0, **SMALL), 0)
    arguments = (root / "images/train", root / "images/test")
    packing.pack("subtask2", root / "data", *arguments, groups=root / "images/groups.csv")
    return str(root / "data")


def run(*arguments):
    values = flags.FlagValues()
    controls.define_flags(values)
    values(["controls", *arguments])
    controls.main(values)


def pixels(source, split, rows=None):
    rows = source.rows(split) if rows is None else rows
    return [image.tobytes() for image in source.images(rows.index)]


def spectrum(images):
    x = images[..., 0].astype(np.float32)
    x = np.log1p(np.abs(np.fft.rfft2(x - x.mean((1, 2), keepdims=True))))
    return x.reshape(len(x), -1)


def learned(source, other, rng):
    """Accuracy of a classifier of spectra: trained on half of the synthetic images, scored on the other half, and on other data."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3))
    rows = source.rows("train_generated")
    half = rng.permutation(len(rows)) < len(rows) // 2
    model.fit(spectrum(source.images(rows.index[half])), rows.labels[half])
    rows, others = rows.take(~half), other.rows("train_generated")
    return [model.score(spectrum(s.images(r.index)), r.labels) for s, r in ((source, rows), (other, others))]


def test_groups_are_cut_whole_and_in_their_shares():
    rng = np.random.default_rng(0)
    assert np.bincount(controls.cut(np.arange(100).astype(str), (4,) * 5 + (5,), rng)).tolist() == [16] * 5 + [20]
    groups = np.repeat(np.arange(25), 4).astype(str)
    part = controls.cut(groups, (1,) * 5, rng)
    assert np.bincount(part).tolist() == [20] * 5
    assert len(set(zip(groups, part, strict=True))) == 25
    assert (part[::4].argsort(kind="stable") != np.arange(25)).any()  # at random, not in order
    np.testing.assert_array_equal(*(controls.cut(groups, (1, 1), np.random.default_rng(7)) for _ in range(2)))
    with pytest.raises(ValueError, match="8 images in 4 groups cannot be cut into 5 parts"):
        controls.cut(np.repeat(np.arange(4), 2), (1,) * 5, rng)


def test_one_generator_is_one_subset_in_five_parts(packed, tmp_path):
    run("--kind=one_generator", f"--data_dir={packed}", f"--output_dir={tmp_path}", "--label=2")
    source, control = Source(packed, "subtask2"), Source(str(tmp_path), "subtask2")
    for splits, original in ((("train_generated", "test_generated"), "train_generated"), (("train_real",), "train_real")):
        rows = source.rows(original)
        expected = pixels(source, original, rows.take(rows.labels == 2))
        assert sorted(sum((pixels(control, split) for split in splits), [])) == sorted(expected)
    assert np.bincount(control.rows("train_generated").labels).tolist() == [16] * 5
    assert (control.rows("test_generated").labels == -1).all() and len(control.rows("test_generated")) == 20
    real = control.rows("train_real")
    assert set(real.labels) == set(range(5))
    assert len(set(zip(real.groups, real.labels, strict=True))) == len(set(real.groups)) == 6
    # The same ids, labels and groups as what other readers of the data set find.
    files = folders.read_files(builder.dataset_dir(tmp_path, "subtask2") / "files.csv")
    assert files["train_real"] == list(zip(real.ids.tolist(), real.labels.tolist(), real.groups.tolist(), strict=True))
    assert control.summary["splits"]["train_generated"]["classes"] == {f"t{k}": 16 for k in range(1, 6)}


def test_there_is_nothing_to_find_in_one_generator(tmp_path):
    splits = phantom.subtask2(0, 48, 0.0, real=10, generated=300, unknown=5)
    phantom.write(tmp_path / "images", "subtask2", splits, 0)
    packing.pack("subtask2", tmp_path / "data", tmp_path / "images/train")
    controls.write("one_generator", tmp_path / "control", tmp_path / "data")
    source, control = (Source(str(tmp_path / name), "subtask2") for name in ("data", "control"))
    rng = np.random.default_rng(0)
    assert learned(source, source, rng)[0] > 0.9
    # 3 standard errors of 120 guesses at 0.2.
    assert abs(learned(control, control, rng)[0] - 0.2) < 0.11


def test_reals_stand_where_the_synthetic_images_stood(packed, tmp_path):
    run("--kind=reals", f"--data_dir={packed}", f"--output_dir={tmp_path}")
    source, control = Source(packed, "subtask2"), Source(str(tmp_path), "subtask2")
    label = dict(zip(pixels(source, "train_real"), source.rows("train_real").labels.tolist(), strict=True))
    found = {split: pixels(control, split) for split in ("train_real", "train_generated", "test_generated")}
    assert sorted(sum(found.values(), [])) == sorted(label)
    for split in ("train_real", "train_generated"):
        assert [label[image] for image in found[split]] == control.rows(split).labels.tolist()
    assert (control.rows("test_generated").labels == -1).all()
    for k in range(5):  # of six patients three, two and one, with two slices each
        assert [sum(label[image] == k for image in images) for images in found.values()] == [6, 4, 2]
    patients = [set(control.rows(split).groups) for split in found]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 30


def test_phantom_runs_share_the_reals_and_differ_in_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "PHANTOM", SMALL)
    run("--kind=phantom_runs", f"--output_dir={tmp_path}", "--seed=0")
    one = phantom.subtask2(0, **SMALL)
    found = controls.phantom_runs(0)
    np.testing.assert_array_equal(found["a"]["train_generated"].images, one["train_generated"].images)
    np.testing.assert_array_equal(found["b"]["train_generated"].labels, one["train_generated"].labels)
    a, b = (Source(str(tmp_path / name), "subtask2") for name in "ab")
    assert a.fingerprints["train_real"] == b.fingerprints["train_real"]
    for split in ("train_generated", "test_generated"):
        assert not set(pixels(a, split)) & set(pixels(b, split))
    assert len(a.rows("test_generated")) == len(b.rows("test_generated")) == SMALL["unknown"] // 2
    # Without leak only the run can be found. On the other run images of one generator err together: chance spreads widely.
    on_a, on_b = learned(a, b, np.random.default_rng(0))
    assert on_a > 0.9 and on_b < 0.4


def test_what_is_missing_or_there_already_is_one_line(packed, tmp_path):
    with pytest.raises(ValueError, match="--data_dir is empty: reals is made from a packed data set"):
        run("--kind=reals", f"--output_dir={tmp_path}")
    run("--kind=reals", f"--data_dir={packed}", f"--output_dir={tmp_path}")
    before = Source(str(tmp_path), "subtask2").fingerprints
    with pytest.raises(ValueError, match="is there already"):
        run("--kind=reals", f"--data_dir={packed}", f"--output_dir={tmp_path}")
    run("--kind=reals", f"--data_dir={packed}", f"--output_dir={tmp_path}", "--overwrite")
    assert Source(str(tmp_path), "subtask2").fingerprints == before
    run("--kind=reals", f"--data_dir={packed}", f"--output_dir={tmp_path}", "--overwrite", "--seed=1")
    assert Source(str(tmp_path), "subtask2").fingerprints != before


@pytest.fixture(scope="module")
def membership(tmp_path_factory):
    """A phantom of subtask 1 with patients of two slices, where the generator copies."""
    root = tmp_path_factory.mktemp("membership")
    splits = phantom.subtask1(0, 48, 1.0, real=12, generated=40, unknown=4, reference=20)
    phantom.write(root / "images", "subtask1", splits, 0)
    folders = (root / "images/train", root / "images/test", root / "images/reference")
    packing.pack("subtask1", root / "data", *folders, groups=root / "images/groups.csv")
    with (root / "images/groups.csv").open() as file:  # and with patients that are called like the first of their images
        _, *rows = csv.reader(file)
    first = {}
    lines = [f"{split},{name},{first.setdefault(patient, name)}" for split, name, patient in rows if split != "test_real"]
    (root / "named.csv").write_text("\n".join(["split,id,group", *lines]) + "\n")
    packing.pack("subtask1", root / "named", *folders, groups=root / "named.csv")
    packing.pack("subtask1", root / "bare", root / "images/train")
    return root


@pytest.mark.parametrize("groups", ["data", "named"])
def test_unrelated_images_stand_where_the_synthetic_ones_stood(groups, membership, tmp_path):
    run("--kind=unrelated", f"--data_dir={membership / groups}", f"--output_dir={tmp_path}")
    source, control = Source(str(membership / groups), "subtask1"), Source(str(tmp_path), "subtask1")
    halves = [pixels(control, split) for split in ("train_generated", "reference")]
    assert [len(half) for half in halves] == [10, 10] and sorted(sum(halves, [])) == sorted(pixels(source, "reference"))
    assert not set(control.rows("train_generated").groups) & set(control.rows("reference").groups)  # patients are whole
    before, after = source.rows("train_real"), control.rows("train_real")
    kept = [
        dict(zip(pixels(s, "train_real"), zip(r.labels, r.groups, strict=True), strict=True))
        for s, r in ((source, before), (control, after))
    ]
    assert kept[0] == kept[1] and len(np.unique(after.groups)) == len(after) // 2


def test_a_control_has_the_labels_of_the_records_and_no_other_content(membership, tmp_path, monkeypatch):
    shutil.copytree(membership / "bare", tmp_path / "data")
    source, rows = Source(str(tmp_path / "data"), "subtask1"), Source.rows
    monkeypatch.setattr(
        Source, "rows", lambda self, split: dataclasses.replace(rows(self, split), labels=1 - rows(self, split).labels)
    )
    made = controls.copies(source, 0)["train_real"]
    assert {*zip(made.labels.tolist(), made.prefixes.tolist(), strict=True)} == {(0, "real_not_used/"), (1, "real_used/")}
    path = source.path / "summary.json"
    summary = json.loads(path.read_text())
    summary["splits"]["train_real"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps({name: value for name, value in summary.items() if name != "seal"}))
    with pytest.raises(ValueError, match="the records of train_real are not those that summary.json describes"):
        run("--kind=copies", f"--data_dir={tmp_path / 'data'}", f"--output_dir={tmp_path / 'control'}")


def test_without_reference_images_phantoms_stand_there(membership, tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "FOREIGN", controls.FOREIGN | {"generated": 30})
    run("--kind=unrelated", f"--data_dir={membership / 'bare'}", f"--output_dir={tmp_path}")
    source, control = Source(str(membership / "bare"), "subtask1"), Source(str(tmp_path), "subtask1")
    assert sorted(control.splits) == ["train_generated", "train_real"] and len(control.rows("train_generated")) == 30
    assert sorted(pixels(control, "train_real")) == sorted(pixels(source, "train_real"))
    assert not set(pixels(control, "train_generated")) & set(pixels(source, "train_generated"))


def test_copies_are_the_used_images_among_the_synthetic_ones(membership, tmp_path):
    run("--kind=copies", f"--data_dir={membership / 'data'}", f"--output_dir={tmp_path}")
    source, control = Source(str(membership / "data"), "subtask1"), Source(str(tmp_path), "subtask1")
    rows = source.rows("train_real")
    used, unused = (set(pixels(source, "train_real", rows.take(rows.labels == label))) for label in (1, 0))
    found, before = pixels(control, "train_generated"), set(pixels(source, "train_generated"))
    assert len(found) == 40 and used <= set(found) and not unused & set(found)
    assert sum(image in before for image in found) == 40 - len(used)
    assert sorted(pixels(control, "reference")) == sorted(pixels(source, "reference"))
