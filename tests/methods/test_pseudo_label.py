"""Rounds: who joins, when they stop, and that nothing kept from training gets into it."""

import csv
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import accuracy_score

from configs import base
from fingerprint_jax import methods
from fingerprint_jax.data import packing
from fingerprint_jax.evaluation import score
from fingerprint_jax.methods import classical, gradient, pseudo_label
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.training import inputs, loop
from tests.conftest import load_config


def _config(data_dir, **pseudo):
    config = base.pseudo_label(load_config("configs/quickstart.py"))
    config.data_dir = data_dir
    config.data.folds, config.data.fold, config.data.valid, config.data.sequester = 5, 0, 0.1, 0.2
    config.pseudo.update({"least": 0.0} | pseudo)
    return config


def _labels(run, number):
    """{id: label} of the file that a round learned from."""
    with open(run.workdir / "labels" / f"round{number}.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["split", "id", "label"] and {line[0] for line in lines} == {"test_generated"}
    return {name: int(label) for _, name, label in lines}


def _done(run):
    return json.loads((run.workdir / "done").read_text())


@pytest.fixture(scope="module")
def fitted(data_dir, tmp_path_factory):
    run = Run(_config(data_dir, cap=3), tmp_path_factory.mktemp("pseudo") / "run")
    with pytest.MonkeyPatch.context() as patch:  # no accuracy falls, so that all rounds are there
        patch.setattr(pseudo_label.score_metrics, "quick", lambda labels, scores, task: {"accuracy": 0.5})
        methods.get("pseudo_label").fit(run)
    return Run.load(run.workdir)


def test_the_surest_images_of_each_class_join_and_ties_go_by_id():
    ids = np.array(["f", "e", "d", "c", "b", "a"])
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5]], np.float32)

    def names(least, cap):
        return ids[pseudo_label.select(ids, scores, least, cap)].tolist()

    assert names(0.0, 0) == ["f", "e", "d", "c", "b", "a"]
    assert names(0.6, 0) == ["f", "e", "d", "c", "b"]  # 0.6 as float32 lies above 0.6
    assert names(0.75, 0) == ["f", "d", "c"]
    assert names(0.0, 2) == ["f", "c", "b"]  # c and d are as sure as each other
    assert names(0.0, 1) == ["f", "b"]
    assert names(0.95, 0) == []


def test_a_round_learns_the_labels_of_the_round_before_and_nothing_that_is_kept_from_training(fitted):
    rounds = [pseudo_label.round_of(fitted, k) for k in range(3)]
    assert sorted(path.name for path in (fitted.workdir / "children").iterdir()) == ["round0", "round1", "round2"]
    plain = fitted.rows("train_generated")
    assert rounds[0].training_rows("train_generated").ids.tolist() == plain.ids.tolist()
    kept = set(np.concatenate([fitted.rows(name).index for name in ("heldout", "valid", "sequestered")]))
    assert len(kept) + len(plain) == len(fitted.source.rows("train_generated"))
    for before, after in zip(rounds[:-1], rounds[1:], strict=True):
        found, expected = methods.predict(before, "test_generated"), {}
        for k in range(5):
            of_class = [(-max(s), i) for i, s in zip(found.ids.tolist(), found.scores, strict=True) if s.argmax() == k]
            expected |= {i: k for _, i in sorted(of_class)[:3]}
        assert _labels(fitted, int(after.workdir.name[-1])) == expected != {}
        streams = inputs.sampler_of(after).rows["generated"]
        joined = np.isin(streams.index, fitted.source.rows("test_generated").index)
        assert dict(zip(streams.ids[joined].tolist(), streams.labels[joined].tolist(), strict=True)) == expected
        assert not kept & set(streams.index)
        assert streams.ids[~joined].tolist() == plain.ids.tolist()
        for split in ("heldout", "valid", "sequestered", "test_generated"):  # figures see no pseudo-label
            np.testing.assert_array_equal(after.rows(split).labels, fitted.rows(split).labels)
    assert not np.array_equal(methods.predict(rounds[0], "heldout").scores, methods.predict(rounds[1], "heldout").scores)


def test_done_says_who_joined_and_the_result_is_the_last_round(fitted):
    done = _done(fitted)
    assert done["chosen"] == 2 and done["stopped"] == ""
    assert [r["sequestered"] for r in done["rounds"]] == [0.5] * 3
    assert done["rounds"][0]["joined"] == [0] * 5
    for k in (1, 2):
        assert done["rounds"][k]["joined"] == np.bincount(list(_labels(fitted, k).values()), minlength=5).tolist()
    last = pseudo_label.round_of(fitted, 2)
    np.testing.assert_array_equal(methods.predict(fitted, "heldout").scores, methods.predict(last, "heldout").scores)
    assert pseudo_label.state(fitted) == {str(last.workdir): gradient.state(last)}


def test_the_accuracy_on_sequestered_is_that_of_the_rounds(data_dir, tmp_path):
    run = Run(_config(data_dir, rounds=0), tmp_path)
    methods.get("pseudo_label").fit(run)
    rows, scores = run.rows("sequestered"), methods.predict(run, "sequestered").scores
    expected = accuracy_score(rows.labels, scores.argmax(axis=1))
    assert _done(run)["rounds"] == [{"joined": [0] * 5, "sequestered": expected}]


@pytest.fixture
def scripted(data_dir, tmp_path, monkeypatch):
    """Rounds that predict as told: f(accuracies on sequestered, [{id: (label, score)}] of the source) -> the run, fitted."""

    def predict(run, split):
        rows, number = run.rows(split), int(run.workdir.name.removeprefix("round"))
        if split == "sequestered":
            right = np.arange(len(rows)) < round(script[0][number] * len(rows))
            return Predictions(rows.ids, np.eye(5, dtype=np.float32)[np.where(right, rows.labels, (rows.labels + 1) % 5)], True)
        told = script[1][number]
        scores = [np.eye(5)[told[name][0]] * told[name][1] if name in told else np.zeros(5) for name in rows.ids.tolist()]
        return Predictions(rows.ids, np.array(scores, np.float32), True)

    script = []

    def fit(accuracies, sure, **pseudo):
        script[:] = [accuracies, sure]
        run = Run(_config(data_dir, least=0.5, rounds=len(sure) - 1, **pseudo), tmp_path / "run")
        if not accuracies:
            run.config.data.sequester = 0.0
        methods.get("pseudo_label").fit(run)
        return run

    monkeypatch.setattr(methods, "predict", predict)
    monkeypatch.setattr(gradient, "fit", lambda run: fit.trained.append(run.workdir.name))
    fit.trained = []
    return fit


def _ids(data_dir, count):
    return Run(_config(data_dir), "x").rows("test_generated").ids[:count].tolist()


@pytest.mark.parametrize(
    ("accuracies", "trained", "chosen"),
    [
        ((0.5, 0.75, 0.8), 3, 2),
        ((0.5, 0.5, 0.5), 3, 2),  # it did not fall
        ((0.5, 0.25, 0.8), 2, 0),
        ((0.5, 0.75, 0.7), 3, 1),
    ],
)
def test_a_fall_on_sequestered_stops_and_the_round_before_is_the_result(accuracies, trained, chosen, scripted, data_dir):
    (name,) = _ids(data_dir, 1)
    run = scripted(accuracies, [{name: (1, 0.9)}] * 3)
    assert scripted.trained == ["round0", "round1", "round2"][:trained]
    done = _done(run)
    assert done["chosen"] == chosen and pseudo_label.chosen(run).workdir.name == f"round{chosen}"
    fell = chosen < trained - 1
    assert done["stopped"].startswith("the accuracy on sequestered fell from 0.") == fell and bool(done["stopped"]) == fell
    assert len(done["rounds"]) == trained


def test_without_sequestered_images_the_last_round_counts(scripted, data_dir):
    (name,) = _ids(data_dir, 1)
    run = scripted((), [{name: (1, 0.9)}] * 3)
    assert _done(run)["chosen"] == 2 and [r["sequestered"] for r in _done(run)["rounds"]] == [None] * 3


def test_labels_are_drawn_anew_each_round(scripted, data_dir):
    a, b, c = _ids(data_dir, 3)
    run = scripted((), [{a: (0, 0.9), b: (1, 0.6)}, {b: (2, 0.7), c: (3, 0.8)}, {}])
    assert _labels(run, 1) == {a: 0, b: 1} and _labels(run, 2) == {b: 2, c: 3}
    assert [r["joined"] for r in _done(run)["rounds"]] == [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]


def test_where_no_image_joins_the_rounds_stop(scripted, data_dir):
    a, b = _ids(data_dir, 2)
    run = scripted((0.5, 0.5, 0.5), [{a: (0, 0.9)}, {b: (1, 0.4)}, {}])
    assert scripted.trained == ["round0", "round1"]
    done = _done(run)
    assert done["stopped"] == "no image of test_generated has a score of pseudo.least=0.5" and done["chosen"] == 1


def test_the_round_that_another_run_has_chosen_is_not_taken(scripted, data_dir, tmp_path):
    (name,) = _ids(data_dir, 1)
    other = scripted((), [{name: (1, 0.9)}] * 2)
    other.workdir.rename(tmp_path / "other")
    run = scripted((), [{name: (1, 0.9)}] * 3)
    own = (run.workdir / "done").read_text()
    shutil.copy(tmp_path / "other" / "done", run.workdir)
    with pytest.raises(ValueError, match="run/done is that of another run: put the run's own back, or remove it"):
        pseudo_label.chosen(run)
    content = json.loads((tmp_path / "other" / "done").read_text())
    del content["of"]  # as older ones have it
    (run.workdir / "done").write_text(json.dumps(content))
    assert pseudo_label.chosen(run).workdir.name == "round1"
    (run.workdir / "done").write_text(own)
    run.config.data_dir, run.config.decision.name = "moved", "another"  # neither makes it another run
    assert pseudo_label.chosen(run).workdir.name == "round2"


def test_a_run_that_was_stopped_ends_the_same_and_trains_no_round_twice(fitted, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_label.score_metrics, "quick", lambda labels, scores, task: {"accuracy": 0.5})

    class Killed(Exception):
        pass

    trained, real_train = [], loop.train

    def counted(run, *rest):
        trained.append(run.workdir.name)
        if trained == ["round0", "round1"]:
            raise Killed
        real_train(run, *rest)

    monkeypatch.setattr(loop, "train", counted)
    run = Run(_config(data_dir, cap=3), tmp_path / "run")
    with pytest.raises(Killed):
        methods.get("pseudo_label").fit(run)
    with pytest.raises(ValueError, match="is not finished, no round is chosen yet"):
        methods.predict(run, "heldout")
    for _ in range(2):  # the second time nothing is left to do
        methods.get("pseudo_label").fit(Run(_config(data_dir, cap=3), tmp_path / "run"))
        assert trained == ["round0", "round1", "round1", "round2"]
    assert _done(run) == _done(fitted)
    for name in ("labels/round1.csv", "labels/round2.csv"):
        assert (run.workdir / name).read_bytes() == (fitted.workdir / name).read_bytes()
    np.testing.assert_array_equal(methods.predict(run, "test_generated").scores, methods.predict(fitted, "test_generated").scores)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pseudo.source": "heldout"}, "pseudo.source='heldout': labelled rows take no .*, use one of test_generated, train_real"),
        ({"pseudo.source": "train_generated"}, "pseudo.source='train_generated'"),
        ({"data.fold": -1}, "data.folds=5 and data.fold=-1: nothing is held out"),
        ({"data.extra_labels": "x.csv"}, "data.extra_labels='x.csv': method='pseudo_label' writes its own"),
        ({"task": "subtask1"}, "needs one score a class"),
    ],
)
def test_what_has_no_rounds_is_refused(fields, message, data_dir, tmp_path):
    config = _config(data_dir)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        methods.get("pseudo_label").fit(Run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_estimator_learns_them_too(fitted, tmp_path, monkeypatch):
    config = base.classical(fitted.config.member)
    config.data_dir, config.data.extra_labels = fitted.config.data_dir, str(fitted.workdir / "labels" / "round1.csv")
    config.features.run = str(pseudo_label.round_of(fitted, 0).workdir)
    config.gallery["labelled"] = ("train_generated",)
    config.data.folds, config.data.fold, config.data.valid, config.data.sequester = 5, 0, 0.1, 0.2
    run = Run(config, tmp_path / "run")
    methods.get("classical").fit(run)
    learned = {}

    def estimator(query, gallery, **options):
        learned.update(count=len(gallery["labelled"].index), labels=gallery["labelled"].labels)
        return np.zeros((len(query.index), 5))

    monkeypatch.setattr(classical, "_estimator", lambda run: estimator)
    assert len(methods.predict(run, "heldout").ids) == len(run.rows("heldout"))
    assert learned["count"] == len(learned["labels"]) == len(run.rows("train_generated")) + len(_labels(fitted, 1))

    config.data.sequester = 0.5  # the network has seen some of these
    with pytest.raises(ValueError, match=r"round0' was trained on \d+ images that this run holds out"):
        methods.get("classical").fit(Run(config, tmp_path / "other"))


def test_results_say_transductive_and_compare_images_by_the_chosen_network(fitted):
    assert methods.network(fitted).workdir == pseudo_label.round_of(fitted, 2).workdir
    assert score.evaluate(fitted, "heldout")["transductive"] == ["pseudo-labels of test_generated were trained on"]


def test_what_its_network_begins_with_is_looked_through(data_dir, phantoms, tmp_path):
    packing.pack("images", tmp_path / "classes", phantoms["subtask2"] / "train" / "generated")
    learned = base.finish(base.gradient("images"), "smoke")
    learned.data_dir, learned.num_steps, learned.backbone.name = str(tmp_path / "classes"), 1, "siamese_cnn_tiny"
    learned.data.streams = ConfigDict({"train": 8})
    methods.fit(Run(learned, tmp_path / "learned"))
    config = _config(data_dir)
    config.member.backbone.name, config.member.init_from = "siamese_cnn_tiny", str(tmp_path / "learned")
    assert any(source.workdir == tmp_path / "learned" for source, _, _ in methods.sources(Run(config, tmp_path / "run")))
    with pytest.raises(ValueError, match=r"its network is trained on \d+ images that this run holds out"):
        methods.fit(Run(config, tmp_path / "run"))
