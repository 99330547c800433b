"""Patient re-identification: pairs against slow loops, what it refuses, and that it finds the patients that were kept."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fingerprint_jax import methods
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.evaluation import lineage
from fingerprint_jax.methods import ensemble
from fingerprint_jax.objectives import reidentification
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import score_metrics
from tests.conftest import fit, load_config

CONFIG = "configs/subtask1/reidentification.py"


def _objective(task="subtask1", flip=False, **options):
    config = load_config(CONFIG).member
    config.task, config.views.flip = task, flip
    config.objective.update({"width": 5} | options)
    return reidentification.Objective(config, 2, (16, 16, 1))


def _outputs(rng, first, count):
    embedding = rng.normal(size=(count, 5))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    found = {"features": rng.uniform(size=(count, 5)), "embedding": embedding}
    return {name: x.astype(np.float32) for name, x in found.items()} | {"index": np.arange(first, first + count)}


@pytest.mark.parametrize("readout", ["probability", "distance"])
def test_the_score_is_the_likeness_to_the_synthetic_images_less_that_to_the_reference(readout, monkeypatch):
    monkeypatch.setattr(reidentification, "BLOCK", 4)
    objective, rng = _objective(readout=readout), np.random.default_rng(0)
    net = objective.build(nnx.Rngs(params=0))
    net.head.bias.set_value(jnp.array([0.5]))
    kernel = np.asarray(net.head.kernel.get_value(), np.float64)[:, 0]
    query, generated, reference = _outputs(rng, 10, 9), _outputs(rng, 0, 15), _outputs(rng, 30, 7)
    for name in ("features", "embedding"):
        generated[name][12] = query[name][2]  # the same image: record 12
    found = objective.scores(net, query, {"generated": generated, "reference": reference})

    def likeness(i, stream, j):
        if readout == "distance":
            return -np.linalg.norm(query["embedding"][i].astype(float) - stream["embedding"][j])
        return np.abs(query["features"][i].astype(float) - stream["features"][j]) @ kernel + 0.5

    expected = [
        [
            max(likeness(i, generated, j) for j in range(15) if query["index"][i] != generated["index"][j])
            - max(likeness(i, reference, j) for j in range(7))
        ]
        for i in range(9)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_host_compares_as_the_network_is_trained_to():
    net, rng = _objective().build(nnx.Rngs(params=0)), np.random.default_rng(1)
    a, b = (rng.uniform(size=(count, 5)).astype(np.float32) for count in (6, 4))
    np.testing.assert_allclose(reidentification.logits(net, a, b), net.compare(jnp.asarray(a), jnp.asarray(b)), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"task": "subtask2"}, "answers membership, not task='subtask2'"),
        ({"flip": True}, "views.flip=True, views.shift=0: reidentification has none"),
        ({"readout": "mean"}, "objective.readout='mean' is unknown; known: probability, distance"),
    ],
)
def test_what_it_cannot_do_is_named(fields, text):
    with pytest.raises(ValueError, match=text):
        _objective(**fields)


def test_a_gallery_that_is_missing_is_named():
    outputs = _outputs(np.random.default_rng(0), 0, 2)
    with pytest.raises(ValueError, match="gallery.reference is missing"):
        _objective().scores(None, outputs, {"generated": outputs})


def test_data_without_patients_are_refused(phantoms, tmp_path):
    """Also where two images of the reference are equal, which makes them one group."""
    root = phantoms["subtask1"]
    shutil.copytree(root / "reference", tmp_path / "reference")
    first, second, *_ = sorted((tmp_path / "reference").iterdir())
    for i, image in enumerate((first, second)):
        shutil.copy(image, tmp_path / "reference" / f"copy{i}.png")
    packing.pack("subtask1", tmp_path, root / "train", reference_dir=tmp_path / "reference")
    config = load_config(CONFIG)
    config.data_dir = str(tmp_path)
    with pytest.raises(ValueError, match="data.streams.reference: 0 patients have two images or more"):
        methods.check(Run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_network_does_for_all_folds_reads_no_image_asked_about_and_has_a_p(data_dir, tmp_path):
    run = fit(CONFIG, data_dir, tmp_path / "run")
    assert [(fold, member.workdir.name) for fold, member in ensemble.members(run)] == [(-1, "seed0")]
    assert not any(methods.reads(run.config, split) for split in ("train_real", "test_real"))
    assert lineage.unavailable(run, run.rows("heldout")) is None


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Phantoms of 32 px, the same real images with a generator that keeps what it has seen and with one that keeps nothing."""
    root, sizes = tmp_path_factory.mktemp("packed"), {"real": 60, "generated": 120, "unknown": 2, "reference": 300}
    for name, leak in (("kept", 1.0), ("none", 0.0)):
        phantom.write(root / name, "subtask1", phantom.subtask1(3, 32, leak, **sizes), seed=0)
        packing.pack(
            "subtask1", root / name / "data", root / name / "train", "", root / name / "reference", root / name / "groups.csv"
        )
    return {name: str(root / name / "data") for name in ("kept", "none")}


def test_patients_that_a_generator_has_kept_are_found_and_others_are_not(packed, tmp_path):
    config = network_config(load_config(CONFIG, "small"))
    config.data_dir = packed["kept"]
    config.num_steps, config.eval_every, config.checkpoint_every = 200, 200, 200
    config.backbone.width = 64
    methods.fit(run := Run(config, tmp_path / "run"))

    def auc(run):
        return score_metrics.auc(run.rows("train_real").labels, methods.predict(run, "train_real").scores[:, 0])

    assert auc(run) > 0.8
    unrelated = auc(methods.load(tmp_path / "run", data_dir=packed["none"]))
    assert abs(unrelated - 0.5) < 0.13  # 2.4 standard errors of 60 and 60 images
