"""Benchmarks of real images: who is in them, that the official folders tell the truth, and that nothing is made twice."""

import csv
import json

import numpy as np
import pytest
from absl import flags
from PIL import Image
from sklearn.metrics import roc_auc_score

from fingerprint_jax import methods
from fingerprint_jax.data import phantom
from fingerprint_jax.data.source import Rows, open_source
from fingerprint_jax.training import inference, sampling
from launch import benchmark
from tests.conftest import ROOT

CONFIG = """
from configs.generators import flow

def get_config(variant=""):
    c = flow.get_config("smoke")
    c.optimizer.warmup_steps = 0
    return c
"""


def rows_of(sizes):
    """Rows of groups of these sizes."""
    groups = np.repeat([f"p{i}" for i in range(len(sizes))], sizes)
    n = len(groups)
    return Rows(np.array([f"i{i}" for i in range(n)]), np.zeros(n, np.int64), groups, np.arange(n))


def test_patients_are_whole_and_on_one_side():
    sizes = np.random.default_rng(0).integers(1, 5, 80)
    rows = rows_of(sizes)
    drawn = benchmark.draw(rows, 40, seed=3)
    assert list(drawn) == ["used", "used unknown", "not_used", "not_used unknown", "reference"]
    of = {name: set(part.groups.tolist()) for name, part in drawn.items()}
    for name, part in drawn.items():
        assert len(part) and len(part) == np.isin(rows.groups, list(of[name])).sum()  # all images of its patients
        assert not any(of[name] & of[other] for other in of if other != name)
    for side in ("used", "not_used"):
        both, unknown = len(drawn[side]) + len(drawn[f"{side} unknown"]), len(drawn[f"{side} unknown"])
        assert 40 - max(sizes) < both <= 40 and both / 4 - max(sizes) <= unknown <= both / 4 + max(sizes)
    fewer = benchmark.draw(rows, 20, seed=3)
    for side in ("used", "not_used"):
        members = [set(part[side].ids.tolist()) | set(part[f"{side} unknown"].ids.tolist()) for part in (fewer, drawn)]
        assert members[0] < members[1]
    assert fewer["reference"].ids.tolist() == drawn["reference"].ids.tolist()
    assert benchmark.draw(rows, 40, seed=4)["used"].ids.tolist() != drawn["used"].ids.tolist()


@pytest.mark.parametrize(
    ("images", "said"), [(200, "images .* may be used: give fewer"), (4, "1 patients of a side, more are needed")]
)
def test_too_few_images_or_patients_are_named(images, said):
    with pytest.raises(ValueError, match=f"--images={images}: .*{said}"):
        benchmark.draw(rows_of([4] * 40), images, seed=0)


def _main(root, **given):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    options = {"real_dir": root / "real", "groups": root / "groups.csv", "output": root / "out", "config": root / "config.py"}
    options |= {"file": ROOT / "launch" / "tables" / "subtask1.py", "rows": "gan_leaks_pixels"}
    options |= {"images": 12, "steps": 2, "count": 10, "solver_steps": 1} | given
    values(["benchmark", *(f"--{name}={value}" for name, value in options.items())])
    benchmark.main(values)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A benchmark of one generator, of 100 images of 50 patients."""
    root = tmp_path_factory.mktemp("benchmark")
    part = phantom.subtask1(0, 32, 0.0, real=1, generated=2, unknown=2, reference=100)["reference"]
    (root / "real").mkdir()
    with (root / "groups.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group"])
        for i, (image, group) in enumerate(zip(part.images, part.groups, strict=True)):
            Image.fromarray(image).save(root / "real" / f"{i:03d}.png")
            writer.writerow([f"{i:03d}", group])
    (root / "config.py").write_text(CONFIG)
    _main(root)
    (folder,) = (root / "out").glob("generator_*")
    return root, folder


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
    monkeypatch.setattr(inference, "outputs", lambda run, rows, cache, source: {"error": error})
    found = benchmark.oracle(methods.load(folder / "run"), source, folder)
    assert found["auc"] == pytest.approx(roc_auc_score(rows.labels, -error.mean(axis=1)))
    assert found["interval"][0] <= found["auc"] <= found["interval"][1]


def test_nothing_is_made_twice_and_more_is_added(made, monkeypatch, capsys):
    root, folder = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}
    with monkeypatch.context() as stopped:
        for module, name in ((methods, "fit"), (sampling, "make"), (benchmark, "attacked")):
            stopped.setattr(module, name, lambda *_: pytest.fail("made again"))
        _main(root)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    _main(root, rows="gan_leaks_pixels,domias_pixels")
    line = capsys.readouterr().out.splitlines()[-1]
    found = json.loads((folder / "benchmark.json").read_text())
    assert set(found["attacks"]) == {"gan_leaks_pixels", "domias_pixels"}
    assert line.startswith("| 12 | 2 | 0 | ") and f"{found['oracle']['auc']:.4f}" in line
    assert (root / "out" / "table.md").read_text().splitlines()[-1] == line


def test_without_patients_each_image_is_one(made):
    root, _ = made
    _main(root, groups="", output=root / "alone")
    (folder,) = (root / "alone").glob("generator_*")
    rows = open_source(str(folder / "data"), "subtask1").rows("train_real")
    assert rows.groups.tolist() == rows.ids.tolist() and len(rows) == 18


def test_patients_that_are_called_like_an_image_stay_whole(made, tmp_path):
    root, _ = made
    lines = [f"{i:03d},{i - i % 2:03d}" for i in range(98)]  # two images have no patient
    (tmp_path / "groups.csv").write_text("\n".join(["id,group", *lines]) + "\n")
    benchmark.pack(root / "real", str(tmp_path / "groups.csv"), 0, tmp_path)
    source = open_source(str(tmp_path / "pool"), "images")
    drawn = benchmark.draw(source.rows("train"), 12, seed=0)
    found = benchmark.splits(source, drawn, np.zeros((5, 32, 32), np.uint8))
    names, sizes = np.unique(np.concatenate([part.groups for part in found.values()]), return_counts=True)
    assert set(sizes[names != ""]) == {2}
    assert sizes.sum() == 5 + sum(map(len, drawn.values())) and 5 <= sizes[names == ""].sum() <= 7


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": 20}, "was made with another count: give that, or another --output"),
        ({"image_size": 48}, "has images of 32 pixels: give that, or another --output"),
        ({"rows": "aimm_siamese"}, "row aimm_siamese|--rows=aimm_siamese"),
        ({"steps": "2,x"}, "--steps=2,x: use whole numbers from 1 on"),
        ({"images": 5000}, "--images=5000: .* give fewer"),
        ({"config": "configs/quickstart.py"}, "no generator of the task images: use configs/generators/flow.py"),
    ],
)
def test_what_does_not_fit_is_one_line(given, said, made):
    with pytest.raises(ValueError, match=said):
        _main(made[0], **given)
