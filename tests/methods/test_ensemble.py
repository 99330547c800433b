"""Votes, ranks, and cross-fitting: a labelled row is scored by the child that did not see it."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import softmax
from scipy.stats import rankdata, zscore

from configs import base
from fingerprint_jax import methods
from fingerprint_jax.evaluation import decide, score
from fingerprint_jax.methods import ensemble
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.stats import decisions
from fingerprint_jax.training import loop
from fingerprint_jax.training.model import Model, _model
from tests.conftest import fit, load_config


def test_votes_count_first_and_ties_go_to_the_higher_mean():
    # Two members for class 0 by a hair, one for class 2 by far; then one vote each, class 1 with the highest mean.
    scores = np.array(
        [
            [[0.34, 0.33, 0.33], [0.6, 0.4, 0.0]],
            [[0.34, 0.33, 0.33], [0.0, 0.9, 0.1]],
            [[0.00, 0.00, 1.00], [0.1, 0.4, 0.5]],
        ]
    )
    assert ensemble.vote(scores).argmax(axis=1).tolist() == [0, 1]
    with pytest.raises(ValueError, match="use mean or rank"):
        ensemble.vote(scores[..., :1])


def test_mean_logits_are_those_before_the_softmax():
    logits = np.random.default_rng(0).normal(0, 3, (4, 10, 5))
    np.testing.assert_allclose(ensemble.logits(softmax(logits, axis=2)), softmax(logits.mean(axis=0), axis=1), rtol=1e-6)
    # Of two classes the probability of the second is the only column.
    used = softmax(logits[..., :2], axis=2)[..., 1:]
    np.testing.assert_allclose(ensemble.logits(used), softmax(logits[..., :2].mean(axis=0), axis=1)[:, 1:], rtol=1e-6)
    # Sure of the contrary, both without a doubt: finite, and even.
    for sure in (np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.array([[[1.0]], [[0.0]]])):
        assert np.isfinite(ensemble.logits(sure)).all()


def test_rank_is_the_mean_rank_of_scipy():
    scores = np.random.default_rng(0).normal(size=(3, 10, 1))
    expected = np.mean([rankdata(member[:, 0]) for member in scores], axis=0) / 10
    np.testing.assert_allclose(ensemble.rank(scores)[:, 0], expected)


def test_weighted_is_the_sum_of_z_scores_and_an_equal_score_has_no_say():
    scores = np.random.default_rng(0).normal(3, 7, size=(3, 10, 1))
    scores[2] = 5.0
    expected = 0.8 * zscore(scores[0, :, 0]) - 0.6 * zscore(scores[1, :, 0])
    np.testing.assert_allclose(ensemble.weighted(scores, (0.8, -0.6, 100.0))[:, 0], expected)


@pytest.fixture(scope="module")
def fitted(data_dir, tmp_path_factory):
    return fit("configs/subtask1/aimm_siamese.py", data_dir, tmp_path_factory.mktemp("ensemble") / "run")


def test_every_row_is_scored_by_the_child_that_did_not_see_it(fitted):
    whole = methods.predict(fitted, "heldout")
    assert sorted(whole.ids) == sorted(fitted.source.rows("train_real").ids)
    score = dict(zip(whole.ids, whole.scores[:, 0], strict=True))
    for _, child in ensemble.members(fitted):
        own = methods.predict(child, "heldout")
        assert not set(own.ids) & set(child.rows("train_real").ids)
        np.testing.assert_array_equal([score[i] for i in own.ids], own.scores[:, 0])


def test_unlabelled_rows_are_averaged_over_the_same_children(fitted):
    parts = [methods.predict(child, "test_real").scores for _, child in ensemble.members(fitted)]
    np.testing.assert_allclose(methods.predict(fitted, "test_real").scores, np.mean(parts, axis=0), rtol=1e-6)


def test_the_threshold_of_a_fold_comes_from_the_other_folds(fitted):
    rows, predictions = fitted.rows("heldout"), methods.predict(fitted, "heldout")
    labels = decide.decide(fitted, "heldout", predictions)
    fold = fitted.folds(rows)
    for k in np.unique(fold):
        # A score that is far off in fold k alone must not move fold k's own labels.
        others = fold != k
        value = decisions.best_threshold(predictions.scores[others, 0], rows.labels[others])
        np.testing.assert_array_equal(labels[fold == k], predictions.scores[fold == k, 0] >= value)


def test_finished_children_are_not_trained_again(fitted, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *a: pytest.fail("trained again"))
    methods.get("ensemble").fit(fitted)


def test_a_split_that_is_all_held_out_says_so(fitted):
    with pytest.raises(ValueError, match="split train_real has no rows"):
        score.evaluate(fitted, "train_real")


def test_finished_runs_are_combined_on_the_data_of_the_ensemble(data_dir, tmp_path):
    member = fit("configs/subtask2/aimm_siamese.py", data_dir, tmp_path / "member")
    moved = tmp_path / "moved"
    moved.symlink_to(data_dir)
    config = load_config("configs/subtask2/siamese_vote.py")
    config.data.folds = member.config.data.folds
    config.data_dir, config.ensemble.runs, config.ensemble.combine = str(moved), (str(member.workdir),), "mean"
    run = Run(config, tmp_path / "run")
    methods.get("ensemble").fit(run)
    assert [m.config.data_dir for _, m in ensemble.members(run)] == [str(moved)]
    np.testing.assert_array_equal(methods.predict(run, "heldout").scores, methods.predict(member, "heldout").scores)


def test_a_member_without_a_network_that_was_made_anew_in_its_place_is_another(data_dir, tmp_path):
    member = {}
    for levels in (2, 1):
        config = load_config("configs/subtask2/residual_svm.py")
        config.data_dir, config.features.levels = data_dir, levels
        shutil.rmtree(tmp_path / "member", ignore_errors=True)
        methods.fit(run := Run(config, tmp_path / "member"))
        config = load_config("configs/subtask2/siamese_vote.py")
        config.data = ConfigDict(run.config.data.to_dict())
        config.data_dir, config.ensemble.runs, config.ensemble.combine = data_dir, (str(run.workdir),), "mean"
        methods.fit(both := Run(config, tmp_path / "run"))
        found = methods.predict(both, "heldout").scores
        np.testing.assert_array_equal(found, methods.predict(run, "heldout").scores)
        member[levels] = found
    assert (member[1] != member[2]).any()


def test_a_field_of_the_member_is_that_of_both_directions():
    config = load_config("configs/subtask1/both_directions.py", "")
    config.member.features.size, config.member.estimator.patch = 32, 8
    found = ensemble.variants(config)
    assert [(each.features.size, each.estimator.patch) for each in found.values()] == [(32, 8)] * 2
    assert [(name, each.estimator.name, each.gallery.rivals) for name, each in found.items()] == [
        ("local_match", "local_match", ()),
        ("mosaic", "mosaic", ("test_real",)),
    ]


def test_ensembles_of_two_seeds_share_no_member(data_dir, tmp_path):
    config = load_config("configs/subtask2/siamese_vote.py", "")
    config.data_dir, found = data_dir, []
    for config.seed in (0, 1, 2):
        found += [member.config.seed for _, member in ensemble.members(Run(config, tmp_path / "run"))]
    assert found == list(range(9))


def test_on_other_labelled_images_those_members_take_part_that_were_chosen(data_dir, packs, tmp_path):
    config = load_config("configs/subtask1/aimm_siamese.py")
    config.data_dir, config.data.folds, config.data.fold, config.data.valid = data_dir, 0, -1, 0.3
    config.decision.known = "valid"
    config.ensemble.best_variant, config.ensemble.variants = True, ConfigDict({"a": {"num_steps": 0}, "b": {}})
    methods.get("ensemble").fit(Run(config, tmp_path / "run"))
    run, other = Run.load(tmp_path / "run"), Run.load(tmp_path / "run", data_dir=packs["other"])
    assert ensemble.state(run) == ensemble.state(other)
    assert len(methods.predict(other, "train_real").ids) == len(other.source.rows("train_real"))


@pytest.fixture(scope="module")
def voted(data_dir, tmp_path_factory):
    return fit("configs/subtask2/sdva_vote.py", data_dir, tmp_path_factory.mktemp("vote") / "run")


def test_each_variant_is_a_child_with_its_own_fields(voted):
    found = {run.workdir.name: run.config for _, run in ensemble.members(voted)}
    assert sorted(found) == ["b0-seed0", "b1-seed0", "b2-seed0"]
    assert load_config("configs/subtask2/sdva_vote.py", "").ensemble.variants.b2.backbone.name == "efficientnet_b2"
    assert all(config.data.fold == 0 and config.objective.real_class for config in found.values())


@pytest.mark.parametrize("name", ["a/b", "a[1]", "[", " "])
def test_the_name_of_a_variant_is_that_of_a_directory(name, data_dir, tmp_path):
    config = load_config("configs/subtask2/sdva_vote.py")
    config.data_dir, config.ensemble.variants = data_dir, ConfigDict({"b": {}, name: {}})
    with pytest.raises(ValueError, match=re.escape(f"ensemble.variants: the name {name!r} becomes that of a directory")):
        ensemble.fit(Run(config, tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_members_of_one_architecture_are_compiled_once(data_dir, tmp_path, monkeypatch):
    config = base.ensemble(load_config("configs/quickstart.py"))
    config.data_dir, config.member.num_steps = data_dir, 3  # a step of its own, that no other test has compiled
    config.data.folds, config.data.fold, config.data.valid = 5, 0, 0.1
    config.ensemble.seeds = 2
    for rate in (1e-3, 1e-2):
        config.ensemble.variants[f"rate{rate:.0e}"] = ConfigDict({"optimizer": {"learning_rate": rate}})
    traced, step = [], Model._step
    monkeypatch.setattr(Model, "_step", lambda *args: traced.append(1) or step(*args))
    run = Run(config, tmp_path / "run")
    methods.get("ensemble").fit(run)
    assert len(ensemble.members(run)) == 4 and len(traced) == 1
    outputs = {methods.predict(member, "heldout").scores.tobytes() for _, member in ensemble.members(run)}
    assert len(outputs) == 4  # learning rate and seed are heard all the same


def test_a_published_ensemble_is_shrunk_to_its_first_members():
    whole, small = (load_config("configs/subtask2/sdva_pseudo_label.py", variant).member.ensemble for variant in ("", "smoke"))
    assert len(whole.variants) == 26 and len({json.dumps(v.to_dict()) for v in whole.variants.values()}) == 26
    assert list(small.variants) == list(whole.variants)[:3]
    # One compiled step after the other: sizes and shifts in a row, the learning rate is an argument of the step.
    steps = [(v.backbone.name, v.augment.shift) for v in whole.variants.values()]
    assert len(list(itertools.groupby(steps))) == len(set(steps)) == 9 < _model.cache_info().maxsize


def test_members_below_the_threshold_take_no_part_and_the_best_is_named_where_all_are(voted, monkeypatch):
    accuracy = dict(zip(["b0-seed0", "b1-seed0", "b2-seed0"], (0.97, 0.99, 0.98), strict=True))
    truth = voted.rows("valid").labels

    def predict(run, split):
        right = np.arange(len(truth)) < round(accuracy[run.workdir.name] * len(truth))
        return Predictions(run.rows(split).ids, np.eye(5)[np.where(right, truth, (truth + 1) % 5)], True)

    truth = np.resize(truth, 100)
    rows = voted.rows("valid").take(np.resize(np.arange(len(voted.rows("valid"))), 100))
    monkeypatch.setattr(Run, "rows", lambda run, split: rows)
    monkeypatch.setattr(methods, "predict", predict)
    voted.config.ensemble.admit = 0.98
    assert [run.workdir.name for _, run in ensemble.admitted(voted)] == ["b1-seed0", "b2-seed0"]
    voted.config.ensemble.admit = 0.995
    with pytest.raises(ValueError, match="ensemble.admit=0.995: no member reaches it on valid, the best is .*b1-seed0 with 0.9900"):
        ensemble.admitted(voted)
    voted.config.ensemble.admit = 0.0
    assert len(ensemble.admitted(voted)) == 3
    voted.config.ensemble.best_variant = True
    assert [run.workdir.name for _, run in ensemble.admitted(voted)] == ["b1-seed0"]
    accuracy["b0-seed0"] = 0.99  # the first of equal ones
    assert [run.workdir.name for _, run in ensemble.admitted(voted)] == ["b0-seed0"]


def test_the_best_variant_is_chosen_for_each_fold_and_seed(voted, monkeypatch):
    voted.config.data.folds, voted.config.data.fold = 2, -1
    voted.config.ensemble.seeds, voted.config.ensemble.best_variant = 2, True
    accuracy = {"fold0-b2-seed0": 0.9, "fold0-b0-seed1": 0.8, "fold1-b1-seed0": 0.7, "fold1-b2-seed1": 0.9}
    rows = voted.source.rows("train_generated").take(np.arange(20))

    def predict(run, split):
        assert split == "valid"
        right = np.arange(20) < 20 * accuracy.get(run.workdir.name, 0.5)
        return Predictions(rows.ids, np.eye(5)[np.where(right, rows.labels, (rows.labels + 1) % 5)], True)

    monkeypatch.setattr(Run, "rows", lambda run, split: rows)
    monkeypatch.setattr(methods, "predict", predict)
    assert {run.workdir.name for _, run in ensemble.admitted(voted)} == set(accuracy)


def test_members_that_read_no_row_of_the_target_are_one_for_all_folds(data_dir, tmp_path):
    run = fit("configs/subtask1/gan_leaks.py", data_dir, tmp_path / "run")
    ((fold, member),) = ensemble.members(run)
    assert (fold, member.workdir.name) == (-1, "seed0") and member.config.data.folds == 0
    found, whole = methods.predict(run, "heldout"), methods.predict(member, "train_real")
    np.testing.assert_array_equal(found.ids, run.source.rows("train_real").ids)
    np.testing.assert_array_equal(found.scores, whole.scores)
    # What compares with images of the folds, or is chosen by some of them, has members of its own for each fold.
    for field, value in (("member.gallery.reference", ("train_real:0",)), ("ensemble.admit", 0.5)):
        config = load_config("configs/subtask1/gan_leaks.py")
        config.data_dir = data_dir
        config.update_from_flattened_dict({field: value})
        assert [fold for fold, _ in ensemble.members(Run(config, tmp_path / "other"))] == [0, 1]


def test_every_method_says_what_it_reads():
    gradient = load_config("configs/subtask1/aimm_siamese.py").member
    expected = {"train_real": True, "train_generated": True, "test_generated": True, "test_real": False, "reference": False}
    assert {split: methods.get("gradient").reads(gradient, split) for split in expected} == expected
    gradient.num_steps = 0  # only the gallery is left
    assert not methods.get("gradient").reads(gradient, "train_real")
    features = load_config("configs/subtask1/challengers_distance.py")
    assert not methods.get("ensemble").reads(features, "train_real") and methods.get("ensemble").reads(features, "train_generated")
    labelled = load_config("configs/subtask1/challengers_cluster.py")
    assert methods.get("ensemble").reads(labelled, "train_real")
    assert methods.get("pseudo_label").reads(load_config("configs/subtask2/sdva_pseudo_label.py"), "train_real")
