"""Features of a frozen network given to estimators that the command line chooses."""

import shutil

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity

from configs import base
from fingerprint_jax import estimators, features, methods
from fingerprint_jax.backbones import layers
from fingerprint_jax.data import augment, packing, phantom
from fingerprint_jax.data.source import Rows, open_source
from fingerprint_jax.evaluation import lineage, score
from fingerprint_jax.methods import classical, ensemble, gradient
from fingerprint_jax.report import neighbours
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inference
from fingerprint_jax.training.model import model_of
from tests.conftest import ROOT, fit, load_config

FEATURES = "configs/subtask2/aimm_features.py"


def _from_flags(path, *arguments):
    values = flags.FlagValues()
    line = ["main", f"--config={ROOT / path}:smoke", *arguments]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=line)
    values(line)
    return values.config


@pytest.fixture(scope="module")
def frozen(data_dir, tmp_path_factory):
    return fit(FEATURES, data_dir, tmp_path_factory.mktemp("frozen") / "run")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear_svm", {"C": 0.01}),
        ("kmeans", {}),
        ("kmeans", {"clusters": 7}),
        ("hierarchical", {}),
        ("similarity", {"readout": "knn", "k": 3}),
    ],
)
def test_the_command_line_chooses_the_estimator_and_its_options(name, options, frozen, data_dir, tmp_path):
    arguments = [f"--config.estimator.{field}={value}" for field, value in {"name": name, **options}.items()]
    config = _from_flags(FEATURES, *arguments)
    config.data_dir = data_dir
    methods.get("classical").fit(Run(config, tmp_path))
    run = Run.load(tmp_path)
    source = classical.encoder(run)
    x, query = (inference.outputs(source, run.rows(split))["embedding"] for split in ("train_generated", "heldout"))
    known = run.rows("train_generated")
    gallery = {"labelled": estimators.Features(x, known.labels, known.index)}
    unknown = np.full(len(query), -1)  # no estimator needs a query's label or number
    expected = estimators.get(name, **options)(estimators.Features(query, unknown, unknown), gallery, seed=0)
    np.testing.assert_allclose(methods.predict(run, "heldout").scores, expected, rtol=1e-6)


def test_an_option_of_another_estimator_is_refused_before_anything_is_trained(data_dir, tmp_path):
    config = _from_flags(FEATURES, "--config.estimator.name=kmeans", "--config.estimator.C=2")
    config.data_dir = data_dir
    with pytest.raises(ValueError, match="estimator.C is no option of kmeans; known: clusters"):
        methods.get("classical").fit(Run(config, tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_frozen_encoder_is_the_network_as_it_begins(frozen):
    source = classical.encoder(frozen)
    assert gradient.state(source) == 0
    drawn, state = model_of(source).init(jax.random.key(source.config.seed)), inference.restore(source)[1]
    for part in ("params", "rest"):
        for name, value in drawn[part].items():
            assert np.asarray(value).tobytes() == np.asarray(state[part][name]).tobytes(), name


def test_the_encoder_is_fine_tuned_where_it_has_steps(data_dir, tmp_path):
    config = _from_flags(FEATURES, "--config.member.num_steps=2", "--config.member.backbone.name=siamese_cnn_tiny")
    config.data_dir = data_dir
    run = Run(config, tmp_path)
    methods.get("classical").fit(run)
    source = classical.encoder(run)
    assert gradient.state(source) == 2
    # What the features are judged on had no part in the training.
    assert set(source.rows("heldout").ids) == set(run.rows("heldout").ids)
    assert not set(source.rows("train_generated").ids) & set(run.rows("heldout").ids)


def test_similarity_is_to_the_real_images_of_a_network_trained_on_them(data_dir, tmp_path):
    run = fit("configs/subtask2/medhastra_similarity.py", data_dir, tmp_path / "run")
    source = classical.encoder(run)
    assert list(source.config.data.streams) == ["real"]
    real, query = run.rows("train_real"), run.rows("heldout")
    x, q = (inference.outputs(source, rows)["embedding"] for rows in (real, query))
    pairs = cosine_similarity(q, x)
    expected = np.stack([pairs[:, real.labels == k].mean(axis=1) for k in range(5)], axis=1)
    np.testing.assert_allclose(methods.predict(run, "heldout").scores, expected, rtol=1e-4, atol=1e-5)
    assert load_config("configs/subtask2/medhastra_similarity.py", "").member.backbone.name == "resnet18"


ATTACK = "configs/subtask1/gan_leaks.py"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"member.features.run": "runs/x"}, "features.run and features.output are of networks: set features.name=network"),
        ({"member.features.name": "network", "member.features.enhance": "blur"}, "features.enhance='blur' is unknown"),
        ({"member.features.name": "texture", "member.whiten": True}, "whiten=True scales principal components, and there are none"),
        ({"member.gallery.reference": ("test_real:0",)}, "gallery.reference: this run sees no row of test_real:0"),
        ({"member.gallery.reference": ("nothing",)}, r"gallery.reference: none of \['nothing'\] is in the data set"),
    ],
)
def test_what_cannot_be_is_one_line(fields, message, data_dir, tmp_path):
    config = load_config(ATTACK)
    config.data_dir = data_dir
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        methods.get("ensemble").fit(Run(config, tmp_path / "run"))


def test_a_class_that_is_held_out_whole_is_named(data_dir, tmp_path, monkeypatch):
    """Without it there would be a column less, and each class above it would have the name of another."""
    config = load_config("configs/subtask2/residual_svm.py")
    config.data_dir = data_dir
    run = Run(config, tmp_path / "run")
    methods.fit(run)
    for act in (lambda: methods.fit(Run(config, tmp_path / "other")), lambda: methods.predict(run, "heldout")):
        with monkeypatch.context() as patch:
            gallery = Run.gallery.fget

            def without(self, gallery=gallery):
                return {name: rows.take(rows.labels != 1) for name, rows in gallery(self).items()}

            patch.setattr(Run, "gallery", property(without))
            with pytest.raises(ValueError, match="gallery.labelled has no image of class 't2' .*: use other data.folds"):
                act()
    assert not (tmp_path / "other").exists()


def test_a_frozen_network_and_image_features_are_shared_by_folds_and_seeds(data_dir, tmp_path, monkeypatch):
    config = load_config(ATTACK)
    config.data_dir, config.ensemble.seeds = data_dir, 2
    config.member.features.name, config.member.member.backbone.name = "network", "siamese_cnn_tiny"
    config.ensemble.variants = {"texture": {"features": {"name": "moments"}}, "deep": {"seed": 0}}
    run = Run(config, tmp_path / "run")
    seen = []
    encode = inference.encode
    monkeypatch.setattr(inference, "encode", lambda *arguments: (seen.append(arguments[2].index.tolist()), encode(*arguments))[1])
    methods.get("ensemble").fit(run)
    assert len(methods.predict(run, "heldout").ids) == len(run.rows("heldout"))
    # Two networks, that differ in the seed, encode each split once for all the folds.
    splits = [run.source.rows(split).index.tolist() for split in ("train_generated", "test_generated", "reference", "train_real")]
    assert sorted(seen) == sorted(2 * splits)
    assert len(list((run.workdir / "children").glob("encoder-*"))) == 2


def test_the_network_of_a_finished_run_may_not_have_been_trained_on_what_is_held_out(data_dir, tmp_path):
    def network(stream):
        config = base.gradient("subtask1")
        config.data_dir, config.num_steps, config.backbone.name = data_dir, 1, "siamese_cnn_tiny"
        config.data.streams = ConfigDict({stream: 8})
        methods.get("gradient").fit(Run(config, tmp_path / stream))
        return str(tmp_path / stream)

    config = load_config(ATTACK)
    config.data_dir, config.member.features.name = data_dir, "network"
    config.member.features.run = network("real")
    with pytest.raises(ValueError, match=r"was trained on \d+ images that this run holds out"):
        methods.get("ensemble").fit(Run(config, tmp_path / "a"))
    config.member.features.run = network("generated")
    run = Run(config, tmp_path / "b")
    methods.get("ensemble").fit(run)
    assert np.isfinite(methods.predict(run, "heldout").scores).all()
    config.member.features.run = str(run.workdir)
    with pytest.raises(ValueError, match="is a run of method ensemble: give that of one network"):
        methods.get("ensemble").fit(Run(config, tmp_path / "c"))


def test_a_network_that_was_trained_anew_in_its_place_is_another(data_dir, tmp_path):
    network = base.gradient("subtask1")
    network.data_dir, network.num_steps, network.backbone.name = data_dir, 1, "siamese_cnn_tiny"
    network.data.streams, network.data.folds, network.data.fold = ConfigDict({"real": 8}), 2, 0
    config = base.classical(network)
    config.data_dir, config.features.run = data_dir, str(tmp_path / "network")
    config.data, config.gallery["labelled"] = network.data.copy_and_resolve_references(), ("train_real",)

    def trained(**fields):
        shutil.rmtree(tmp_path / "network", ignore_errors=True)
        network.update_from_flattened_dict(fields)
        methods.fit(Run(network, tmp_path / "network"))

    trained()
    methods.fit(Run(config, tmp_path / "run"))
    before = methods.predict(Run.load(tmp_path / "run"), "heldout").scores
    trained(seed=1)
    with pytest.raises(
        ValueError, match=f"network is another run than that which {tmp_path / 'run'} was fitted with: put that back"
    ):
        methods.predict(Run.load(tmp_path / "run"), "heldout")
    (tmp_path / "run" / "done").write_text('{"encoder": null}')  # as an older version has it
    assert not np.array_equal(methods.predict(Run.load(tmp_path / "run"), "heldout").scores, before)
    trained(**{"data.folds": 0, "data.fold": -1})
    with pytest.raises(ValueError, match=r"was trained on \d+ images that this run holds out: give both the same data, data.folds"):
        methods.predict(Run.load(tmp_path / "run"), "heldout")


def test_the_network_of_a_finished_run_is_known_by_what_it_was_trained_on(data_dir, packs, tmp_path):
    network = base.gradient("subtask1")
    network.data_dir, network.num_steps, network.backbone.name = data_dir, 1, "siamese_cnn_tiny"
    network.data.streams, network.data.folds, network.data.fold = ConfigDict({"real": 8}), 2, 0
    methods.get("gradient").fit(Run(network, tmp_path / "network"))
    config = base.classical(network)
    config.data, config.features.run = network.data, str(tmp_path / "network")
    config.gallery["labelled"] = ("train_real",)
    config.data_dir = packs["moved"]
    methods.get("classical").fit(Run(config, tmp_path / "moved"))
    config.data_dir = packs["changed"]
    with pytest.raises(ValueError, match=r"was trained on \d+ images that this run holds out: give both the same data, data.folds"):
        methods.get("classical").fit(Run(config, tmp_path / "changed"))
    config.data_dir = packs["other"]  # none of which it has seen
    methods.get("classical").fit(Run(config, tmp_path / "other"))
    assert lineage.in_sample(Run.load(tmp_path / "other"), "heldout") == []
    (trained,) = lineage.in_sample(Run.load(tmp_path / "other"), "train_real")
    assert trained.startswith("The split train_real holds")  # by its gallery
    config.estimator.name, config.estimator.C, config.gallery = (
        "mahalanobis",
        None,
        {"generated": ("train_generated",)},
    )  # then neither has seen them
    methods.get("classical").fit(Run(config, tmp_path / "unread"))
    assert lineage.in_sample(Run.load(tmp_path / "unread"), "train_real") == []


def test_features_are_of_any_layer_of_the_network(data_dir, tmp_path):
    config = load_config(ATTACK)
    config.data_dir, config.member.features.name, config.member.member.backbone.name = data_dir, "network", "resnet_tiny"
    config.member.features.output = "stages/0/0"
    run = Run(config, tmp_path / "run")
    methods.get("ensemble").fit(run)
    assert np.isfinite(methods.predict(run, "heldout").scores).all()
    member = ensemble.members(run)[0][1]
    source, rows = classical.encoder(member), run.rows("heldout")
    stored = classical._features(member, rows)
    net = model_of(source).merge(*model_of(source).weights(inference.restore(source)[1]))
    x = augment.normalize(run.source.images(rows.index), source.config.data.normalize)
    recorded = layers.record(net.backbone, "stages/0/0")
    net.backbone.maps(x, train=False)
    assert stored.shape == (len(rows), 8)
    np.testing.assert_allclose(stored, np.mean(recorded[0], axis=(1, 2)), rtol=1e-4, atol=1e-5)
    config.member.features.output = "stages/7"
    with pytest.raises(
        ValueError, match="features.output='stages/7' is unknown: did you mean 'stages/.*known: embedding, logits, .*stages/0/0"
    ):
        methods.get("ensemble").fit(Run(config, tmp_path / "b"))


def test_outputs_and_a_feature_of_the_images_stand_side_by_side(data_dir, tmp_path):
    config = load_config("configs/subtask1/neural_nexus_texture.py")
    config.data_dir, config.member.features.beside = data_dir, "moments"
    config.member.estimator.textures, config.member.estimator.selected = 4, 2
    run = Run(config, tmp_path / "run")
    methods.get("ensemble").fit(run)
    member = ensemble.members(run)[0][1]
    rows = member.rows("train_real").take(np.arange(5))
    source = classical.encoder(member)
    outputs = inference.encode(source, inference.restore(source)[1], rows)
    moments = features.get("moments")(run.source.images(rows.index))
    expected = np.concatenate([outputs["error"][:, None], outputs["embedding"], moments], axis=1)
    np.testing.assert_allclose(classical._features(member, rows), expected, rtol=1e-4, atol=1e-6)
    config.member.features.beside = "nothing"
    with pytest.raises(ValueError, match="features.beside='nothing' is unknown"):
        methods.get("ensemble").fit(Run(config, tmp_path / "b"))


def test_the_network_of_another_task_gives_features_but_no_p(data_dir, tmp_path):
    network = fit("configs/subtask2/aimm_siamese.py", data_dir, tmp_path / "network")
    config = load_config(ATTACK)
    config.data_dir, config.member.features.name, config.member.features.run = data_dir, "network", str(network.workdir)
    run = Run(config, tmp_path / "run")
    methods.get("ensemble").fit(run)
    rows = run.rows("heldout")
    state = inference.restore(network)[1]
    expected = inference.encode(network, state, rows, source=run.source)["embedding"]
    np.testing.assert_array_equal(classical._features(ensemble.members(run)[0][1], rows), expected)
    # Distances of the page are of these images too: record numbers of the other data set name others.
    member = ensemble.members(run)[0][1]
    predictions = methods.predict(member, "heldout")
    heldout, reference = member.rows("heldout"), member.rows("reference")
    shown = neighbours.look_alikes(member, "heldout", heldout, predictions, heldout.labels, ["not_used", "used"])
    synthetic = Rows.concatenate([member.rows("train_generated"), member.rows("test_generated")])
    streams = [synthetic, heldout, reference]
    gallery, *asked = (inference.encode(network, state, each, source=member.source)["embedding"] for each in streams)
    nearest = cdist(asked[0], gallery).min(axis=1), cdist(asked[1], gallery).min(axis=1)
    sides = [nearest[0][heldout.labels == 1], nearest[0][heldout.labels == 0], nearest[1]]
    np.testing.assert_allclose([q for *_, q in shown.distances], [np.percentile(x, [25, 50, 75]) for x in sides], rtol=1e-3)
    assert "whether it has seen these images is not known" in shown.space
    found = score.evaluate(Run.load(tmp_path / "run"), "heldout")["metrics"]["permutation"]
    assert found["p"] is None and found["reason"].endswith("images of subtask2: whether these are among them is not known")
    phantom.write(tmp_path / "small", "subtask1", phantom.subtask1(0, 32, 0.0, 4, 4, 2, 0), 0)
    packing.pack("subtask1", tmp_path / "data32", tmp_path / "small" / "train")
    config.data_dir, config.member.gallery.reference = str(tmp_path / "data32"), ("train_real:0",)
    with pytest.raises(ValueError, match="its network takes images of 48x48 pixels, these have 32x32"):
        methods.get("ensemble").fit(Run(config, tmp_path / "c"))


def test_runs_share_the_features_of_a_cache(data_dir, tmp_path, monkeypatch):
    computed, compute = [], features._compute
    monkeypatch.setattr(features, "_compute", lambda *arguments: (computed.append(arguments[2]), compute(*arguments))[1])
    for name in "ab":
        config = load_config(ATTACK)
        config.data_dir, config.seed, config.member.features.cache_dir = data_dir, ord(name), str(tmp_path / "features")
        methods.get("ensemble").fit(Run(config, tmp_path / name))
    source = Run.load(tmp_path / "a").source
    sizes = [len(source.rows(split)) for split in ("train_generated", "test_generated", "reference")]
    assert sorted(computed) == sorted(sizes)
    config.member.features.cache_dir = str(tmp_path / "moved")
    methods.get("ensemble").fit(Run(config, tmp_path / "b"))  # no change of the run
    assert sorted(computed) == sorted(2 * sizes)
    assert not (tmp_path / "a" / "features").exists()


def test_a_frozen_network_has_trained_on_nothing_that_the_page_shows(frozen):
    predictions = methods.predict(frozen, "heldout")
    rows = frozen.rows("heldout")
    found = neighbours.look_alikes(frozen, "heldout", rows, predictions, predictions.scores.argmax(axis=1), list("abcde"))
    assert not isinstance(found, str)


def test_on_data_packed_anew_an_image_is_not_compared_with_itself_either(data_dir, phantoms, tmp_path):
    config = load_config("configs/subtask1/local_match.py", "official")
    config.data_dir, root = data_dir, phantoms["subtask1"]
    methods.get("ensemble").fit(Run(config, tmp_path / "run"))
    packing.pack("subtask1", tmp_path / "other", root / "train", root / "test", groups=root / "groups.csv")  # no reference
    tables = [methods.predict(methods.load(tmp_path / "run", data_dir=d), "test_real") for d in ("", str(tmp_path / "other"))]
    assert tables[0].ids.tolist() == tables[1].ids.tolist()
    np.testing.assert_array_equal(tables[0].scores, tables[1].scores)
    # Labelled now, under other names.
    for i, path in enumerate(sorted((root / "test" / "real_unknown").iterdir())):
        folder = tmp_path / "named" / ("real_used" if i % 2 else "real_not_used")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"a{path.name}")
    shutil.copytree(root / "train" / "generated", tmp_path / "named" / "generated")
    packing.pack("subtask1", tmp_path / "labelled", tmp_path / "named")
    named = methods.predict(methods.load(tmp_path / "run", data_dir=str(tmp_path / "labelled")), "train_real")
    scores = dict(zip(tables[0].ids.tolist(), tables[0].scores[:, 0].tolist(), strict=True))
    assert {id.rpartition("/a")[2]: score for id, score in zip(named.ids, named.scores[:, 0], strict=True)} == pytest.approx(scores)


def test_on_data_without_its_reference_the_scores_have_the_same_p(data_dir, phantoms, tmp_path):
    config = load_config(ATTACK)
    config.data_dir = data_dir
    methods.get("ensemble").fit(Run(config, tmp_path / "run"))
    root = phantoms["subtask1"]
    packing.pack("subtask1", tmp_path / "other", root / "train", groups=root / "groups.csv")
    run = Run.load(tmp_path / "run", data_dir=str(tmp_path / "other"))
    found, expected = (score.evaluate(r, "heldout")["metrics"]["permutation"] for r in (run, Run.load(tmp_path / "run")))
    assert found == expected and found["p"] is not None  # no label had a part in the scores, here or there
    # What else is in the galleries counts nevertheless.
    config.member.gallery.labelled = ("train_real",)
    methods.get("ensemble").fit(Run(config, tmp_path / "labelled"))
    run = Run.load(tmp_path / "labelled", data_dir=str(tmp_path / "other"))
    assert lineage.cross_fitted(run, "heldout") and lineage.in_sample(run, "train_real")


def test_what_a_finished_run_compares_with_was_packed_anew_in_its_place(phantoms, tmp_path):
    root = phantoms["subtask2"]

    def pack(data, train):
        packing.pack("subtask2", data, train, root / "test", overwrite=True)
        open_source.cache_clear()

    fewer = tmp_path / "fewer"
    shutil.copytree(root / "train", fewer)
    for folder in (fewer / "generated").iterdir():
        min(folder.iterdir()).unlink()
    pack(tmp_path / "data", root / "train")
    pack(tmp_path / "other", fewer)
    config = load_config("configs/subtask2/residual_svm.py")
    config.data_dir = str(tmp_path / "data")
    methods.fit(Run(config, tmp_path / "run"))
    before = methods.predict(methods.load(tmp_path / "run"), "test_generated").scores
    found = methods.predict(methods.load(tmp_path / "run", data_dir=str(tmp_path / "other")), "test_generated")
    np.testing.assert_array_equal(found.scores, before)  # it still learns from its own
    pack(tmp_path / "data", fewer)
    said = f"{tmp_path / 'run'} compares images with train_generated, and {tmp_path / 'data'} was packed anew with others: put back"
    with pytest.raises(ValueError, match=said):
        methods.predict(methods.load(tmp_path / "run"), "test_generated")
    shutil.rmtree(fewer / "real" / "t1")
    shutil.copytree(root / "train" / "real" / "t2", fewer / "real" / "t1")
    shutil.copytree(root / "train" / "generated", fewer / "generated", dirs_exist_ok=True)
    pack(tmp_path / "data", fewer)  # others which it does not look at
    np.testing.assert_array_equal(methods.predict(methods.load(tmp_path / "run"), "test_generated").scores, before)


def test_extra_labels_that_changed_are_not_learned_from_by_a_finished_run(data_dir, tmp_path):
    config = load_config("configs/subtask2/residual_svm.py")
    ids = open_source(data_dir, "subtask2").rows("test_generated").ids.tolist()
    table = tmp_path / "extra.csv"

    def write(shift):
        lines = [f"test_generated,{id},{(i + shift) % 5}" for i, id in enumerate(ids)]
        table.write_text("\n".join(["split,id,label", *lines]))

    write(0)
    config.data_dir, config.data.extra_labels = data_dir, str(table)
    methods.fit(Run(config, tmp_path / "run"))
    before = methods.predict(methods.load(tmp_path / "run"), "heldout").scores
    shutil.rmtree(tmp_path / "run" / "predictions")
    table.rename(tmp_path / "moved.csv")  # they may move
    moved = methods.load(tmp_path / "run")
    moved.config.data.extra_labels = str(tmp_path / "moved.csv")
    np.testing.assert_array_equal(methods.predict(moved, "heldout").scores, before)
    write(1)
    with pytest.raises(ValueError, match=f"{tmp_path / 'run'} compares images with extra_labels, and .* was packed anew"):
        methods.predict(methods.load(tmp_path / "run"), "heldout")


def test_a_test_set_that_arrives_later_is_no_gallery_of_a_finished_run(phantoms, tmp_path):
    root = phantoms["subtask1"]
    config = load_config("configs/subtask1/challengers_distance.py")
    config.data_dir = str(tmp_path / "data")
    for test in ("", root / "test"):
        packing.pack("subtask1", tmp_path / "data", root / "train", test, root / "reference", overwrite=True)
        open_source.cache_clear()
        if not test:
            methods.fit(Run(config, tmp_path / "run"))
            methods.predict(methods.load(tmp_path / "run"), "heldout")
    with pytest.raises(ValueError, match="compares images with test_generated, and .* was packed anew with others"):
        methods.predict(methods.load(tmp_path / "run"), "heldout")
