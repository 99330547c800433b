"""The evaluation binary: prediction files without a run, decisions that may not see what they decide, other data."""

import dataclasses
import html
import json
import math
import shutil
import unicodedata

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from sklearn.metrics import brier_score_loss, roc_auc_score

from configs import base
from fingerprint_jax import evaluate, methods
from fingerprint_jax.data import packing, phantom, tables
from fingerprint_jax.data.source import open_source
from fingerprint_jax.evaluation import decide, lineage, score, terminal
from fingerprint_jax.evaluation.results import scored_on
from fingerprint_jax.report import words
from fingerprint_jax.runs import views
from fingerprint_jax.runs.checkpoint import Checkpoints
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import environment
from fingerprint_jax.stats import decisions, metrics
from fingerprint_jax.stats.permutation import CONDITIONAL
from fingerprint_jax.training import inference
from launch import compare
from tests import published
from tests.conftest import ROOT, fit, load_config
from tests.foreign import tree


def run_binary(module, *arguments):
    """A binary in this process, with flags of its own."""
    values = flags.FlagValues()
    module.define_flags(values)
    values(["binary", *arguments])
    module.main(values)


@pytest.mark.parametrize("row", published.runs("subtask1"), ids=lambda row: str(row["run"]))
def test_table_2_comes_out_of_the_binary(row, tmp_path):
    predictions, truth = published.write_files(tmp_path, published.confusion(row))
    run_binary(evaluate, "--task=subtask1", f"--predictions={predictions}", f"--truth={truth}", f"--output={tmp_path / 'out'}")
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert round(metrics["cohen_kappa"], 3) == row["kappa"]
    assert round(metrics["accuracy"], 3) == row["accuracy"]
    for figure in ("precision", "recall", "f1"):
        assert abs(metrics["positive"][figure] - row[figure]) <= 0.5001e-4
    low, high = metrics["intervals"]["cohen_kappa"]
    assert low < metrics["cohen_kappa"] < high


@pytest.mark.parametrize(
    ("run", "name", "most", "sentence"),
    [
        (1878, "p", 7e-4, "Used and not used images were told apart better than chance on 500 images"),
        (1776, "p_wrong_direction", 1e-4, "On 500 images the result is worse than chance"),
    ],
)
def test_labels_alone_have_a_p_and_a_sentence(run, name, most, sentence, tmp_path, capsys):
    row = next(row for row in published.runs("subtask1") if row["run"] == run)
    predictions, truth = published.write_files(tmp_path, published.confusion(row))
    run_binary(evaluate, "--task=subtask1", f"--predictions={predictions}", f"--truth={truth}", f"--output={tmp_path / 'out'}")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["labels_p"]
    assert 0 < found[name] < most
    text = " ".join(capsys.readouterr().out.split())
    assert "p of the labels (hypergeometric)" in text and sentence in text


def test_files_that_do_not_fit_are_one_line_that_names_both(tmp_path):
    (tmp_path / "t.csv").write_text("a,0\nb,1\n")
    (tmp_path / "p.csv").write_text("a,0\nc,1\n")
    with pytest.raises(ValueError, match=r"p.csv does not fit .*t.csv"):
        score.score_files("subtask1", str(tmp_path / "p.csv"), str(tmp_path / "t.csv"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_truth_of_one_class_is_refused(tmp_path):
    for name in ("t.csv", "p.csv"):
        (tmp_path / name).write_text("a,1\nb,1\n")
    with pytest.raises(ValueError, match=r"t.csv: all 2 labels are 1, a score needs at least two classes"):
        score.score_files("subtask1", str(tmp_path / "p.csv"), str(tmp_path / "t.csv"), str(tmp_path / "out"))


def test_a_submission_is_checked_against_the_ids_of_its_split(data_dir, tmp_path, capsys):
    path = tmp_path / "run.csv"
    arguments = (f"--validate={path}", "--task=subtask1", f"--data_dir={data_dir}", "--split=test_real")
    ids = open_source(data_dir, "subtask1").rows("test_real").ids.tolist()
    lines = [f"{name}.png,{i % 2}" for i, name in enumerate(ids)]
    path.write_text("\n".join(lines))
    run_binary(evaluate, *arguments)
    assert f"valid, each of {len(ids)} ids once; {len(ids) // 2} of label 0, {len(ids) // 2} of label 1" in capsys.readouterr().out
    wrong = {
        f"1 ids are missing .first: .'{ids[0]}'": lines[1:],
        "1 are not expected .first: .'other'": [*lines, "other,1"],
        f"id '{ids[0]}.png' is repeated": [*lines, lines[0]],
        f"ids '{ids[0]}' and '{ids[0]}.png' are both that of '{ids[0]}'": [f"{ids[0]},1", *lines],
        "label 'gen_t2' is none of 0..1$": [*lines[1:], f"{ids[0]},gen_t2"],
        "label '2' is none of 0..1": [*lines[1:], f"{ids[0]},2"],
        "no labels in it": [],
    }
    for message, content in wrong.items():
        path.write_text("\n".join(content))
        with pytest.raises(ValueError, match=message):
            run_binary(evaluate, *arguments)
    with pytest.raises(ValueError, match="give --task, --data_dir and --split"):
        run_binary(evaluate, f"--validate={path}")


def test_without_a_run_or_files_it_says_what_to_give():
    with pytest.raises(ValueError, match="--workdir, or --validate, or all of --task"):
        run_binary(evaluate, "--task=subtask1")


@pytest.fixture(scope="module")
def quickstart(data_dir, tmp_path_factory):
    return fit("configs/quickstart.py", data_dir, tmp_path_factory.mktemp("quickstart") / "run")


def test_a_decision_never_learns_from_the_rows_it_decides(membership):
    run = Run.load(membership[1].workdir)
    run.config.decision.name, run.config.decision.known = "learned_threshold", "heldout"
    for split in ("heldout", "heldout:1"):
        with pytest.raises(ValueError, match=f"cannot learn from {split} itself"):
            decide.decide(run, split, methods.predict(run, split))
    run.config.decision.known = ""
    with pytest.raises(ValueError, match="set decision.known"):
        decide.decide(run, "heldout", methods.predict(run, "heldout"))


def test_another_data_set_is_scored_with_an_old_run(quickstart, tmp_path):
    phantom.write(tmp_path / "new", "subtask2", phantom.subtask2(seed=9, size=48, leak=0.5, real=8, generated=10, unknown=5), 9)
    packing.pack("subtask2", str(tmp_path / "data"), str(tmp_path / "new" / "train"))
    seen = []
    for data, split in ((str(tmp_path / "data"), "train_real"), (quickstart.config.data_dir, "heldout")):
        run_binary(evaluate, f"--workdir={quickstart.workdir}", f"--split={split}", f"--data_dir={data}")
        seen.append({"data_dir": data, "fingerprints": open_source(data, "subtask2").fingerprints})
    document = json.loads((quickstart.workdir / "results.json").read_text())
    assert document["splits"]["train_real"]["n"] == 40
    assert document["fingerprints"] == seen[1]["fingerprints"] != seen[0]["fingerprints"]
    for split, of in zip(("train_real", "heldout"), seen, strict=True):  # each says what its own figures are of
        own = {"config_hash": document["config_hash"], "state": methods.state(quickstart), "code": {}}
        own["checkpoints"] = list(methods.checkpoints(quickstart.workdir, own["state"]).values())
        assert scored_on(document, split) == of | own
    # The table of the other data is stale for the run's own.
    own = Run.load(quickstart.workdir)
    np.testing.assert_array_equal(methods.predict(own, "train_real").ids, own.rows("train_real").ids)


def test_a_threshold_stays_out_of_fold_where_only_other_splits_were_packed_anew(membership, packs, monkeypatch):
    own, moved = membership[0], Run.load(membership[0].workdir, data_dir=packs["moved"])
    rows = own.rows("heldout")
    assert rows.index[0] != moved.rows("heldout").index[0] and rows.ids.tolist() == moved.rows("heldout").ids.tolist()
    learned = []

    def threshold(scores, known_scores, known_labels):
        learned.append((scores[:, 0].tolist(), known_scores[:, 0].tolist()))
        return np.zeros(len(scores), int)

    monkeypatch.setattr(decisions, "get", lambda name: threshold)
    for run in (own, moved):
        learned.clear()
        decide.decide(run, "heldout", methods.predict(run, "heldout"))
        assert len(learned) == own.config.data.folds
        assert sum(len(asked) for asked, _ in learned) == len(rows)
        assert all(len(asked) + len(known) == len(rows) for asked, known in learned)


def test_nothing_is_held_out_of_labelled_images_that_were_packed_anew(membership, packs, tmp_path):
    crossed, _ = membership
    for each in membership:
        run = Run.load(each.workdir, data_dir=packs["changed"])
        for split in ("heldout", "heldout:1", "valid", "sequestered"):
            with pytest.raises(
                ValueError, match=rf"{each.workdir} was started with another train_real than that of {packs['changed']}"
            ):
                score.evaluate(run, split)
        assert len(run.rows("train_real")) == 39
    # Nor beside a run that holds them out.
    config = load_config("configs/subtask1/aimm_siamese.py")
    config.data_dir = packs["changed"]
    methods.get("ensemble").fit(Run(config, tmp_path / "anew"))
    with pytest.raises(ValueError, match=f"{crossed.workdir} was started with another train_real than"):
        run_binary(evaluate, f"--workdir={tmp_path / 'anew'}", "--report", f"--compare={crossed.workdir}")


def test_a_threshold_is_not_learned_from_the_same_images_of_another_pack(membership, packs):
    run = Run.load(membership[0].workdir, data_dir=packs["changed"])
    with pytest.raises(ValueError, match="a decision on train_real cannot learn from 39 of its images, which .* has too"):
        score.evaluate(run, "train_real")
    for split in ("train_generated", "train_real"):  # other images
        other = Run.load(membership[0].workdir, data_dir=packs["other"])
        assert len(decide.decide(other, split, methods.predict(other, split))) == len(other.rows(split))


def test_figures_of_images_that_were_trained_on_say_so_wherever_they_stand(membership, packs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(membership[1].workdir, run)
    config = json.loads((run / "config.json").read_text())
    config["decision"] = {"name": "threshold", "params": {"value": 0.5}, "known": ""}
    (run / "config.json").write_text(json.dumps(config))

    def said(split, data=""):
        where = [f"--data_dir={packs[data]}"] if data else []
        run_binary(evaluate, f"--workdir={run}", f"--split={split}", "--report", f"--compare={run}", *where)
        notes = json.loads((run / "results.json").read_text())["splits"][split]["in_sample"]
        printed = " ".join(capsys.readouterr().out.split())
        page = html.unescape((run / "report" / "index.html").read_text())
        assert printed.count("in-sample: ") == len(notes)
        assert all(f"in-sample: {note}" in printed and note in page and f"{run}: {note}" in page for note in notes)
        return notes, "These images are of another data set" in page

    trained = ["The split train_real holds images that the run was trained on: its figures are too good."]
    for data in ("", "moved"):
        assert said("heldout", data) == ([], False)
        assert said("train_real", data) == (trained, False)
    assert said("valid")[0] == ["The split valid may have chosen the checkpoint: its figures are too good. Quote heldout."]
    learned = np.concatenate([membership[1].rows(split).ids for split in ("train_real", "valid")])
    count = np.isin(Run.load(run, data_dir=packs["changed"]).rows("train_real").ids, learned).sum()
    found = f"{count} of these 39 images are in the train_real that the run was trained on: its figures are too good."
    assert 0 < count < 39
    assert said("train_real", "changed") == ([found], False)
    assert said("train_real", "other") == ([], True)
    for path in (run / "config.json", *run.glob("children/*/config.json")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_dir": str(tmp_path / "gone")}))
    (unknown,), _ = said("train_real", "other")
    assert unknown.startswith("Whether any of these 20 images is among those that the run was trained on is not known")


def apart(phantoms, root, ids):
    """Subtask 1 packed from some of its labelled images."""
    shutil.copytree(phantoms["subtask1"] / "train", root / "train")
    for path in root.glob("train/real_*/*"):
        if f"{path.parent.name}/{path.stem}" not in set(ids):
            path.unlink()
    packing.pack("subtask1", root / "data", root / "train", groups=phantoms["subtask1"] / "groups.csv")
    return str(root / "data")


def test_what_a_run_held_out_it_was_not_trained_on(membership, phantoms, tmp_path):
    crossed, half = membership
    rows = half.rows("heldout")
    data = apart(phantoms, tmp_path, rows.ids)
    run = Run.load(half.workdir, data_dir=data)
    assert len(run.rows("train_real")) == len(rows) and lineage.in_sample(run, "train_real") == []
    run = Run.load(crossed.workdir, data_dir=data)  # another member of which was trained on them
    assert lineage.in_sample(run, "train_real")[0].startswith(f"{len(rows)} of these {len(rows)} images are in the train_real")
    # Nor was what is made of it, wherever that was put together.
    config = base.ensemble(half.config.member)
    config.data_dir, config.ensemble.runs = data, (str(half.workdir),)
    methods.get("ensemble").fit(Run(config, tmp_path / "combined"))
    combined = Run.load(tmp_path / "combined")
    assert combined.same_target and lineage.in_sample(combined, "train_real") == []
    config.ensemble.runs = (str(half.workdir), str(crossed.workdir))
    methods.get("ensemble").fit(Run(config, tmp_path / "both"))
    assert len(lineage.in_sample(Run.load(tmp_path / "both"), "train_real")) == 1
    trained = "The split train_real holds images that the run was trained on: its figures are too good."
    assert lineage.in_sample(Run.load(tmp_path / "both", data_dir=half.config.data_dir), "train_real") == [trained]


def test_data_packed_anew_in_place_have_no_threshold_and_the_error_does_not_lead_to_itself(membership, packs, tmp_path):
    shutil.copytree(membership[0].workdir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"data_dir": packs["changed"]}))
    with pytest.raises(ValueError, match="was started with another train_real than .*--split=train_real"):
        score.evaluate(Run.load(tmp_path / "run"), "heldout")
    with pytest.raises(ValueError, match=f"images that the decision learns from are gone: {packs['changed']} was packed anew"):
        score.evaluate(Run.load(tmp_path / "run"), "train_real")
    fixed = {"name": "threshold", "params": {"value": 0.5}, "known": ""}
    path.write_text(json.dumps(config | {"data_dir": packs["changed"], "decision": fixed}))
    assert score.evaluate(Run.load(tmp_path / "run"), "train_real")["n"] == 39


def test_folds_that_changed_in_mid_training_are_said(quickstart, tmp_path):
    shutil.copytree(quickstart.workdir, tmp_path / "run")
    path = tmp_path / "run" / "provenance.json"
    known = json.loads(path.read_text()) | {"changes": [{"step": 2, "field": "data", "from": {}, "to": {}}]}
    path.write_text(json.dumps(known))
    note = "data changed in mid-training: the split heldout may hold images that were trained on before."
    assert score.evaluate(Run.load(tmp_path / "run"), "heldout")["in_sample"] == [note]
    assert score.evaluate(quickstart, "heldout")["in_sample"] == []


def test_the_binary_writes_the_submission_in_the_style_asked_for(quickstart, tmp_path, capsys):
    run_binary(
        evaluate,
        f"--workdir={quickstart.workdir}",
        "--split=test_generated",
        f"--submission={tmp_path / 'run.csv'}",
        "--style=gen_t",
        "--extension=.png",
    )
    lines = (tmp_path / "run.csv").read_text().splitlines()
    assert len(lines) == 20
    assert all(
        name.endswith(".png") and label in {f"gen_t{k}" for k in range(1, 6)} for name, label in (x.split(",") for x in lines)
    )
    assert "submission:" in capsys.readouterr().out


@pytest.fixture(scope="module")
def awkward(phantoms, tmp_path_factory):
    """The phantom of subtask 2, packed with test images of awkward names."""
    root = tmp_path_factory.mktemp("awkward")
    shutil.copytree(phantoms["subtask2"], root / "images")
    composed, taken_apart = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))
    names = [
        "slice_01.jpg",
        "slice_01",
        "scan 3 ",
        " scan 4",
        'a,"b"',
        "'c'",
        "d;e",
        composed,
        f"{taken_apart} 2",
        "0",
        "t1",
        "日本.PNG",
    ]
    test = root / "images" / "test" / "generated_unknown"
    for name, path in zip(names, sorted(test.iterdir()), strict=False):
        path.rename(test / f"{name}.png")
    packing.pack("subtask2", root / "data", root / "images" / "train", root / "images" / "test")
    assert set(names) < set(open_source(str(root / "data"), "subtask2").rows("test_generated").ids)
    return root / "data"


@pytest.mark.parametrize("options", [[], ["--header", "--style=t"], ["--extension=.png", "--style=gen_t"], ["--extension=.JPEG"]])
def test_what_the_binary_submits_it_calls_valid(options, quickstart, awkward, tmp_path, capsys):
    path, where = tmp_path / "run.csv", (f"--data_dir={awkward}", "--split=test_generated")
    run_binary(evaluate, f"--workdir={quickstart.workdir}", f"--submission={path}", *where, *options)
    run_binary(evaluate, f"--validate={path}", "--task=subtask2", *where)
    assert "valid, each of 20 ids once" in capsys.readouterr().out
    text = path.read_text()
    for form in ("NFC", "NFD"):  # typed elsewhere
        path.write_text(unicodedata.normalize(form, text))
        run_binary(evaluate, f"--validate={path}", "--task=subtask2", *where)


def test_a_submission_of_subtask_1_has_numbers(data_dir, tmp_path):
    run = Run(load_config("configs/subtask1/local_match.py"), tmp_path / "run")
    with pytest.raises(ValueError, match="^style='gen_t': labels of subtask1 are not sets; use int$"):
        score.evaluate(run, "test_real", {"path": tmp_path / "run.csv", "style": "gen_t"})
    assert not list(tmp_path.iterdir())


def test_attribution_has_the_calibration_of_probabilities_and_no_p(quickstart):
    found = score.evaluate(quickstart, "heldout")["metrics"]
    assert "permutation" not in found and set(found["scores"]) == {"calibration"}
    scores, rows = methods.predict(quickstart, "heldout").scores.astype(np.float64), quickstart.rows("heldout")
    expected = brier_score_loss(rows.labels, scores / scores.sum(axis=1, keepdims=True), labels=np.arange(5))
    assert found["scores"]["calibration"]["brier"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def membership(data_dir, tmp_path_factory):
    """Cross-fitted, and on the fixed half that the reason of the first names."""
    root = tmp_path_factory.mktemp("membership")
    crossed = fit("configs/subtask1/aimm_siamese.py", data_dir, root / "crossed")
    config = load_config("configs/subtask1/aimm_siamese.py")
    config.data_dir, config.decision.known = data_dir, "valid"
    config.data.folds, config.data.fold, config.data.valid = 2, 0, 0.2
    methods.get("ensemble").fit(Run(config, root / "half"))
    return crossed, Run.load(root / "half")


def test_cross_fitted_scores_have_an_auc_and_no_p_but_the_remedy(membership, capsys):
    run, _ = membership
    run_binary(evaluate, f"--workdir={run.workdir}")
    found = json.loads((run.workdir / "results.json").read_text())
    assert found["schema"] == score.SCHEMA
    permutation = found["splits"]["heldout"]["metrics"]["permutation"]
    assert permutation["p"] is None and "was trained on the labels of" in permutation["reason"]
    remedy = "--config.data.folds=2 --config.data.fold=0 --config.data.valid=0.2 --config.decision.known=valid"
    assert remedy in permutation["reason"]
    scores, rows = methods.predict(run, "heldout").scores[:, 0], run.rows("heldout")
    assert found["splits"]["heldout"]["metrics"]["scores"]["auc"] == roc_auc_score(rows.labels, scores)
    printed = " ".join(capsys.readouterr().out.split())
    assert "p not available" in printed and "decision: learned_threshold" in printed and "AUC" in printed
    assert "--refits" not in printed  # which would train networks
    assert found["splits"]["heldout"]["metrics"]["cross_fitted"] and CONDITIONAL in printed


def test_runs_that_were_scored_on_the_same_images_are_counted(data_dir, tmp_path, capsys):
    fit("configs/subtask1/gan_leaks.py", data_dir, tmp_path / "first")
    fit("configs/subtask1/domias.py", data_dir, tmp_path / "second")
    other_data = json.dumps({"schema": 2, "fingerprints": {"train_real": "of other data"}, "splits": {"heldout": {"metrics": {}}}})
    for name, text in (("w", other_data), ("x", "no JSON"), ("y", "[]"), ("z", '{"fingerprints": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    counted = [score.evaluate(Run.load(tmp_path / name), "heldout")["runs_beside"] for name in ("first", "second", "first")]
    assert counted == [0, 1, 1]
    capsys.readouterr()
    run_binary(evaluate, f"--workdir={tmp_path / 'first'}", "--report")
    told = words.several(1, "heldout")
    assert told.startswith("1 other run in the same folder was scored on heldout") and told in capsys.readouterr().out
    assert told in (tmp_path / "first" / "report" / "index.html").read_text()


def test_a_fixed_half_has_a_p(membership, capsys):
    _, run = membership
    run_binary(evaluate, f"--workdir={run.workdir}")
    found = json.loads((run.workdir / "results.json").read_text())["splits"]["heldout"]["metrics"]
    assert found["permutation"]["reason"] is None and found["permutation"]["permutations"] == 999
    assert found["permutation"]["split_groups"] == 0 and not found["cross_fitted"]
    # The z of Mann and Whitney on the patients, whose two slices share their mean score up to noise.
    rows, scores = run.rows("heldout"), methods.predict(run, "heldout").scores[:, 0]
    assert found["scores"]["auc"] == roc_auc_score(rows.labels, scores)
    patients, patient = np.unique(rows.groups, return_inverse=True)
    mean = np.bincount(patient, scores) / np.bincount(patient)
    label = np.array([rows.labels[patient == p][0] for p in range(len(patients))])
    n, m = label.sum(), (1 - label).sum()
    z = (roc_auc_score(label, mean) - 0.5) / math.sqrt((n + m + 1) / (12 * n * m))
    assert found["permutation"]["p"] == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), abs=0.15)
    assert "p of the AUC (permutation)" in " ".join(capsys.readouterr().out.split())


def test_a_table_without_intervals_says_why(capsys):
    labels, groups = np.repeat([0, 1], 20), np.arange(40) // 10
    evaluate.Console().print(terminal.table("", metrics.report(labels, labels, 2, groups)))
    assert "intervals: none, since a class occurs in fewer than 5 groups" in " ".join(capsys.readouterr().out.split())


def test_scores_that_are_all_equal_are_one_line(membership, monkeypatch):
    run = Run.load(membership[1].workdir)
    constant = dataclasses.replace(methods.predict(run, "heldout"), scores=np.full((len(run.rows("heldout")), 1), 0.25, np.float32))
    predict = methods.predict
    monkeypatch.setattr(methods, "predict", lambda run, split: constant if split == "heldout" else predict(run, split))
    with pytest.raises(ValueError, match=r"split heldout: all \d+ scores are 0.25: they tell no two images apart"):
        score.evaluate(run, "heldout")


def test_the_balanced_rule_is_marked(membership, capsys):
    run = Run.load(membership[1].workdir)
    run.config.decision.name, run.config.decision.known = "top_fraction", ""
    run.config.decision.params.fraction = 0.5
    results = score.evaluate(run, "heldout")
    assert results["decision"]["uses_class_balance"]
    evaluate.Console().print(terminal.table("", results["metrics"], results["decision"]))
    assert "decision: top_fraction, uses the class balance" in " ".join(capsys.readouterr().out.split())


def test_what_looks_at_the_images_asked_about_says_so(quickstart, membership, capsys, tmp_path):
    assert score.evaluate(quickstart, "heldout")["transductive"] == []
    run = Run.load(membership[1].workdir)
    run.config.decision.name, run.config.decision.known = "mean_plus_std", ""
    run.config.decision.params = ConfigDict({"k": 1.0})
    results = score.evaluate(run, "heldout")
    assert results["transductive"] == ["the decision mean_plus_std sees all images of the split at once"]
    evaluate.Console().print(terminal.table("", results["metrics"], results["decision"], {"transductive": results["transductive"]}))
    assert "transductive: the decision mean_plus_std sees" in " ".join(capsys.readouterr().out.split())
    document = json.loads((run.workdir / "results.json").read_text())
    notes = words.care(results, document, run.target, document["fingerprints"])
    assert any(note.startswith("Transductive: the decision mean_plus_std sees all images") for note in notes)
    run.config.decision.known = "valid"
    assert lineage.transductive(run.config) == []
    # Also where it is a member, or a finished run, that looks; but the decision of a member plays no part.
    ranks = base.ensemble(run.config.member)
    ranks.ensemble.combine = "rank"
    assert lineage.transductive(base.ensemble(ranks)) == lineage.transductive(ranks) != []
    pseudo = base.pseudo_label(quickstart.config)
    pseudo.data_dir, pseudo.data.valid = quickstart.config.data_dir, 0.1
    with methods.fitting(Run(pseudo, tmp_path / "pseudo")):
        pass
    combined = base.ensemble(quickstart.config)
    combined.ensemble.runs = (str(tmp_path / "pseudo"), str(tmp_path / "pseudo"))
    features = base.classical(quickstart.config)
    features.features.run = str(tmp_path / "pseudo")
    for config in (pseudo, combined, features):
        assert lineage.transductive(config) == ["pseudo-labels of test_generated were trained on"]
    variant = base.ensemble(quickstart.config)  # a member that is another config altogether
    variant.ensemble.variants = ConfigDict({"a": features.to_dict() | {"gallery": {"labelled": ("test_generated",)}}})
    variant.ensemble.variants.a.features.run = ""
    assert lineage.transductive(variant) == ["images of test_generated are in the gallery"]
    ranks.decision.name, ranks.ensemble.combine = "top_fraction", "mean"
    assert lineage.transductive(base.ensemble(ranks)) == []
    ranks.data.extra_labels = "extra.csv"
    assert len(lineage.transductive(ranks)) == 2


def test_without_reference_images_those_asked_about_can_be_the_reference(phantoms, tmp_path):
    root = phantoms["subtask1"]
    packing.pack("subtask1", str(tmp_path / "data"), str(root / "train"), str(root / "test"))
    config = load_config("configs/subtask1/local_match.py", "official")
    config.data_dir, config.data.folds = str(tmp_path / "data"), 2
    run = Run(config, tmp_path / "run")
    assert "reference" not in run.source.splits
    methods.get("ensemble").fit(run)
    results = score.evaluate(run, "heldout")
    assert results["transductive"] == ["images of test_real are in the gallery"]
    assert results["metrics"]["permutation"]["p"] < 0.05  # no label had a part in the scores; the phantom leaks all there is
    assert np.isfinite(methods.predict(run, "test_real").scores).all()


def test_unknown_labels_have_no_figure_but_say_what_was_looked_at(quickstart, capsys, monkeypatch):
    monkeypatch.setattr(score, "transductive", lambda config: ["it looks"])
    run_binary(evaluate, f"--workdir={quickstart.workdir}", "--split=test_generated")
    printed = capsys.readouterr().out
    assert "nothing to score" in printed and "transductive: it looks" in printed


def test_figures_of_a_training_that_goes_on_are_of_one_checkpoint(data_dir, tmp_path, monkeypatch):
    config = load_config("configs/quickstart.py")
    config.data_dir, config.num_steps, config.checkpoint_every, config.best = data_dir, 4, 2, ""
    methods.fit(run := Run(config, tmp_path / "run"))
    (run.workdir / "done").unlink()
    newer = [run.workdir / place for place in ("checkpoints/4", "digests/4.json")]
    for path in newer:
        path.rename(tmp_path / path.name)
    restore = inference.restore

    def saved_meanwhile(*given, **options):
        found = restore(*given, **options)
        for path in newer:
            if not path.exists():
                (tmp_path / path.name).rename(path)
        return found

    monkeypatch.setattr(inference, "restore", saved_meanwhile)
    run_binary(evaluate, f"--workdir={run.workdir}", "--report")
    results = json.loads((run.workdir / "results.json").read_text())["splits"]["heldout"]
    assert all(path.exists() for path in newer) and results["state"] == 2
    assert tables.read_predictions(run.workdir / "predictions" / "heldout.csv")[2]["state"] == 2
    monkeypatch.undo()
    assert score.evaluate(methods.load(run.workdir), "heldout")["state"] == 4
    plain = methods.predict(methods.load(run.workdir), "heldout").scores
    with tables.anew():
        np.testing.assert_array_equal(methods.predict(methods.load(run.workdir), "heldout").scores, plain)


def test_a_run_whose_named_run_trains_again_is_not_scored(data_dir, tmp_path):
    """One figure would be of several checkpoints of it."""
    network = fit("configs/quickstart.py", data_dir, tmp_path / "network")
    features = load_config("configs/subtask2/siamese_svm.py")
    features.data_dir, features.data, features.features.run = data_dir, network.config.data, str(network.workdir)
    ensemble = load_config("configs/subtask2/siamese_vote.py")
    ensemble.data_dir, ensemble.data, ensemble.ensemble.runs = data_dir, network.config.data, (str(network.workdir),)
    ensemble.ensemble.combine = "mean"
    for name, config in (("features", features), ("ensemble", ensemble)):
        methods.fit(Run(config, tmp_path / name))
        with pytest.raises(
            ValueError, match=f"--step=latest: {tmp_path / name} is no single network: its members are read at their"
        ):
            run_binary(evaluate, f"--workdir={tmp_path / name}", "--step=latest")
    (network.workdir / "done").unlink()
    for name, config in (("features", features), ("ensemble", ensemble)):
        refused = pytest.raises(ValueError, match=f"{network.workdir}.* is not finished")
        with refused:
            run_binary(evaluate, f"--workdir={tmp_path / name}")
        with refused:
            methods.fit(Run(config, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_run_without_its_children_is_not_scored(data_dir, packs, tmp_path):
    """What they were started with would be whatever data are there."""
    run = fit("configs/subtask1/both_directions.py", data_dir, tmp_path / "run")
    (tmp_path / "copy").mkdir()
    for path in run.workdir.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "copy")
    for split, data in (("test_real", packs["moved"]), ("heldout", "")):
        with pytest.raises(ValueError, match=f"{tmp_path}/copy/children/.* is missing: copy the whole folder {tmp_path}/copy, or"):
            score.evaluate(methods.load(tmp_path / "copy", data_dir=data), split)
    shutil.copytree(run.workdir / "children", tmp_path / "copy" / "children")
    child = next((tmp_path / "copy" / "children").glob("*/provenance.json"))
    child.unlink()
    with pytest.raises(ValueError, match=f"{child} is missing: copy the whole folder"):
        score.evaluate(methods.load(tmp_path / "copy"), "heldout")
    shutil.copy(run.workdir / child.relative_to(tmp_path / "copy"), child)
    child.with_name("done").unlink()  # restored from a copy that was made while it trained
    with pytest.raises(ValueError, match=f"{child.with_name('done')} is missing: copy the whole folder"):
        score.evaluate(methods.load(tmp_path / "copy"), "heldout")


def test_a_training_that_has_not_ended_is_called_so_wherever_its_figures_stand(data_dir, tmp_path, capsys):
    config = load_config("configs/quickstart.py")
    config.data_dir, config.num_steps, config.checkpoint_every, config.eval_every, config.best = data_dir, 2, 1, 1, ""
    methods.fit(run := Run(config, tmp_path / "run"))
    of = [f"--workdir={run.workdir}", "--report", f"--compare={run.workdir}"]
    run_binary(evaluate, *of)
    assert "unfinished" not in capsys.readouterr().out
    shutil.rmtree(run.workdir / "checkpoints" / "2")
    (run.workdir / "digests" / "2.json").unlink()
    for said in (
        "is called finished, and its last checkpoint is of step 1 of 2: copy",
        "the training is not finished: step 1 of 2",
    ):
        run_binary(evaluate, *of)
        assert said in " ".join(capsys.readouterr().out.split())
        (note,) = json.loads((run.workdir / "results.json").read_text())["splits"]["heldout"]["unfinished"]
        assert said in note and compare.kept_notes(run.workdir, "heldout")[-1] == f"unfinished: {note}"
        assert html.unescape((run.workdir / "report" / "index.html").read_text()).count(note[1:]) == 2  # and of the one beside
        run_binary(evaluate, of[0], "--split=test_generated")
        assert f"unfinished: {note}" in capsys.readouterr().out
        (run.workdir / "done").unlink(missing_ok=True)


def test_networks_of_an_ensemble_lack_none_of_their_checkpoints_unsaid(data_dir, tmp_path):
    network = load_config("configs/quickstart.py")
    network.num_steps, network.checkpoint_every, network.eval_every, network.data.valid, network.best = (
        3,
        1,
        1,
        0.25,
        "max:accuracy",
    )
    config = base.ensemble(network)
    config.data_dir, config.data.folds, config.data.fold, config.data.valid = data_dir, 2, -1, 0.25
    methods.fit(run := Run(config, tmp_path / "run"))
    assert score.evaluate(run, "heldout")["unfinished"] == []
    child = tmp_path / "run" / "children" / "fold1-seed0"
    assert (best := json.loads((child / "done").read_text())["best"]) in (steps := Checkpoints(child).manifests())
    for step in {best, max(steps)}:
        content = (child / "digests" / f"{step}.json").read_bytes()
        (child / "digests" / f"{step}.json").write_text("") if step != max(steps) else (child / "digests" / f"{step}.json").unlink()
        (note,) = score.evaluate(methods.load(tmp_path / "run"), "heldout")["unfinished"]
        assert note.startswith(f"{child}") and "checkpoint" in note
        (child / "digests" / f"{step}.json").write_bytes(content)
    assert score.evaluate(methods.load(tmp_path / "run"), "heldout")["unfinished"] == []


def test_flags_that_would_have_no_effect_are_refused(quickstart, tmp_path):
    files_of = ["--task=subtask2", "--predictions=p.csv", "--truth=t.csv", "--output=o"]
    run = f"--workdir={quickstart.workdir}"
    for given, said in (
        ([run, "--validate=run.csv", "--task=subtask2"], "--task is for files, without a run: leave out --workdir, or --task"),
        ([run, "--output=o"], "--output is for files, without a run"),
        ([*files_of, "--submission=new.csv"], "--submission is about a run: give --workdir"),
        (["--validate=a.csv", "--task=subtask2", "--data_dir=d", "--submission=b.csv"], "--submission is about a run"),
        (["--validate=a.csv", "--data_dir=d", *files_of], "--validate checks a submission against a packed split: leave out"),
        ([*files_of, "--step=latest"], "--step is about a run"),
        ([run, "--header"], "--header is about the submission: add --submission"),
        ([run, "--redact"], "--redact is about the page: add --report"),
        ([run, "--step=2", "--watch=5", "--split=valid"], "--step=2: --watch scores each checkpoint that comes"),
    ):
        with pytest.raises(ValueError, match=said):
            run_binary(evaluate, *given)


def test_folds_that_a_library_draws_otherwise_are_not_those_that_were_held_out(data_dir, tmp_path, monkeypatch):
    config = load_config("configs/quickstart.py")
    config.data_dir, config.num_steps, config.data.folds, config.data.fold = data_dir, 0, 3, 0
    methods.fit(run := Run(config, tmp_path / "run"))
    score.evaluate(run, "heldout")
    before = tree(run.workdir)
    fold_of = views.fold_of
    monkeypatch.setattr(views, "fold_of", lambda rows, folds, seed: (fold_of(rows, folds, seed) + 1) % folds)
    scored, goes_on = lambda: score.evaluate(methods.load(run.workdir), "heldout"), lambda: methods.fit(Run(config, run.workdir))
    for command in (scored, goes_on):
        with pytest.raises(
            ValueError, match="run holds out other images than scikit-learn .* draws: it was started by .*, install"
        ):
            command()
    changed = {name for name, content in tree(run.workdir).items() if before.get(name) != content}
    assert changed <= {"lock", "results.lock"}
    config.data.fold = 1  # another run
    methods.fit(Run(config, tmp_path / "other"))


def test_scores_of_another_version_are_said_to_be(quickstart, caplog, monkeypatch):
    table = quickstart.workdir / "predictions" / "heldout.csv.json"
    now = {name: environment.code()[name] for name in ("fingerprint_jax", "commit")}
    assert score.evaluate(quickstart, "heldout")["computed_by"] == now
    caplog.clear()
    assert score.evaluate(quickstart, "heldout")["computed_by"] == now and "computed by" not in caplog.text
    meta = json.loads(table.read_text())
    for by, said in (({"fingerprint_jax": "0.0.1", "commit": "abc"}, "0.0.1 of abc"), (None, "an older version")):
        table.write_text(json.dumps(meta | {"by": by}))
        assert score.evaluate(quickstart, "heldout")["computed_by"] == by
        assert f"{table.with_suffix('')} was computed by {said}, which is not this one: --recompute makes it anew" in caplog.text
    run_binary(evaluate, f"--workdir={quickstart.workdir}", "--recompute")
    assert json.loads(table.read_text())["by"] == now


def test_results_of_another_schema_are_not_mixed_in(quickstart):
    path = quickstart.workdir / "results.json"
    path.write_text(json.dumps({"schema": 1, "splits": {"valid": {"n": 3}}}))
    score.evaluate(quickstart, "heldout")
    document = json.loads(path.read_text())
    assert document["schema"] == score.SCHEMA and set(document["splits"]) == {"heldout"}
    for theirs in ({"kappa": 0.61, "by": "my own script"}, {"schema": 1, "my": "own"}, {"schema": "x", "splits": {}}):
        path.write_text(text := json.dumps(theirs))
        with pytest.raises(
            ValueError, match="results.json has not the figures of a run: move it away, and evaluate writes it anew"
        ):
            score.evaluate(quickstart, "heldout")
        assert path.read_text() == text
    path.write_text(json.dumps(document | {"schema": 2, "splits": {"valid": {"n": 3}}}))  # the one before, which is kept
    score.evaluate(quickstart, "heldout")
    document = json.loads(path.read_text())
    assert document["schema"] == score.SCHEMA and set(document["splits"]) == {"valid", "heldout"}
    assert scored_on(document, "valid")["fingerprints"] is None  # those of heldout may be others
    predictions, truth = published.write_files(path.parent / "predictions", np.eye(5, dtype=int))
    with pytest.raises(ValueError, match="results.json has the figures of a run: it is not replaced, give another --output"):
        score.score_files("subtask2", predictions, truth, str(path.parent))
    path.write_text(theirs := '{"schema": 1, "task": "mine", "values": [1, 2]}')
    with pytest.raises(ValueError, match="field 'environment' is missing.: it is not replaced, give another --output"):
        score.score_files("subtask2", predictions, truth, str(path.parent))
    assert path.read_text() == theirs
    path.write_text(json.dumps(document | {"schema": score.SCHEMA + 1, "more": 1}))
    with pytest.raises(
        ValueError, match=f"is of schema {score.SCHEMA + 1}, which a newer version wrote: use that, or move it away"
    ):
        score.evaluate(quickstart, "heldout")
    assert json.loads(path.read_text())["more"] == 1
    path.write_text(json.dumps(document))


def keys(value) -> set[str]:
    """Names of all fields of a JSON document, below `config` and the like only those that are ours."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if not isinstance(value, dict):
        return set()
    open_to = ("config", "params", "fingerprints", "versions", "settings", "splits", "state")
    own = {key: v for key, v in value.items() if key not in open_to}
    return value.keys() | set().union(*map(keys, [*own.values(), *value.get("splits", {}).values()]))


def test_every_field_of_results_json_is_documented(quickstart, membership):
    text = (ROOT / "docs" / "results.md").read_text()
    assert f"Schema {score.SCHEMA}" in text
    for run in (quickstart, *membership):
        score.evaluate(Run.load(run.workdir), "heldout")
        found = keys(json.loads((run.workdir / "results.json").read_text()))
        assert {"auc", "permutation"} <= found or {"calibration", "ece"} <= found
        missing = [key for key in found if f"`{key.rpartition('.')[2]}`" not in text]
        assert not missing, f"{', '.join(missing)}: say in docs/results.md what it is"


@pytest.mark.parametrize("path", ["configs/quickstart.py", "configs/subtask1/gan_leaks.py"])
def test_a_run_that_is_not_finished_has_nothing_to_score(path, data_dir, tmp_path):
    config = load_config(path)
    config.data_dir = data_dir
    with methods.fitting(Run(config, tmp_path / "run")):  # as far as a training that was killed at once
        pass
    with pytest.raises(ValueError, match="run is not finished, there is nothing to score yet: the command that trains it goes on"):
        run_binary(evaluate, f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("heldouts", "split 'heldouts' is not in the data set: did you mean 'heldout'. it has test_generated, "),
        ("test-generated", "did you mean 'test_generated'"),
        ("reference", "split 'reference' is not in the data set.*pack it with --reference_dir"),
        ("train_real:x", "split train_real:x: what follows the colon is a label"),
    ],
)
def test_a_split_that_is_misspelt_has_the_nearest(split, message, data_dir, tmp_path):
    config = load_config("configs/quickstart.py")
    config.data_dir = data_dir
    with pytest.raises(ValueError, match=message):
        Run(config, tmp_path).rows(split)
