"""A config that cannot run leaves nothing behind, and its line says what would be right."""

import json
import os

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import methods
from fingerprint_jax.methods import classical
from fingerprint_jax.runs.config import another
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inference, loop
from tests.conftest import fit, load_config
from tests.foreign import tree

SIAMESE, LEAKS, DEMO = "configs/subtask1/aimm_siamese.py", "configs/subtask1/gan_leaks.py", "configs/quickstart.py"
FEATURES_OF_MEMBER = "configs/subtask1/medhastra_similarity.py"
FEATURES, ROUNDS, PAIRS = (
    "configs/subtask2/aimm_features.py",
    "configs/subtask2/sdva_pseudo_label.py",
    "configs/subtask1/zhouyijiang_canet.py",
)
WEIGHTED = {"ensemble.combine": "weighted"}


def _start(config, workdir, **options):
    methods.get(config.method).fit(Run(config, workdir, **options))


@pytest.fixture
def never_trained(monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *a: pytest.fail("something was trained"))
    monkeypatch.setattr(inference, "encode", lambda *a: pytest.fail("something was encoded"))


@pytest.mark.usefixtures("never_trained")
@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (LEAKS, {"method": "ensembel"}, "method='ensembel' is unknown: did you mean 'ensemble'"),
        (LEAKS, {"task": "subtask3"}, "task='subtask3' is unknown: did you mean"),
        (LEAKS, {"ensemble.combine": "men"}, "ensemble.combine='men' is unknown: did you mean 'mean'"),
        (LEAKS, {"ensemble.combine": "vote"}, "'vote' needs one score a class; use mean or rank for membership"),
        ("configs/generators/flow.py", {"data.valid": 0.2}, "data.valid=0.2: a generator answers no question of the task images"),
        ("configs/generators/gan.py", {"keep": (2, 9)}, r"keep=\(2, 9\): the training ends at num_steps=4"),
        ("configs/generators/gan.py", {"keep": (0,)}, r"keep=\(0,\): use 1 or more, each"),
        (LEAKS, WEIGHTED, "ensemble.coefficients has 0 numbers, there are 1 members: give one each, in their order"),
        (LEAKS, WEIGHTED | {"ensemble.coefficients": (1.0,), "ensemble.seeds": 2}, "ensemble.coefficients are of the variants"),
        (LEAKS, {"ensemble.admit": 0.5}, "split valid is empty: set data.valid"),
        (LEAKS, {"ensemble.runs": ("runs/x",)}, "ensemble.runs='runs/x': no run there"),
        (LEAKS, {"data.folds": 40}, r"data.folds=40: class '(not_)?used' has \d+ patients, at most \d+ folds"),
        (LEAKS, {"data.folds": 1}, "data.folds=1: at least 2 folds are needed"),
        (LEAKS, {"decision.known": "valid"}, "decision.known='valid': split valid is empty: set data.valid"),
        (LEAKS, {"decision.known": "heldouts"}, "decision.known='heldouts': split 'heldouts' is not .* did you mean 'heldout'"),
        (LEAKS, {"decision.known": "test_real"}, r"decision.known='test_real': a threshold .* labels 0 and 1, these are \[-1\]"),
        (LEAKS, {"decision.known": ""}, "decision.name='learned_threshold' learns from known scores: set decision.known"),
        (LEAKS, {"decision.name": "threshhold"}, "decision.name='threshhold' is unknown: did you mean 'threshold'"),
        (LEAKS, {"decision.name": "threshold"}, "decision.params: threshold needs value"),
        (LEAKS, {"member.features.name": "textur"}, "features.name='textur' is unknown: did you mean 'texture'"),
        (LEAKS, {"member.features.enhance": "gausian"}, "features.enhance='gausian' is unknown: did you mean 'gaussian'"),
        (LEAKS, {"member.estimator.name": "gan_leak"}, "estimator.name='gan_leak' is unknown: did you mean 'gan_leaks'"),
        (LEAKS, {"member.estimator.k": 1000}, "estimator.k=1000: use 1 to 20, the number of images to compare with"),
        (LEAKS, {"member.gallery.generated": ()}, "gallery.generated is missing: the estimator compares with it"),
        (SIAMESE, {"member.task": "subtask2"}, "member.task='subtask2': the ensemble is of task='subtask1'"),
        (SIAMESE, {"member.backbone.name": "siamese_cn"}, "backbone.name='siamese_cn' is unknown: did you mean 'siamese_cnn'"),
        (SIAMESE, {"member.objective.name": "contrastve"}, "objective.name='contrastve' is unknown: did you mean 'contrastive'"),
        (SIAMESE, {"member.augment.flip": 2.0}, "member.augment.flip=2.0: use 0 to 1"),
        (SIAMESE, {"member.views.shift": -2}, "member.views.shift=-2: use 0 or more"),
        (SIAMESE, {"member.eval_batch": 0}, "eval_batch=0: use 1 or more"),
        (SIAMESE, {"member.seed": 5}, "member.seed=5: a member has the value of the run around it: set seed"),
        (SIAMESE, {"member.data.sequester": 0.25}, "member.data.sequester=0.25: .*: set data.sequester"),
        (SIAMESE, {"member.best": "max:auc"}, "config.best='max:auc' needs a validation split: set data.valid of the ensemble"),
        (FEATURES_OF_MEMBER, {"member.member.seed": 3}, "member.member.seed=3: .*: set member.seed"),
        (SIAMESE, {"ensemble.variants": ConfigDict({"a": {"seed": 3}})}, "ensemble.variants.a.seed=3: .*: set seed"),
        (SIAMESE, {"member.data.streams": ConfigDict({"real": 8})}, "data.streams has real: .* learns from 'generated' too"),
        (
            SIAMESE,
            {"ensemble.variants": ConfigDict({"a": {"optimzer": {"name": ""}}})},
            "variants.a: .*did you mean optimizer.name",
        ),
        (DEMO, {"steps_per_dispatch": 3}, "eval_every=4 is not a multiple of steps_per_dispatch=3"),
        (DEMO, {"eval_every": 0}, "eval_every=0: use 1 or more"),
        (DEMO, {"optimizer.learning_rate": -1.0}, "optimizer.learning_rate=-1.0: use 0 or more"),
        (DEMO, {"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate=nan: use 0 or more"),
        (DEMO, {"num_steps": -1}, "num_steps=-1: use 0 or more"),
        (DEMO, {"data.valid": 0.0}, "config.best='max:accuracy' needs a validation split: set data.valid"),
        (DEMO, {"optimizer.clip_norm": float("nan")}, "optimizer.clip_norm=nan: use 0 or more"),
        (DEMO, {"optimizer.ema_decay": 2.0}, "optimizer.ema_decay=2.0: use 0 or more, less than 1"),
        (DEMO, {"log_every": 0}, "log_every=0: use 1 or more"),
        (DEMO, {"data.valid": 0.9}, "data.valid=0.9: use 0 to 0.5"),
        (DEMO, {"data.valid": 0.33}, "data.valid=0.33: whole parts are taken, use 0.315789 .6 of 19. or 0.333333 .1 of 3."),
        (DEMO, {"data.valid": 0.35}, "data.valid=0.35, 7 of 20 parts: class 't1' has 16 images, at most 16 folds"),
        (DEMO, {"data.valid": 0.01}, "data.valid=0.01, one of 100 parts: class 't1' has 16 images, at most 16 folds"),
        (DEMO, {"data.sequester": 0.01}, "data.sequester=0.01, one of 100 parts: class 't[0-9]' has .* images, at most"),
        (DEMO, {"data.folds": 30}, "data.folds=30: class 't1' has 20 images, at most 20 folds"),
        (DEMO, {"data.fold": -1}, "data.folds=5 and data.fold=-1: nothing is held out, set data.fold to hold one fold out"),
        (DEMO, {"objective.name": "contrastive"}, "objective.pairs is missing: contrastive needs it"),
        (DEMO, {"best": "max:acuracy"}, "config.best='max:acuracy' is unknown: did you mean 'max:accuracy'"),
        (DEMO, {"best": "accuracy"}, "config.best='accuracy': use max:<metric> or min:<metric>"),
        (DEMO, {"init_from": "runs/x"}, "init_from='runs/x': no run there"),
        (DEMO, {"data.cache": "devise"}, "data.cache='devise' is unknown: did you mean 'device'"),
        (DEMO, {"data.streams": ConfigDict({"genrated": 8})}, "split 'genrated' is not in the data set"),
        (DEMO, {"optimizer.accumulate": 3}, "data.streams.generated=8 is not a multiple of"),
        (FEATURES, {"estimator.C": -1.0}, "estimator.C=-1.0: use more than 0"),
        (FEATURES, {"pca": -1}, "pca=-1: use 0 or more"),
        (FEATURES, {"features.run": "runs/x"}, "features.run='runs/x': no run there"),
        (FEATURES, {"features.output": "embeding"}, "features.output='embeding' is unknown: did you mean 'embedding'"),
        (FEATURES, {"features.beside": "texure"}, "features.beside='texure' is unknown: did you mean 'texture'"),
        (FEATURES, {"gallery.labelled": ("test_generated",)}, "gallery.labelled has 20 images of unknown label"),
        (ROUNDS, {"pseudo.source": "heldout"}, "pseudo.source='heldout': labelled rows take no pseudo-labels"),
        (ROUNDS, {"pseudo.rounds": -1}, "pseudo.rounds=-1: use 0 or more"),
        (ROUNDS, {"member.ensemble.combine": "vot"}, "ensemble.combine='vot' is unknown: did you mean 'vote'"),
        (PAIRS, {"member.pairs.clusters": 0}, "pairs.clusters=0: use 1 or more"),
        (PAIRS, {"member.pairs.member.backbone.name": "vit_tin"}, "backbone.name='vit_tin' is unknown: did you mean 'vit_tiny'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(path, fields, message, data_dir, tmp_path):
    config = load_config(path)
    config.data_dir = data_dir
    for field, value in fields.items():
        *nodes, last = field.split(".")
        node = config
        for name in nodes:
            node = node[name]
        with node.ignore_type():
            node[last] = value
    method = "ensemble" if fields.get("method") else config.method
    empty = tmp_path / "empty"
    empty.mkdir()
    for workdir in (tmp_path / "run", empty):
        with pytest.raises(ValueError, match=message) as error:
            methods.get(method).fit(Run(config, workdir))
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [empty] and not list(empty.iterdir())


@pytest.mark.usefixtures("never_trained")
@pytest.mark.parametrize("path", [LEAKS, "configs/subtask1/local_match.py", "configs/subtask1/likelihood_ratio.py", PAIRS])
def test_without_reference_the_line_says_how_to_go_on(path, packs, tmp_path):
    config = load_config(path)
    config.data_dir = packs["moved"]  # which has a test set and no reference
    if path == PAIRS:
        config.data.folds, config.decision.known = 5, "reference"
    with pytest.raises(ValueError, match="pack it with --reference_dir") as error:
        _start(config, tmp_path / "run")
    in_gallery = path in (LEAKS, "configs/subtask1/local_match.py")
    assert (":official does" in str(error.value)) == ("gallery" in str(error.value)) == in_gallery
    assert not list(tmp_path.iterdir())
    if path.endswith("local_match.py"):  # and the corrected command starts
        config = load_config(path, "official")
        config.data_dir = packs["moved"]
        _start(config, tmp_path / "run")
        assert Run.load(tmp_path / "run").done


def test_the_remedy_needs_images_that_are_asked_about(packs, tmp_path):
    config = load_config(LEAKS)
    config.data_dir = packs["changed"]  # without a test set
    with pytest.raises(ValueError, match=r"none of \['reference'\] is in the data set \(.*\); pack it with --reference_dir$"):
        _start(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        ("kmeans", {"clusters": 81}, "estimator.clusters=81: use 1 to 80, the number of images to cluster"),
        ("gmm", {"clusters": 100}, "estimator.clusters=100: use 1 to 80"),
        ("dbscan", {"min_samples": 81}, "estimator.min_samples=81: use 1 to 80, the number of images to cluster"),
        ("nearest_centroid_of_generated", {"clusters": 41}, "estimator.clusters=41: use 1 to 40, the number of synthetic images"),
        ("similarity", {"readout": "knn", "k": 41}, "estimator.k=41: use 1 to 40, the number of images to compare with"),
        ("similarity", {"measure": "ssim"}, "estimator.measure='ssim' compares maps"),
        ("domias", {}, "gallery.reference is missing: the estimator compares with it"),
        ("local_match", {}, "local_match needs square images"),
        ("texture_forest", {"textures": 900}, "estimator.textures=900: use 1 to"),
    ],
)
def test_settings_of_an_estimator_are_compared_with_the_images_there_are(estimator, options, message, data_dir, tmp_path):
    config = load_config(LEAKS).member
    config.data_dir = data_dir
    config.features.name = "moments"
    config.gallery = ConfigDict({"labelled": ("train_real",), "generated": ("train_generated",)})
    config.estimator = ConfigDict({"name": estimator, **options})
    with pytest.raises(ValueError, match=message):
        classical.check(Run(config, tmp_path / "run"))


def test_a_start_that_ends_early_leaves_nothing_that_refuses_the_next(data_dir, tmp_path, monkeypatch):
    config = load_config(SIAMESE)
    config.data_dir, config.data.folds = data_dir, 2
    trained, real = [], loop.train

    def fails(run, *args):
        if len(trained) == fails.after:
            (tmp_path / "run" / "features").mkdir(exist_ok=True)  # what it may have kept until then
            (tmp_path / "run" / "metrics.jsonl").write_text("{}")
            raise ValueError("this could not be known")
        trained.append(run.workdir.name)
        real(run, *args)

    monkeypatch.setattr(loop, "train", fails)
    fails.after = 0
    with pytest.raises(ValueError, match="this could not be known"):
        _start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("of the launcher")
    with pytest.raises(ValueError, match="this could not be known"):
        _start(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]
    fails.after = 1
    config.seed = 3
    with pytest.raises(ValueError, match="this could not be known"):
        _start(config, tmp_path / "run")
    # A child is finished: nothing of it is lost, and the same command goes on.
    assert Run.load(tmp_path / "run").config.seed == 3 and trained == ["fold0-seed3"]
    fails.after = -1
    _start(config, tmp_path / "run")
    assert trained == ["fold0-seed3", "fold1-seed3"] and Run.load(tmp_path / "run").done


def test_a_run_of_another_config_is_named_by_what_differs(data_dir, tmp_path):
    config = load_config(LEAKS)
    config.data_dir = data_dir
    _start(config, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    other = load_config(SIAMESE)
    other.data_dir = data_dir
    with pytest.raises(ValueError, match=r"another config: \d+ fields differ: .*, .* and \d+ more; use another") as error:
        _start(other, tmp_path)
    assert len(str(error.value)) < len(str(tmp_path)) + 200
    demo = load_config(DEMO)
    demo.data_dir = data_dir
    text = r"of another config \(subtask1, method ensemble\), not of this one \(subtask2, method gradient\): \d+ fields differ:"
    with pytest.raises(ValueError, match=text + " task, method, .* more; use another --workdir$") as error:
        _start(demo, tmp_path)
    assert len(str(error.value)) < len(str(tmp_path)) + 300
    assert (tmp_path / "config.json").read_bytes() == before


def test_long_values_are_cut(tmp_path):
    before = {"method": "m", "task": "t", "gallery.labelled": ["a" * 10] * 30, "seed": 0}
    after = before | {"gallery.labelled": [], "new": None}
    text = another(tmp_path, before, after, ["gallery.labelled", "new"])
    assert "gallery.labelled is [], the run was started with ['aaaaaaaaaa', " in text and len(text) < len(str(tmp_path)) + 300
    assert "config.new is None, the run was started with not there" in text


def test_a_changed_config_is_checked_before_it_is_written(data_dir, tmp_path):
    fit(DEMO, data_dir, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    config = load_config(DEMO)
    config.data_dir, config.num_steps, config.eval_every = data_dir, 8, 3
    config.optimizer.schedule = "cosin"
    with pytest.raises(ValueError, match="optimizer.schedule='cosin' is unknown"):
        _start(config, tmp_path / "run", allow_change=("num_steps", "eval_every", "optimizer.schedule"))
    assert (tmp_path / "run" / "config.json").read_bytes() == before and Run.load(tmp_path / "run").done


def test_a_change_that_a_member_refuses_is_refused_before_anything_is_written(data_dir, tmp_path):
    config = base.finish(base.cross_fitted(base.featured("subtask2", "pixels")), "")
    config.member.gallery = ConfigDict({"labelled": ("train_generated",)})
    config.data_dir, config.ensemble.variants = data_dir, ConfigDict({"a": {"pca": 2}, "b": {"pca": 3}})
    config.decision.name, config.decision.known = "argmax", ""
    fit_of = lambda **options: methods.fit(Run(config, tmp_path / "run", **options))  # noqa: E731
    fit_of()
    before = tree(tmp_path / "run")
    config.ensemble.variants.a.pca = 4
    with pytest.raises(
        ValueError, match="fold0-a-seed0 is finished, pca would change nothing|is finished, ensemble.variants.a.pca"
    ):
        fit_of(allow_change=("ensemble.variants.a.pca",))
    (tmp_path / "run" / "done").unlink()  # as of one that was killed before its last member
    with pytest.raises(ValueError, match="fold0-a-seed0 is finished, pca would change nothing: use another --workdir"):
        fit_of(allow_change=("ensemble.variants.a.pca",))
    config.ensemble.variants.a.pca = 2
    fit_of()
    changed = {name for name, content in tree(tmp_path / "run").items() if before.get(name) != content}
    assert {os.path.basename(name) for name in changed} <= {"lock", "provenance.json"}
    assert not Run.load(tmp_path / "run").provenance["changes"]


def test_a_part_of_one_class_is_refused(data_dir, tmp_path, monkeypatch):
    config = load_config(LEAKS).member
    config.data_dir, config.data.folds, config.data.fold = data_dir, 5, 0
    run = Run(config, tmp_path)
    rows = run.source.rows("train_real")
    monkeypatch.setattr(Run, "parts", np.where(rows.labels == 1, 0, np.arange(len(rows)) % 2 * 2))
    with pytest.raises(ValueError, match=r"data.folds=5: all \d+ images of heldout are 'not_used', both classes are needed"):
        methods.check(run)


def test_a_file_in_the_place_of_the_workdir_stays(data_dir, tmp_path):
    config = load_config(DEMO)
    config.data_dir = data_dir
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="--workdir=.*run: a file is there, name a folder"):
        _start(config, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_missing_run_has_the_nearest_beside_it(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"workdir='.*frist': no run there \(.*\): did you mean '.*/first'\?$"):
        Run.load(tmp_path / "frist")
