"""A network begins with the parameters of another run: `init_from`, or the child `pretrain`."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from configs import base
from fingerprint_jax import methods
from fingerprint_jax.backbones import pretrained, vit
from fingerprint_jax.backbones.vit import resample_positions
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.evaluation import lineage, watch
from fingerprint_jax.methods import ensemble, gradient
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inference, loop
from fingerprint_jax.training.model import Model, model_of
from launch import compare
from launch.compare import Scored
from tests.backbones import test_pretrained
from tests.conftest import last_state, load_config, same_bytes

SMALL = {"name": "strided_resnet_tiny", "weights": ""}
AUTOENCODER = {"name": "autoencoder", "error": "mse", "latent": 0, "widths": (4, 4, 2)}


def _classifier(data_dir, task="images", stream="train", num_steps=1, backbone="strided_resnet_tiny"):
    config = base.finish(base.gradient(task), "smoke")
    config.data_dir, config.num_steps, config.backbone.name = data_dir, num_steps, backbone
    config.data.streams = ConfigDict({stream: 8})
    return config


def _autoencoder(data_dir, backbone="strided_resnet_tiny", **fields):
    config = _classifier(data_dir, "subtask1", "generated", 2, backbone)
    config.data.normalize = "symmetric"
    config.objective = ConfigDict(AUTOENCODER)
    config.update(fields)
    return config


def _fit(config, workdir, **options):
    run = Run(config, workdir, **options)
    gradient.fit(run)
    return run


@pytest.fixture(scope="module")
def source(data_dir, tmp_path_factory):
    """A classifier of the task images."""
    return _fit(_classifier(data_dir), tmp_path_factory.mktemp("source") / "run")


def test_parameters_and_statistics_are_copied_by_path_and_shape_and_the_rest_is_named(source, data_dir, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fingerprint_jax.training.model"):
        run = _fit(_autoencoder(data_dir, num_steps=0, init_from=str(source.workdir)), tmp_path / "run")
    (line,) = [record.getMessage() for record in caplog.records if "begins with" in record.getMessage()]
    ours, theirs = last_state(run), last_state(source)
    drawn = model_of(run).init(jax.random.key(run.config.seed))
    moved = 0
    for part in ("params", "rest"):
        for name, value in ours[part].items():
            of_backbone = name.startswith("backbone/")
            np.testing.assert_array_equal(value, theirs[part][name] if of_backbone else drawn[part][name], err_msg=name)
            moved += of_backbone and not np.array_equal(value, drawn[part][name])
    assert moved > 20 and any(name.endswith("mean") for name in ours["rest"])
    copied = sum(name.startswith("backbone/") for part in ("params", "rest") for name in ours[part])
    total = len(ours["params"] | ours["rest"])
    assert line.startswith(f"begins with {source.workdir}: {copied} of {total} arrays; drawn anew: decoder/")
    assert f"and {total - copied - 4} more; not taken: head/bias, head/kernel" in line


def test_what_has_another_shape_is_drawn_and_nothing_in_common_is_refused(source, data_dir, tmp_path, caplog):
    wide = _autoencoder(data_dir, num_steps=0, init_from=str(source.workdir))
    wide.backbone.num_features = 8
    with caplog.at_level(logging.INFO, "fingerprint_jax.training.model"):
        run = _fit(wide, tmp_path / "wide")
    assert "of another shape: backbone/dense/bias, backbone/dense/kernel" in caplog.text
    name = "backbone/stages/0/conv/kernel"
    np.testing.assert_array_equal(last_state(run)["params"][name], last_state(source)["params"][name])
    other = _autoencoder(data_dir, "vit_tiny", init_from=str(source.workdir))
    with pytest.raises(ValueError, match="the network has no array of the same path and shape; drawn anew: backbone/blocks"):
        _fit(other, tmp_path / "other")


@pytest.mark.parametrize("name", ["taozi_experts", "neural_nexus_dclgan"])
def test_networks_of_several_backbones_begin_with_all_of_them(name):
    config = network_config(load_config(f"configs/subtask1/{name}.py"))
    small, large = (Model(config, 2, (side, side, 1)) for side in (16, 32))
    known, state = small.init(jax.random.key(1)), large.init(jax.random.key(2))
    found = large.begin(state, known["params"] | known["rest"], "another")["params"]
    grids = [path for path in found if path.endswith("pos_embed")]
    assert len(grids) == ("+" in config.backbone.name)
    for path, value in found.items():
        expected = known["params"][path]
        if path in grids:
            expected = vit.adapt("pos_embed", np.asarray(expected), large.merge(state["params"], state["rest"]).backbone[-1])
        np.testing.assert_array_equal(value, expected, err_msg=path)


def test_a_network_is_known_by_the_labelled_images_it_was_trained_on(data_dir, packs, tmp_path):
    config = _classifier(data_dir, "subtask1", "real")
    config.data.folds, config.data.fold = 2, 0
    source = _fit(config, tmp_path / "source")
    config.init_from, config.data_dir = str(source.workdir), packs["moved"]
    _fit(config, tmp_path / "moved")
    config.data_dir = packs["changed"]
    with pytest.raises(ValueError, match=r"its network is trained on \d+ images that this run holds out"):
        _fit(config, tmp_path / "changed")
    config.data_dir = packs["other"]  # none of which it has seen
    _fit(config, tmp_path / "other")
    assert lineage.in_sample(Run.load(tmp_path / "other"), "heldout") == []
    path = source.workdir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_dir": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match=f"{source.workdir} was started with another train_real than .* is gone"):
        _fit(config, tmp_path / "unknown")
    config.data.folds, config.data.fold = 0, -1  # nothing is held out
    _fit(config, tmp_path / "whole")


def test_what_a_network_has_read_elsewhere_is_known_by_the_pixels(data_dir, phantoms, tmp_path):
    """Images that are held out here, and were trained on as another task or in another split of other data."""
    images = phantoms["subtask2"] / "train"
    packing.pack("images", tmp_path / "classes", images / "generated")
    whole = _fit(_classifier(str(tmp_path / "classes")), tmp_path / "whole")
    real = _fit(_classifier(data_dir), tmp_path / "real")  # of the real images, none of which is asked about here
    other_size = phantom.subtask2(seed=5, size=32, leak=0.5, real=4, generated=4, unknown=2)
    phantom.write(tmp_path / "small", "subtask2", other_size, seed=5)
    packing.pack("images", tmp_path / "of_32", tmp_path / "small" / "train" / "generated")
    small = _fit(_classifier(str(tmp_path / "of_32")), tmp_path / "small_run")
    config = _classifier(data_dir, "subtask2", "generated")
    config.data.folds, config.data.fold, config.data.valid, config.best = 5, 0, 0.0, ""
    config.init_from = str(whole.workdir)
    with pytest.raises(ValueError, match=r"its network is trained on 20 images that this run holds out"):
        _fit(config, tmp_path / "refused")
    assert not (tmp_path / "refused" / "config.json").exists()
    config.init_from = str(real.workdir)
    assert lineage.in_sample(_fit(config, tmp_path / "unseen"), "heldout") == []
    config.init_from = str(small.workdir)
    (note,) = lineage.in_sample(_fit(config, tmp_path / "unknown"), "heldout")
    assert note.startswith("Whether any of these 20 images is among those that") and note.endswith("gone, or of another size.")
    # The features of such a network are refused as well.
    attack = base.featured("subtask2", "pixels")
    attack.data, attack.data_dir, attack.gallery = config.data, data_dir, ConfigDict({"labelled": ("train_generated",)})
    attack.features = ConfigDict({"name": "network", "run": str(whole.workdir), "output": "embedding", "enhance": "none"})
    attack.features.update({"beside": "", "cache_dir": ""})
    with pytest.raises(ValueError, match=r"was trained on 20 images that this run holds out"):
        methods.fit(Run(attack, tmp_path / "attack"))


def test_of_the_task_images_every_image_counts_whatever_split_it_was_in(data_dir, phantoms, tmp_path):
    train = phantoms["subtask2"] / "train"
    for k in range(1, 6):
        shutil.copytree(train / "generated" / f"gen_t{k}", tmp_path / "generated" / f"t{k}")
    packing.pack("images", tmp_path / "data", tmp_path / "generated")
    packing.pack("images", tmp_path / "turned", train / "real", tmp_path / "generated")
    learned = _classifier(data_dir, "subtask2", "generated")
    learned.data.folds, learned.data.fold, learned.data.valid, learned.best = 0, -1, 0.0, ""
    source = _fit(learned, tmp_path / "source")
    config = _classifier(str(tmp_path / "data"))
    config.data.folds, config.data.fold, config.init_from = 2, 0, str(source.workdir)
    with pytest.raises(ValueError, match=r"its network is trained on 50 images that this run holds out"):
        _fit(config, tmp_path / "run")
    config.data_dir = str(tmp_path / "turned")  # there they are the split `test`
    notes = lineage.in_sample(_fit(config, tmp_path / "turned_run"), "test")
    assert notes == [f"{source.workdir} was trained on 100 of these 100 images, as subtask2: the figures are too good."]


def test_what_is_gone_or_another_in_its_place_is_not_known(data_dir, tmp_path):
    config = _classifier(data_dir, "subtask1", "real")
    config.data.folds, config.data.fold = 0, -1
    _fit(config, tmp_path / "a")
    begun = _classifier(data_dir, "subtask1", "generated")
    begun.init_from = str(tmp_path / "a")
    b = _fit(begun, tmp_path / "b")
    held = _classifier(data_dir, "subtask1", "generated")
    held.data.folds, held.data.fold, held.init_from = 2, 0, str(b.workdir)
    held.decision.name, held.decision.params = "threshold", ConfigDict({"value": 0.5})
    with pytest.raises(ValueError, match=r"its network is trained on \d+ images that this run holds out"):
        _fit(held, tmp_path / "c")
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=f"{b.workdir} began with {tmp_path}/a, which is gone and may have read images that this run"
    ):
        _fit(held, tmp_path / "c")
    config.seed = 1
    config.data.folds, config.data.fold = 2, 0
    _fit(config, tmp_path / "a")  # trained anew in its place, with the fold held out
    with pytest.raises(ValueError, match=f"{b.workdir} began with another network than that in {tmp_path}/a now"):
        _fit(held, tmp_path / "c")
    (note,) = (note for note in lineage.in_sample(Run.load(b.workdir), "train_real") if "not known" in note)
    assert note.startswith(f"{b.workdir} began with another network than") and note.endswith("are too good is not known.")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "moved").rename(tmp_path / "a")
    assert not [note for note in lineage.in_sample(Run.load(b.workdir), "train_real") if "not known" in note]


def test_a_run_that_has_no_checkpoint_yet_looks_again_at_what_it_begins_with(data_dir, tmp_path):
    config = _classifier(data_dir, "subtask1", "real")
    config.data.folds, config.data.fold = 2, 0
    _fit(config, tmp_path / "source")
    begins = config.copy_and_resolve_references()
    begins.init_from = str(tmp_path / "source")
    with methods.fitting(Run(begins, tmp_path / "run")):  # stopped before its first checkpoint
        pass
    shutil.rmtree(tmp_path / "source")
    config.data.folds, config.data.fold = 0, -1
    _fit(config, tmp_path / "source")
    with pytest.raises(ValueError, match=r"its network is trained on \d+ images that this run holds out"):
        _fit(begins, tmp_path / "run")


def test_a_pretraining_on_a_data_set_of_its_own_is_known_by_it_too(data_dir, packs, tmp_path):
    config = _classifier(data_dir, "subtask1", "real")
    config.data.folds, config.data.fold = 2, 0
    config.decision.name, config.decision.params = "threshold", ConfigDict({"value": 0.5})
    config.pretrain = _classifier(packs["changed"], "subtask1", "real")
    with pytest.raises(ValueError, match=r"pretrain: its network is trained on \d+ images that this run holds out"):
        _fit(config, tmp_path / "run")
    config.pretrain.data_dir = packs["other"]
    run = _fit(config, tmp_path / "apart")
    assert "images of another data set" in lineage.unavailable(run, run.rows("heldout"))
    config.pretrain.data_dir = packs["changed"]
    with pytest.raises(ValueError, match="pretrain: .* was trained on other data than those of "):
        _fit(config, tmp_path / "apart")
    config.pretrain.data_dir = packs["other"]
    seen = Scored.load(run.workdir, "heldout").fingerprints  # by which runs are compared before they have a mean
    assert seen["train_real of subtask1 in training"] == open_source(packs["other"], "subtask1").fingerprints["train_real"]
    unread = _autoencoder(data_dir)
    unread.pretrain = config.pretrain
    run = _fit(unread, tmp_path / "unread")  # which sees no labelled image itself
    assert lineage.in_sample(run, "train_real") == []


def test_a_resumed_run_does_not_begin_again_and_ends_byte_identical(source, data_dir, tmp_path):
    moved = tmp_path / "source"
    shutil.copytree(source.workdir, moved)
    whole = _fit(_autoencoder(data_dir, num_steps=4, init_from=str(moved)), tmp_path / "whole")
    _fit(_autoencoder(data_dir, num_steps=2, init_from=str(moved)), tmp_path / "parts")
    shutil.rmtree(moved)
    parts = _fit(_autoencoder(data_dir, num_steps=4, init_from=str(moved)), tmp_path / "parts", allow_change=("num_steps",))
    same_bytes(last_state(whole), last_state(parts))
    assert parts.provenance["begins"] == whole.provenance["begins"] == checkpoint.Checkpoints(source.workdir).identity(1)
    with pytest.raises(ValueError, match="no run there"):
        _fit(_autoencoder(data_dir, init_from=str(moved)), tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


def test_a_pretraining_is_one_child_for_all_folds(data_dir, tmp_path, monkeypatch, caplog):
    config = base.cross_fitted(_autoencoder(data_dir))
    config.data_dir, config.data.folds = data_dir, 3
    config.member.data.streams = ConfigDict({"real": 8})
    config.member.pretrain = _classifier("")
    trained, real = [], loop.train
    monkeypatch.setattr(loop, "train", lambda run, *rest: (trained.append(run.workdir), real(run, *rest))[1])
    run = Run(config, tmp_path / "run")
    with caplog.at_level(logging.INFO, "fingerprint_jax.training.model"):
        methods.get("ensemble").fit(run)
    first, *folds = [path.name for path in trained]
    assert first.startswith("pretrain-") and trained[0].parent == tmp_path / "run" / "children"
    assert folds == ["fold0-seed0", "fold1-seed0", "fold2-seed0"]
    assert caplog.text.count(f"begins with {trained[0]}") == 3
    methods.get("ensemble").fit(Run.load(tmp_path / "run"))
    assert len(trained) == 4
    assert np.isfinite(methods.predict(run, "heldout").scores).all()
    found = lineage.unavailable(run, run.rows("heldout"))
    assert found and "fold0-seed0 was trained on the labels of" in found


def test_a_pretraining_that_is_missing_is_not_taken_for_one_of_the_data_that_are_there(data_dir, tmp_path):
    config = load_config("configs/subtask1/neural_nexus_vit_autoencoder.py").member
    config.data_dir = config.pretrain.data_dir = data_dir
    config.data.folds, config.data.fold = 2, 0
    methods.fit(run := Run(config, tmp_path / "run"))
    assert gradient.origin(run) is not None
    shutil.rmtree(run.workdir / "children")
    for act in (lambda: gradient.origin(run), lambda: list(methods.sources(run)), lambda: lineage.in_sample(run, "train_real")):
        with pytest.raises(ValueError, match=f"{run.workdir}/children/pretrain-.* is missing: copy the whole folder"):
            act()


def test_positions_are_those_of_the_grid_of_other_images(data_dir, tmp_path):
    content = phantom.subtask2(seed=1, size=32, leak=0.5, real=4, generated=1, unknown=1)
    phantom.write(tmp_path / "small", "subtask2", content, seed=1)
    packing.pack("images", tmp_path / "data32", tmp_path / "small" / "train" / "real")
    config = _autoencoder(data_dir, "vit_tiny", num_steps=0)
    config.pretrain = _classifier(str(tmp_path / "data32"), backbone="vit_tiny")
    run = _fit(config, tmp_path / "run")
    ours, theirs = (last_state(r)["params"]["backbone/pos_embed"] for r in (run, gradient.origin(run)))
    assert theirs.shape == (1, 1 + 16, 16) and ours.shape == (1, 1 + 36, 16)
    np.testing.assert_allclose(ours, resample_positions(theirs, (6, 6)), rtol=1e-6)
    config.pretrain.num_steps = 0
    assert gradient.origin(Run(config, tmp_path / "none")) is None


def test_a_network_that_saw_what_is_held_out_is_refused(data_dir, tmp_path):
    config = _autoencoder(data_dir)
    config.data.folds, config.data.fold = 2, 0
    config.pretrain = _classifier("", "subtask1", "real")
    with pytest.raises(ValueError, match=r"^pretrain: its network is trained on \d+ images that this run holds out"):
        _fit(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists() and not (tmp_path / "run" / "children").exists()
    config.pretrain.data.folds, config.pretrain.data.fold = 2, 0
    _fit(config, tmp_path / "run")
    config.pretrain.method = "classical"
    with pytest.raises(ValueError, match="pretrain.method='classical' trains no network"):
        gradient.origin(Run(config, tmp_path / "b"))


def test_a_network_of_images_of_another_window_is_refused(source, data_dir, tmp_path, monkeypatch):
    windows = {"images": "-600,1500", "subtask1": "50,350"}
    monkeypatch.setattr(
        Source, "window", property(lambda self: {"window": next(w for t, w in windows.items() if t in str(self.path))})
    )
    shutil.copytree(source.workdir, tmp_path / "lung")
    Run.load(tmp_path / "lung").note(window="-600,1500")
    said = r"was started with images of --window=-600,1500, .* has --window=50,350: pack these with the same window"
    config = _autoencoder(data_dir, num_steps=0, init_from=str(tmp_path / "lung"))
    with pytest.raises(ValueError, match=f"lung {said}"):
        _fit(config, tmp_path / "run")
    pretrained = _autoencoder(data_dir)
    pretrained.pretrain = _classifier(data_dir)  # on those of the task images, which nobody has trained yet
    with pytest.raises(ValueError, match=said):
        _fit(pretrained, tmp_path / "run")
    features = base.featured("subtask1", "network")
    features.features.run, features.data_dir = str(tmp_path / "lung"), data_dir
    features.estimator = ConfigDict({"name": "linear_svm", "C": 1.0})
    features.gallery.labelled = ("train_real",)
    with pytest.raises(ValueError, match=f"lung {said}"):
        methods.fit(Run(features, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    windows["subtask1"] = ""  # of PNG and JPEG none is known
    run = Run(features, tmp_path / "run")
    methods.fit(run)
    assert np.isfinite(methods.predict(run, "train_real").scores).all()
    windows["subtask1"] = "50,350"
    with pytest.raises(ValueError, match=f"lung {said}"):
        methods.predict(run, "test_real")


def test_labels_that_the_first_network_read_are_counted(source, data_dir, tmp_path):
    def reason(config, name):
        config.data.folds, config.data.fold = 2, 0
        run = _fit(config, tmp_path / name)
        return run, lineage.unavailable(run, run.rows("heldout"))

    assert reason(_autoencoder(data_dir), "free")[1] is None
    first = _classifier(data_dir, "subtask1", "real")
    first.data.folds, first.data.fold = 2, 0
    _fit(first, tmp_path / "first")
    run, found = reason(_autoencoder(data_dir, init_from=str(tmp_path / "first")), "same")
    assert found is None  # it read those of the other fold alone
    found = lineage.unavailable(run, run.rows("train_real"))
    assert found and found.startswith(f"{tmp_path / 'first'} was trained on the labels of")
    shutil.rmtree(tmp_path / "first")
    found = lineage.unavailable(run, run.rows("heldout"))
    assert found and f"began with {tmp_path / 'first'}, which is gone and may have read the labels of" in found
    _, found = reason(_autoencoder(data_dir, init_from=str(source.workdir)), "images")
    assert found == f"{source.workdir} was trained on images of images: whether these are among them is not known"


def test_copies_that_are_watched_and_children_begin_where_their_run_does(data_dir, tmp_path):
    config = _classifier(data_dir, "subtask1", "real")
    config.data.valid, config.pretrain = 0.25, _classifier("")
    run = _fit(config, tmp_path / "run")
    begun = gradient.origin(run).workdir
    assert begun.parent == run.workdir / "children" and begun.is_dir()

    def evaluate(copy, split):
        assert gradient.origin(copy).workdir == begun and copy.followed == split
        return {"metrics": {"auc": 0.5}}

    copy = watch.watch(run.workdir, "valid", 1, evaluate)
    assert (copy.workdir / "lock").exists() and gradient.origin(
        Run(config, run.workdir / "children" / "fold0-seed0")
    ).workdir == begun
    (copy.workdir / "lock").unlink()
    path = copy.workdir / "provenance.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "watched"}))  # as they once were
    assert gradient.origin(older := methods.load(copy.workdir)).workdir == begun and older.followed == "valid"


def test_only_a_finished_network_can_be_begun_with(data_dir, tmp_path):
    _fit(_classifier(data_dir, num_steps=0), tmp_path / "run")
    (Path(tmp_path) / "run" / "done").unlink()
    assert checkpoint.Checkpoints(tmp_path / "run").manifests()
    with pytest.raises(ValueError, match="is no finished run of one network"):
        _fit(_autoencoder(data_dir, init_from=str(tmp_path / "run")), tmp_path / "b")
    assert load_config("configs/subtask1/neural_nexus_vit_autoencoder.py").member.pretrain.backbone.name == "vit_tiny"


def test_a_network_reads_what_the_one_before_it_read():
    config = _autoencoder("")
    assert not gradient.reads(config, "train_real") and gradient.reads(config, "train_generated")
    config.pretrain = _classifier("", stream="train_real")
    assert not gradient.reads(config, "train_real")  # of another task
    config.pretrain = _classifier("", "subtask1", "real")
    assert gradient.reads(config, "train_real")
    config.pretrain.num_steps = 0  # left out
    assert not gradient.reads(config, "train_real")
    config.init_from = "runs/gone"
    assert gradient.reads(config, "train_real")


def test_a_run_whose_arrays_are_not_finite_is_nothing_to_begin_with(source, data_dir, tmp_path):
    path = tmp_path / "source"
    shutil.copytree(source.workdir, path)
    checkpoints = checkpoint.Checkpoints(path)
    step, state = inference.restore(Run.load(path), "latest", whole=True)
    name = next(name for name in state["params"] if name.startswith("backbone/"))
    state["params"][name] = state["params"][name] * np.float32(np.nan)
    checkpoints.save(step + 1, state, {}, last=True)
    checkpoints.close()
    with pytest.raises(ValueError, match=f"^{path}: {name} is not finite, nothing can begin with it$"):
        _fit(_autoencoder(data_dir, num_steps=0, init_from=str(path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_children_of_one_run_begin_with_the_same_file_of_weights(data_dir, tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = test_pretrained.tensors("resnet_tiny", (48, 48))
    save_file(tensors, path)
    network = base.gradient("subtask1")
    network.num_steps, network.data.streams, network.backbone.name = 0, ConfigDict({"real": 8}), "resnet_tiny"
    network.backbone.update(weights=str(path), stem="imagenet")
    config = base.ensemble(network)
    config.data_dir, config.ensemble.variants = data_dir, ConfigDict({"a": {}, "b": {"backbone": {"norm_groups": 2}}})
    run = Run(config, tmp_path / "run")
    first, second = (member for _, member in ensemble.members(run))
    with methods.fitting(run):
        methods.fit(first)
    content = path.read_bytes()
    tensors["conv1.weight"] += 1
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"backbone.weights='{path}' are others than those that {run.workdir} began with: put"):
        methods.fit(run)
    assert not second.done
    path.write_bytes(content)
    methods.fit(run)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run.provenance["weights"] == {str(path): digest} == {str(path): pretrained.digest(str(path))}
    assert compare._begun(run)[f"the file {path}"] == digest  # so that a table says which seeds began with another
    assert pretrained.digest(f"pip:efficientnet_lite0++{path}") == f"{pretrained.LITE0_SHA256}++{digest}"
