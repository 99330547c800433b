"""Benchmarks of real images: who is in them, that the official folders tell the truth, and that nothing is made twice."""

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from scipy.stats import norm, zscore
from sklearn.metrics import accuracy_score, roc_auc_score

from configs import base
from fingerprint_jax import methods
from fingerprint_jax.data import packing, phantom, tables
from fingerprint_jax.data.source import Rows, open_source
from fingerprint_jax.leaks import generators, pool
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from fingerprint_jax.stats.two_sample import kernel_distance
from fingerprint_jax.training import inference, sampling
from launch import attribution, benchmark
from launch.leaks import members, sets, shadow
from launch.leaks.cells import Cell
from launch.leaks.curves import curves
from tests.conftest import fit
from tests.foreign import tree

CONFIG = """
from configs.generators import flow

def get_config(variant=""):
    c = flow.get_config("smoke")
    c.optimizer.warmup_steps = 0
    return c
"""


FIGURE = {"value": 0.5, "interval": [None, None]}


def rows_of(sizes):
    """Rows of groups of these sizes."""
    groups = np.repeat([f"p{i}" for i in range(len(sizes))], sizes)
    n = len(groups)
    return Rows(np.array([f"i{i}" for i in range(n)]), np.zeros(n, np.int64), groups, np.arange(n))


def test_patients_are_whole_and_on_one_side():
    sizes = np.random.default_rng(0).integers(1, 5, 80)
    rows = rows_of(sizes)
    drawn = members.draw(rows, 40, seed=3)
    assert list(drawn) == ["used", "used unknown", "not_used", "not_used unknown", "reference"]
    of = {name: set(part.groups.tolist()) for name, part in drawn.items()}
    for name, part in drawn.items():
        assert len(part) and len(part) == np.isin(rows.groups, list(of[name])).sum()  # all images of its patients
        assert not any(of[name] & of[other] for other in of if other != name)
    for side in ("used", "not_used"):
        both, unknown = len(drawn[side]) + len(drawn[f"{side} unknown"]), len(drawn[f"{side} unknown"])
        assert 40 - max(sizes) < both <= 40 and both / 4 - max(sizes) <= unknown <= both / 4 + max(sizes)
    fewer = members.draw(rows, 20, seed=3)
    for side in ("used", "not_used"):
        sides = [set(part[side].ids.tolist()) | set(part[f"{side} unknown"].ids.tolist()) for part in (fewer, drawn)]
        assert sides[0] < sides[1]
    assert fewer["reference"].ids.tolist() == drawn["reference"].ids.tolist()
    assert members.draw(rows, 40, seed=4)["used"].ids.tolist() != drawn["used"].ids.tolist()


@pytest.mark.parametrize(
    ("images", "said"), [(200, "images may be used .*: give fewer"), (4, "1 patients of a side, more are needed")]
)
def test_too_few_images_or_patients_are_named(images, said):
    with pytest.raises(ValueError, match=f"--images={images}: .*{said}"):
        members.draw(rows_of([4] * 40), images, seed=0)


def _main(root, **given):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    options = {"real_dir": root / "real", "groups": root / "groups.csv", "output": root / "out", "config": root / "config.py"}
    options |= {"rows": "gan_leaks_pixels", "images": 12, "steps": 2, "count": 10, "solver_steps": 1} | given
    values(["benchmark", *(f"--{name}={value}" for name, value in options.items())])
    benchmark.main(values)


def write(root, count, twice=None):
    """A folder `real` of phantoms, two of each patient, or of the first `twice`, `groups.csv`, and `config.py` of a generator."""
    part = phantom.subtask1(0, 32, 0.0, real=1, generated=2, unknown=2, reference=count)["reference"]
    (root / "real").mkdir()
    with (root / "groups.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group"])
        for i, (image, group) in enumerate(zip(part.images, part.groups, strict=True)):
            Image.fromarray(image).save(root / "real" / f"{i:03d}.png")
            writer.writerow([f"{i:03d}", group if twice is None or i < 2 * twice else f"alone{i}"])
    (root / "config.py").write_text(CONFIG)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A benchmark of one generator, of 100 images of 50 patients."""
    root = tmp_path_factory.mktemp("benchmark")
    write(root, 100)
    _main(root)
    (folder,) = (root / "out").glob("generator_*")
    return root, folder


def test_several_processes_take_the_next_that_no_other_makes(made, tmp_path, monkeypatch, capsys):
    root = tmp_path / "copy"
    shutil.copytree(made[0], root)
    first, second = (root / "out" / name.format(seed) for name in ("generator_images-12_num_steps-2_seed-{}",) for seed in (0, 1))
    assert first.is_dir()
    (root / "out" / "table.md").unlink()
    other, order = contextlib.ExitStack(), []  # another process, which makes the first

    def make(kind, cell, folder, *_):
        order.append(folder)
        if len(order) == ends_after:
            other.close()
        return {"oracle": FIGURE, "attacks": {"gan_leaks_pixels": {"figures": {"": FIGURE}, "scores": [], "labels": []}}}

    monkeypatch.setattr(benchmark, "make", make)
    ends_after = 1
    other.enter_context(files.locked(first / "lock"))
    _main(root, seeds="0,1")
    assert order == [second, first] and (root / "out" / "table.md").read_text().count("\n| 12 |") == 2
    (root / "out" / "table.md").unlink()
    order.clear()
    ends_after = 0
    with files.locked(first / "lock"):
        _main(root, seeds="0,1")
    assert order == [second] and not (root / "out" / "table.md").exists()
    said = capsys.readouterr().out
    assert f"{first}: process {os.getpid()} on " in said and "makes this benchmark\nThe last of them writes the table." in said


def test_the_generator_has_read_the_used_images_and_no_other(made):
    _, folder = made
    used, source = open_source(str(folder / "used"), "images"), open_source(str(folder / "data"), "subtask1")
    read = used.digests(used.rows("train").index)
    truth = dict(csv.reader((folder / "images" / "truth.csv").open()))
    real, unknown = source.rows("train_real"), source.rows("test_real")
    labels = np.concatenate([real.labels, [int(truth[name]) for name in unknown.ids.tolist()]])
    seen = np.isin(source.digests(np.concatenate([real.index, unknown.index])), read)
    np.testing.assert_array_equal(seen, labels == 1)
    assert seen.sum() == len(read) == 12 and not np.isin(source.digests(source.rows("reference").index), read).any()
    assert len(source.rows("train_generated")) == 8 and len(source.rows("test_generated")) == 2
    assert methods.load(folder / "run").config.data_dir == str(folder / "used")


def test_the_folders_are_official_and_names_tell_nothing(made):
    _, folder = made
    for name in ("train/generated", "train/real_used", "train/real_not_used", "test/generated", "test/real_unknown", "reference"):
        assert all(path.suffix == ".png" for path in (folder / "images" / name).iterdir())
    assert Image.open(folder / "grid.png").size == (8 * 32, 3 * 32)


def test_the_oracle_is_the_auc_of_minus_the_loss(made, monkeypatch):
    _, folder = made
    source = open_source(str(folder / "data"), "subtask1")
    rows = source.rows("train_real")
    error = np.random.default_rng(0).normal(size=(len(rows), 3)) - rows.labels[:, None]
    monkeypatch.setattr(inference, "outputs", lambda run, rows, source: {"error": error})
    found = generators.oracle(methods.load(folder / "run"), source)
    assert found["value"] == pytest.approx(roc_auc_score(rows.labels, -error.mean(axis=1)))
    assert found["interval"][0] <= found["value"] <= found["interval"][1]


def test_a_network_says_how_like_the_used_images_the_generated_ones_are(made, tmp_path, monkeypatch, capsys):
    root = tmp_path / "copy"
    shutil.copytree(made[0], root)
    config = base.frozen("images", "resnet_tiny", "")
    config.data_dir, config.data.streams = str(root / "out" / "pool"), ConfigDict({"train": 8})
    methods.fit(network := Run(config, tmp_path / "network"))
    _main(root, network=network.workdir)
    (folder,) = (root / "out").glob("generator_*")
    found = json.loads((folder / "benchmark.json").read_text())["likeness"]
    source = open_source(str(folder / "data"), "subtask1")
    real, state = source.rows("train_real"), inference.restore(network)[1]
    rows = real.take(real.labels == 1), source.rows("train_generated"), source.rows("reference")
    used, *others = (inference.encode(network, state, each, source=source)["embedding"] for each in rows)
    for name, other in zip(("generated", "reference"), others, strict=True):
        value, (low, high) = kernel_distance(other, used)
        assert found["figures"][name]["value"] == pytest.approx(value, rel=1e-4, abs=1e-6)
        assert found["figures"][name]["interval"] == pytest.approx([low, high], rel=1e-4, abs=1e-6)
    assert "KID, generated" in (root / "out" / "table.md").read_text()
    monkeypatch.setattr(generators, "likeness", None)
    _main(root, network=network.workdir)
    _main(root, seeds="0,1")  # the other one has no such figure
    header, _, *lines = (root / "out" / "table.md").read_text().splitlines()
    assert header == "| images | steps | seed | oracle | gan_leaks_pixels |" and {line.count("|") for line in lines} == {6}
    (tmp_path / "classes").mkdir()
    shutil.copytree(root / "real", tmp_path / "classes" / "all")
    packing.pack("images", tmp_path / "small", tmp_path / "classes", image_size=16)
    config.data_dir = str(tmp_path / "small")
    methods.fit(small := Run(config, tmp_path / "of_small"))
    with pytest.raises(ValueError, match=f"--network={small.workdir} takes images of 16x16 pixels, these have 32x32"):
        _main(root, network=small.workdir, seeds=2)
    assert not list((root / "out").glob("*seed-2*"))
    with pytest.raises(ValueError, match="--network=.* is no finished run of one network: give that of one, or efficientnet_lite0"):
        _main(root, network=fit("configs/subtask1/gan_leaks.py", str(folder / "data"), tmp_path / "other").workdir)


def test_nothing_is_made_twice_and_more_is_added(made, monkeypatch, capsys):
    root, folder = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}
    with monkeypatch.context() as stopped:
        for module, name in ((methods, "fit"), (sampling, "make"), (members, "attacked")):
            stopped.setattr(module, name, lambda *_: pytest.fail("made again"))
        _main(root)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    _main(root, rows="gan_leaks_pixels,domias_pixels", seeds="0,1")
    line = capsys.readouterr().out.splitlines()[-2]
    found = json.loads((folder / "benchmark.json").read_text())
    assert set(found["attacks"]) == {"gan_leaks_pixels", "domias_pixels"}
    assert line.startswith("| 12 | 2 | 0 | ") and f"{found['oracle']['value']:.4f}" in line
    assert (root / "out" / "table.md").read_text().splitlines()[-2] == line
    learned = json.loads((root / "out" / "shadow.json").read_text())
    assert list(learned["weights"]) == ["gan_leaks_pixels", "domias_pixels"] and len(learned["auc"]) == 2
    assert learned["mean"]["gan_leaks_pixels"] >= 0


def test_without_patients_each_image_is_one(made):
    root, _ = made
    _main(root, groups="", output=root / "alone")
    assert not (root / "alone" / "curves.png").exists()  # of one there is none
    (folder,) = (root / "alone").glob("generator_*")
    rows = open_source(str(folder / "data"), "subtask1").rows("train_real")
    assert rows.groups.tolist() == rows.ids.tolist() and len(rows) == 18


def test_patients_that_are_called_like_an_image_stay_whole(made, tmp_path):
    root, _ = made
    lines = [f"{i:03d},{i - i % 2:03d}" for i in range(98)]  # two images have no patient
    (tmp_path / "groups.csv").write_text("\n".join(["id,group", *lines]) + "\n")
    pool.pack(root / "real", str(tmp_path / "groups.csv"), tmp_path, {"image_size": 0})
    source = open_source(str(tmp_path / "pool"), "images")
    drawn = members.draw(source.rows("train"), 12, seed=0)
    found = members.splits(source, drawn, np.zeros((5, 32, 32), np.uint8))
    names, sizes = np.unique(np.concatenate([part.groups for part in found.values()]), return_counts=True)
    assert set(sizes[names != ""]) == {2}
    assert sizes.sum() == 5 + sum(map(len, drawn.values())) and 5 <= sizes[names == ""].sum() <= 7


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": 20}, "was made with another count: give that, or another --output"),
        ({"image_size": 48}, "--image_size=48: .* is of images of 32 pixels: give those, or another --output"),
        ({"groups": ""}, "--groups=: .* is of other patients: give those, or another --output"),
        ({"groups": "nowhere.csv"}, "--groups=nowhere.csv: there is no such file"),
        ({"rows": "aimm_siamese"}, "row aimm_siamese|--rows=aimm_siamese"),
        ({"set": "num_steps=3,4"}, "--set=num_steps=...: that is for --steps, --seeds and --real_dir"),
        ({"steps": "2,x"}, "--steps=2,x: use whole numbers from 1 on"),
        ({"images": 5000}, "--images=5000: .* give fewer"),
        ({"config": "configs/quickstart.py"}, "no generator of the task images: use generators/flow"),
    ],
)
def test_what_does_not_fit_is_one_line(given, said, made):
    with pytest.raises(ValueError, match=said):
        _main(made[0], **given)


def test_what_the_command_names_by_itself_is_found_in_any_folder(tmp_path, monkeypatch):
    (tmp_path / "tables" / "subtask1").mkdir(parents=True)  # where a table of subtask 1 may lie
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--real_dir=.*real: there is no such folder"):
        _main(tmp_path, config="generators/flow")
    (tmp_path / "real").mkdir()
    with pytest.raises(ValueError, match="--real_dir=.*real: no image in it"):
        _main(tmp_path, config="generators/flow", groups="")
    with pytest.raises(ValueError, match="--output=.*out is in --real_dir="):
        _main(tmp_path, config="generators/flow", real_dir=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the benchmark and of what it is made of, and the folder of its generator."""
    root, folder = made
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    yield tmp_path, tmp_path / "out" / folder.name
    open_source.cache_clear()


def _unfinished(folder):
    known = json.loads((folder / "benchmark.json").read_text())
    (folder / "benchmark.json").write_text(json.dumps({"plan": known["plan"], "attacks": {}}))
    open_source.cache_clear()
    return known


def test_other_images_are_refused_and_the_same_elsewhere_are_not(copied, monkeypatch):
    root, _ = copied
    monkeypatch.setattr(members, "attacked", lambda *_: pytest.fail("made again"))
    _main(root)
    (root / "real" / "notes.txt").touch()
    _main(root)
    image = root / "real" / "000.png"
    with Image.open(image) as opened:
        pixels = np.array(opened)
    Image.fromarray(255 - pixels).save(image)
    for change in (lambda: None, image.unlink):
        change()
        with pytest.raises(ValueError, match="--real_dir=.* is of other images: give those, or another --output"):
            _main(root)


@pytest.mark.parametrize("name", ["labels.csv", "table.md", "pool", "pool.json"])
def test_a_folder_of_somebody_else_is_left_as_it_is(name, made, tmp_path):
    path = tmp_path / name
    path.mkdir() if name == "pool" else path.write_text('{"mine": 1}')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f"is no benchmark, and '{name}' is in it|pool.json cannot be used"):
        _main(made[0], output=tmp_path)
    assert tree(tmp_path) == before


def test_a_benchmark_with_links_in_it_is_refused(copied):
    root, folder = copied
    before = tree(folder)
    for name in ("generated", ".images.tmp", "used", "data/fingerprint", "run", "grid.png", "../pool"):
        path = folder / name
        if there := path.exists():
            path.rename(root / "mine")
        path.symlink_to(root / "mine")
        with pytest.raises(ValueError, match=f"{path.name} is a link, and nothing is written through one"):
            _main(root)
        path.unlink()
        if there:
            (root / "mine").rename(path)
    assert tree(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"attacks": []},
        {"plan": 1},
        {"oracle": 1},
        {"oracle": {"value": "high", "interval": [0.1, 0.2]}},
        {"oracle": {"value": 0.5, "interval": 3}},
        {"attacks": {"gan_leaks_pixels": None}},
        {"attacks": {"gan_leaks_pixels": {"figures": {"": {"value": 0.5, "interval": [None, None], "p": "0"}}}}},
        {"attacks": {"gan_leaks_pixels": {"figures": {}}}},
        {"attacks": {"a": {"figures": {"": FIGURE}, "scores": ["0.5"], "labels": [1]}}},
        {"attacks": {"a": {"figures": {"": FIGURE}, "scores": [0.5], "labels": [2]}}},
        {"attacks": {"a": {"figures": {"": FIGURE}, "scores": [0.5], "labels": []}}},
    ],
)
def test_figures_of_another_kind_are_one_line(change, copied):
    root, folder = copied
    path = folder / "benchmark.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="benchmark.json cannot be used .*: give another --output"):
        _main(root)


def test_nothing_that_is_kept_of_networks_and_images_counts(made):
    root, folder = made
    known = json.loads((folder / "benchmark.json").read_text())
    for path in folder.glob("run/outputs/*.npz"):
        tables.write_arrays(path, {name: -values for name, values in tables.read_arrays(path).items()})
    path = next(folder.glob("attacks/gan_leaks_pixels-*/predictions/train_real.csv"))
    ids, scores, meta = tables.read_predictions(path)
    tables.write_predictions(path, np.array(ids), -scores, {name: meta[name] for name in meta.keys() - {"sha256"}})
    _unfinished(folder)
    _main(root)
    found = json.loads((folder / "benchmark.json").read_text())
    assert found["oracle"] == known["oracle"] and found["attacks"] == {"gan_leaks_pixels": known["attacks"]["gan_leaks_pixels"]}


def test_images_of_something_else_are_not_those_of_the_generator(copied):
    root, folder = copied
    _unfinished(folder)
    record = folder / "generated" / sampling.RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weights": "0" * 16}))
    with pytest.raises(ValueError, match="generated: its images are of weights '0+' of .*: give the same, or name a new --output"):
        _main(root)
    (folder / "generated" / "mine.png").touch()
    with pytest.raises(ValueError, match="generated has 'mine.png', which is not of this command"):
        _main(root)


def test_records_that_are_not_those_that_were_packed_are_refused(copied, monkeypatch):
    root, folder = copied
    monkeypatch.setattr(methods, "fit", lambda *_: pytest.fail("trained"))
    for path, remove in ((folder / "data", folder / "benchmark.json"), (folder / "used", None), (root / "out" / "pool", None)):
        if path.name == "used":
            _unfinished(folder)
        (record,) = path.rglob("*train*array_record*") if path.name != "data" else path.rglob("*-train_real.array_record*")
        content = bytearray(record.read_bytes())
        content[len(content) // 2] ^= 255
        record.write_bytes(content)
        open_source.cache_clear()
        with pytest.raises(ValueError, match=f"{path}.*: pack the data again.*; here: remove {remove or path}, and the same"):
            _main(root, rows="monte_carlo_pixels" if path.name == "data" else "gan_leaks_pixels")
        if path.name == "used":  # others, whole
            shutil.rmtree(path)
            shutil.copytree(root / "out" / "pool", path)
            open_source.cache_clear()
            with pytest.raises(ValueError, match="used has other images than those that were drawn: remove it"):
                _main(root)


def test_data_of_another_benchmark_are_not_attacked(copied):
    """Exchanged with those of another seed, say: the oracle is of one, the attacks would be of the other."""
    root, folder = copied
    subtask1 = phantom.subtask1(3, 32, 0.5, real=20, generated=20, unknown=20, reference=20)
    phantom.write(root / "others", "subtask1", subtask1, 3)
    shutil.rmtree(folder / "data")
    packing.pack("subtask1", folder / "data", root / "others" / "train", root / "others" / "test", root / "others" / "reference")
    open_source.cache_clear()
    for rows in ("monte_carlo_pixels", "gan_leaks_pixels"):  # also where nothing is left to do but to print
        with pytest.raises(ValueError, match=f"{folder}: its data are others than those that were made: put them back"):
            _main(root, rows=rows)
    assert "monte_carlo_pixels" not in json.loads((folder / "benchmark.json").read_text())["attacks"]


def test_a_pool_of_other_images_is_refused(copied):
    root, _ = copied
    place = root / "out" / "pool"
    shutil.rmtree(place)
    phantom.write(root / "others", "subtask1", phantom.subtask1(3, 32, 0.5, real=20, generated=1, unknown=1, reference=1), 3)
    (root / "others" / "train" / "generated").rename(root / "made_up")
    packing.pack("images", place, root / "others" / "train")
    open_source.cache_clear()
    with pytest.raises(ValueError, match=f"{place} has other images than were packed there: put those back, or give another"):
        _main(root)


def test_sets_are_dealt_by_whole_patients_or_are_the_five_folders():
    sizes = np.random.default_rng(0).integers(1, 5, 80)
    rows = rows_of(sizes)
    drawn = sets.draw(rows, 20, seed=3)
    assert list(drawn) == ["t1", "t2", "t3", "t4", "t5"]
    of = [set(part.groups.tolist()) for part in drawn.values()]
    for part, own in zip(drawn.values(), of, strict=True):
        assert 20 - max(sizes) < len(part) <= 20 and len(part) == np.isin(rows.groups, list(own)).sum()
    assert sum(map(len, of)) == len(set.union(*of))
    fewer = sets.draw(rows, 10, seed=3)
    assert all(set(fewer[name].ids.tolist()) < set(drawn[name].ids.tolist()) for name in drawn)
    labelled = dataclasses.replace(rows, labels=np.arange(len(rows)) % 5)
    assert [set(part.labels.tolist()) for part in sets.draw(labelled, 20, seed=3).values()] == [{0}, {1}, {2}, {3}, {4}]
    with pytest.raises(ValueError, match="--images=90: the images of set 1 of five are .*: give fewer"):
        sets.draw(rows, 90, seed=3)
    with pytest.raises(ValueError, match="--images=2: a patient that was drawn has 3, and patients stay whole: give more"):
        sets.draw(rows_of([3] * 40), 2, seed=3)
    with pytest.raises(ValueError, match="--real_dir has 3 folders of images: five sets are of five folders"):
        sets.draw(dataclasses.replace(rows, labels=np.arange(len(rows)) % 3), 20, seed=3)


def test_how_often_the_generator_that_knows_an_image_best_is_its_own(monkeypatch):
    """Whatever the scale that a generator knows on: three of thirty images another one knows better."""
    labels = np.repeat(np.arange(5), 6)
    known = np.eye(5)[labels].T * 3.0
    known[0, 6:8] = known[2, 18] = 9.0
    known = known * np.array([1, 10, 0.1, 5, 2])[:, None] + np.arange(5)[:, None]
    runs = [types.SimpleNamespace(workdir=Path(str(k))) for k in range(5)]
    source = types.SimpleNamespace(rows=lambda split: types.SimpleNamespace(labels=labels, groups=np.arange(30)))
    monkeypatch.setattr(inference, "outputs", lambda run, rows, source: int(str(run.workdir)))
    monkeypatch.setattr(sampling, "generative", lambda run: types.SimpleNamespace(known=lambda k: known[k]))
    found = sets.oracle(runs, source)
    standard = (known - known.mean(axis=1, keepdims=True)) / known.std(axis=1, keepdims=True)
    assert found["value"] == pytest.approx(accuracy_score(labels, standard.argmax(axis=0))) == 0.9
    assert found["interval"][0] <= 0.9 <= found["interval"][1]


GAN = """
from configs.generators import gan

def get_config(variant=""):
    c = gan.get_config("smoke")
    c.optimizer.ema_decay = c.objective.ada_target = 0.0
    return c
"""

ROWS = """
from launch.systems import Row

def rows():
    svm = "subtask2/residual_svm", {"data.valid": 0.0}
    return [Row("svm", *svm), Row("similarity", *svm, uses=("features.run", "network"))]
"""


def _sets(root, **given):
    options = {
        "output": root / "sets",
        "config": root / "gan.py",
        "solver_steps": 0,
        "file": root / "rows.py",
        "rows": "svm",
        "images": 4,
        "image_size": 16,
        "groups": "",
    }
    _main(root, task="subtask2", **options | given)


@pytest.fixture(scope="module")
def of_sets(made):
    root, _ = made
    (root / "rows.py").write_text(ROWS)
    (root / "gan.py").write_text(GAN)
    _sets(root)
    (folder,) = (root / "sets").glob("sets_*")
    return root, folder


def test_two_runs_of_five_generators_share_their_images_and_nothing_else(of_sets):
    _, folder = of_sets
    a, b = (open_source(str(folder / letter / "data"), "subtask2") for letter in "ab")
    real, other = a.rows("train_real"), b.rows("train_real")
    assert len(real) == 20 and sorted(a.digests(real.index)) == sorted(b.digests(other.index))
    for split, count in (("train_generated", 8), ("test_generated", 2)):
        made, others = (source.rows(split) for source in (a, b))
        assert len(made) == len(others) == 5 * count
        assert set(a.digests(made.index)).isdisjoint(b.digests(others.index))
    for k in range(5):
        used = open_source(str(folder / "generators" / f"t{k + 1}" / "used"), "images")
        assert sorted(used.digests(used.rows("train").index)) == sorted(a.digests(real.index[real.labels == k]))
        seeds = [methods.load(folder / "generators" / f"t{k + 1}" / letter).config.seed for letter in "ab"]
        assert seeds == [k, 5 + k]
    assert Image.open(folder / "a" / "grid.png").size == (10 * 16, 5 * 2 * 16)


def test_a_system_that_learns_from_one_run_is_asked_about_both(of_sets, monkeypatch, capsys):
    root, folder = of_sets
    found = json.loads((folder / "benchmark.json").read_text())["attacks"]["svm"]["figures"]
    (workdir,) = (folder / "attacks").glob("svm-*")
    for letter, column in (("a", "same runs"), ("b", "other runs")):
        run = methods.load(workdir, data_dir=str(folder / letter / "data"))
        truth = dict(csv.reader((folder / letter / "images" / "truth.csv").open()))
        labels = [int(truth[name]) for name in run.rows("test_generated").ids.tolist()]
        scores = methods.predict(run, "test_generated").scores
        assert found[column]["value"] == pytest.approx(accuracy_score(labels, scores.argmax(axis=1)))
        assert found[column]["p"] == attribution.class_p(np.array(labels), scores.argmax(axis=1), 5)
    for module, name in ((methods, "fit"), (sampling, "make"), (sets, "attacked")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("made again"))
    _sets(root)
    header = (root / "sets" / "table.md").read_text().splitlines()[0]
    assert header.endswith("| oracle | svm, same runs | svm, other runs |")
    for rows, text in (
        ("similarity", "uses the run of row network: a benchmark has none, leave the row out"),
        ("x", "--rows=x: use of svm"),
    ):
        with pytest.raises(ValueError, match=text):
            _sets(root, rows=rows)


def test_weights_of_shadows_are_those_of_the_scores_that_tell_members():
    rng, benchmarks = np.random.default_rng(0), []
    for _ in range(3):
        labels = np.arange(400) % 2
        good, weak, bad = (zscore(rng.normal(size=400) + shift * labels) for shift in (2.0, 1.0, 0.0))
        benchmarks.append((np.stack([good, weak, bad], axis=1), labels))
    found = shadow.shadow(["good", "weak", "bad"], benchmarks, [0, 1, 2])
    weights = np.array(list(found["weights"].values()))
    assert weights[0] > weights[1] > 5 * abs(weights[2]) and np.linalg.norm(weights) == pytest.approx(1)
    # Two independent scores that part the classes by 2 and 1 deviations part them together by the root of 5.
    assert found["mean"]["shadow"] == pytest.approx(norm.cdf(np.sqrt(5 / 2)), abs=0.02) and len(found["auc"]) == 3
    assert found["mean"]["shadow"] > found["mean"]["good"] == pytest.approx(norm.cdf(np.sqrt(2)), abs=0.03)
    x, labels = benchmarks[0]
    assert found["auc"][0] == pytest.approx(roc_auc_score(labels, x @ shadow.learned(benchmarks[1:])))
    of_seed = shadow.shadow(["good", "weak", "bad"], benchmarks, [0, 1, 1])["auc"]  # of which two have the same images
    assert of_seed[1] == pytest.approx(roc_auc_score(benchmarks[1][1], benchmarks[1][0] @ shadow.learned(benchmarks[:1])))
    alone = shadow.shadow(["good", "weak", "bad"], benchmarks, [0, 0, 0])
    assert alone["auc"] == [None] * 3 and "shadow" not in alone["mean"]
    constant = shadow.shadow(["a", "b"], [(np.zeros((8, 2)), np.arange(8) % 2)], [0])
    assert list(constant["weights"].values()) == [0, 0] and constant["mean"]["a"] == 0.5


def test_labels_that_were_exchanged_since_are_no_truth(of_sets, tmp_path):
    root, folder = tmp_path / "copy", of_sets[1]
    shutil.copytree(of_sets[0], root)
    path = root / "sets" / folder.name / "b" / "images" / "truth.csv"
    path.write_text(path.read_text().replace(",0", ",1"))
    (root / "rows.py").write_text(ROWS.replace('"svm", *svm', '"anew", *svm'))
    with pytest.raises(ValueError, match="the labels in truth.csv are others than those that were made: give another --output"):
        _sets(root, rows="anew")


def test_the_curves_have_every_figure_against_the_oracle():
    def cell(steps, seed):
        return Cell(50, ConfigDict({"num_steps": steps, "seed": seed}), {"augment.flip": 0.5})

    def known(oracle, *values):
        figures = {column: {"value": value, "interval": [value - 0.1, None]} for column, value in zip("ab", values, strict=True)}
        return {"oracle": {"value": oracle}, "attacks": {"x": {"figures": figures}}}

    found = [(cell(200, 0), known(0.8, 0.7, 0.3)), (cell(100, 0), known(0.6, 0.5, 0.4)), (cell(100, 1), known(0.55, 0.52, 0.41))]
    panels = curves(found, ["x"]).axes
    assert [ax.get_ylabel() for ax in panels] == ["x, a", "x, b"]
    for ax, column in zip(panels, ([0.5, 0.7, 0.52], [0.4, 0.3, 0.41]), strict=True):
        first, second = (line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o")
        assert first == [[0.6, column[0]], [0.8, column[1]]] and second == [[0.55, column[2]]]
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == ["images 50, augment.flip 0.5, seed 0", "images 50, augment.flip 0.5, seed 1"]
