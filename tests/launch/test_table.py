"""Systems on equal terms: as many steps as the minutes allow, nothing trained twice, a table of what is finished."""

import csv
import dataclasses
import json
import re
import shutil
import time

import numpy as np
import pytest

from fingerprint_jax import methods
from fingerprint_jax.data import controls, packing, phantom
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.evaluation import score
from fingerprint_jax.methods import classical
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from fingerprint_jax.runtime.preemption import Preempted
from fingerprint_jax.stats import score_metrics
from fingerprint_jax.training import loop
from fingerprint_jax.training.model import model_of
from launch import attribution, membership, sweep, systems, table
from launch.compare import Scored
from launch.systems import Comparison, Row
from tests.conftest import fit_until, load_config
from tests.test_evaluate import run_binary

CONFIG = "configs/quickstart.py:smoke"
PHANTOM = {"size": 48, "leak": 0.5, "real": 8, "generated": 20, "unknown": 10}
VIEW = {"data.folds": 5, "data.fold": 0, "data.valid": 0.1}
# The second takes the network of the first, the third cannot be trained.
ROWS = """
from launch.systems import Row

def rows():
    view = {"data.folds": 5, "data.fold": 0, "data.valid": 0.1}
    return [
        Row("net", "configs/quickstart.py:smoke", view, published="0.9 (1)"),
        Row("svm", "configs/subtask2/siamese_svm.py:smoke", view, networks=0, size="=small|", uses=("features.run", "net")),
        Row("bad", "configs/quickstart.py:smoke", view | {"backbone.name": "nothing"}),
    ]
"""


def scored(right, n=20, ids=None):
    """Images of two classes; `right` of each ten are right."""
    labels = np.arange(n) % 2
    predicted = np.where(np.arange(n) % 10 < right, labels, 1 - labels)
    return Scored(np.array(ids or [f"i{i:03}" for i in range(n)]), labels, predicted, predicted[:, None] * 1.0, None, 2)


@pytest.fixture
def quick(monkeypatch):
    """A network is two steps of half a second, with two rates and two seeds."""
    monkeypatch.setattr(systems, "processor_seconds", lambda run: 0.5)
    monkeypatch.setattr(Comparison, "__init__", _two(Comparison.__init__))


def _two(init):
    return lambda self, *arguments, **options: init(self, *arguments, rates=(1e-3, 1e-2), seeds=(0, 1), **options)


@pytest.fixture
def command(data_dir, tmp_path, quick):
    """Runs the binary on a data set, with more flags."""
    (tmp_path / "rows.py").write_text(ROWS)
    common = (f"--file={tmp_path}/rows.py", f"--data=d={data_dir}", f"--output={tmp_path}/out", f"--minutes={1 / 60}")
    return lambda *more: run_binary(table, *common, *more)


def test_steps_share_the_minutes_among_the_networks(tmp_path, quick, data_dir):
    rows = [Row(f"of{n}", CONFIG, networks=n) for n in (1, 6, 18, 10**6)]
    comparison = Comparison(tmp_path, rows, {"d": data_dir}, "", 1.5)
    # 90 processor seconds of 0.5 s steps are 180 steps.
    assert [comparison.steps("d", row) for row in rows] == [180, 30, 10, 1]
    found = json.loads((tmp_path / "d" / "of6" / "calibration.json").read_text())
    assert found["network"] == "siamese_cnn_tiny" and found["processor_s"] == 0.5
    # Four 3x3 convolutions of 1-4-8-16-32, a dense layer of the 1x1x32 that 48 px leave to 16, five logits.
    sizes = [9 * a * b + b for a, b in ((1, 4), (4, 8), (8, 16), (16, 32))]
    assert found["parameters"] == sum(sizes) + 32 * 16 + 16 + 16 * 5 + 5


def test_a_step_takes_the_processor_time_that_is_used(data_dir, tmp_path, monkeypatch):
    config = load_config("configs/quickstart.py")
    config.data_dir, config.num_steps = data_dir, 1000
    monkeypatch.setattr(systems, "TIMED", (20, 0.0))
    run = Run(config, tmp_path / "run")
    model, calls = model_of(run), []
    step = model.step

    def slow(*arguments):
        calls.append(time.process_time())
        while calls and time.process_time() - calls[-1] < 0.02:
            pass
        return step(*arguments)

    monkeypatch.setattr(model, "step", slow)
    spent = systems.processor_seconds(run)
    assert len(calls) == 21  # one compiles
    assert 0.02 < spent < 0.2
    assert not (tmp_path / "run").exists()


def test_a_row_resolves_to_its_config_with_leaves_and_nodes(tmp_path):
    row = Row("r", "configs/subtask2/sdva_vote.py:smoke", {"ensemble.variants": {}, "ensemble.seeds": 6, "member.log_every": 3})
    config = systems.resolve(row)
    assert not config.ensemble.variants and config.ensemble.seeds == 6 and config.member.log_every == 3
    assert systems.network_config(config) is config.member
    for field in ("ensemble.nothing", "nothing.variants"):
        with pytest.raises(ValueError, match=f"no field '{field}'"):
            systems.resolve(Row("r", row.config, {field: {}}))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rows": [Row("a", CONFIG), Row("a", CONFIG)]}, "'a' is the name of several rows"),
        ({"rows": [Row("a", CONFIG, uses=("x", "b")), Row("b", CONFIG)]}, "'a' uses 'b', which is no row before it"),
        ({"data": {"reals": "D"}}, "'reals' is the name of a control"),
        ({"minutes": 0.0}, "--minutes=0: more than 0"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Comparison(**({"output": tmp_path, "rows": [], "data": {"d": "D"}, "controls": "", "minutes": 1.0} | arguments))


def test_the_command_makes_the_table_and_goes_on_without_training_again(command, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"1 rows failed: d/bad; .*table.md says why"):
        command("--baseline=net")
    out = tmp_path / "out"
    choice = json.loads((out / "d/net/choice.json").read_text())
    chosen = choice["learning_rate"]
    valid = {}
    for rate in (1e-3, 1e-2):
        run = Run.load(out / f"d/net/lr{rate:g}-seed0")
        assert (run.config.num_steps, run.config.eval_every, run.config.checkpoint_every) == (2, 1, 1)
        assert run.config.optimizer.learning_rate == rate
        valid[f"{rate:g}"] = score_metrics.quick(run.rows("valid").labels, methods.predict(run, "valid").scores, "accuracy")[
            "accuracy"
        ]
        assert (run.workdir / "results.json").exists() == (rate == chosen)  # the others are not looked at
    assert choice["valid"] == valid and valid[f"{chosen:g}"] == max(valid.values())
    assert {run.name for run in (out / "d/net").glob("lr*")} == {"lr0.001-seed0", "lr0.01-seed0", f"lr{chosen:g}-seed1"}
    svm = Run.load(out / f"d/svm/lr{chosen:g}-seed1")
    assert svm.config.features.run == str(out / f"d/net/lr{chosen:g}-seed1")
    assert not (svm.workdir / "children").exists()

    net, of_svm, bad = json.loads((out / "table.json").read_text())
    accuracies = [
        json.loads((out / f"d/net/lr{chosen:g}-seed{seed}/results.json").read_text())["splits"]["heldout"]["metrics"]["accuracy"]
        for seed in (0, 1)
    ]
    assert net["values"] == accuracies and net["accuracy"] == pytest.approx(np.mean(accuracies))
    assert net["steps"] == 2 and of_svm["steps"] is None and net["processor_minutes"] > 0
    assert of_svm["note"] == "network of net" and of_svm["parameters"] > 0
    assert of_svm["difference"] == pytest.approx(of_svm["accuracy"] - net["accuracy"]) and net["difference"] is None
    assert bad["accuracy"] is None and bad["note"].startswith("failed: backbone.name='nothing' is unknown")
    with (out / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["net", "svm", "bad"] and lines[1]["size"] == "'=small|"
    assert "=small\\|" in (out / "table.md").read_text() and "Differences to `net`" in (out / "table.md").read_text()

    kept = (path for path in out.rglob("*") if path.is_file() and path.name not in ("failed.json", "lock"))
    before = {path: path.read_bytes() for path in kept}
    monkeypatch.setattr(loop, "train", None)
    capsys.readouterr()
    with pytest.raises(ValueError, match="1 rows failed: d/bad"):
        command("--baseline=net")
    assert {path: path.read_bytes() for path in before} == before
    seed = out / f"d/net/lr{chosen:g}-seed1"
    score.evaluate(methods.load(seed, "1"), "heldout")  # somebody looked at another checkpoint
    with pytest.raises(ValueError, match="1 rows failed"):
        command("--rows=bad")
    net = json.loads((out / "table.json").read_text())[0]
    assert len(net["values"]) == 1 and net["note"].startswith("without seed 1, not finished or not scored with its checkpoint")
    command("--rows=net")
    assert json.loads((out / "table.json").read_text())[0]["note"] == ""
    with pytest.raises(ValueError, match="--minutes=3: .*settings.json says 0.0166667"):
        command("--minutes=3")
    with pytest.raises(ValueError, match="--rows=nothing: use of net, svm, bad"):
        command("--rows=nothing")


def test_a_stopped_command_goes_on(command, tmp_path, monkeypatch):
    fit, done = methods.get("gradient").fit, []

    def stopped(run):
        if len(done) == 2:
            raise Preempted("SIGTERM")
        done.append(run.workdir)
        fit(run)

    monkeypatch.setattr(methods.get("gradient"), "fit", stopped)
    with pytest.raises(Preempted):
        command("--rows=net")
    assert not (tmp_path / "out/d/net/failed.json").exists()
    assert (tmp_path / "out/d/net/choice.json").exists()
    monkeypatch.setattr(methods.get("gradient"), "fit", lambda run: (done.append(run.workdir), fit(run)))
    command("--rows=net", "--datasets=d")
    assert [line["values"] != [] for line in json.loads((tmp_path / "out/table.json").read_text())] == [True, False, False]
    with pytest.raises(ValueError, match="--datasets=e: use of d"):
        command("--datasets=e")


def test_a_rate_that_is_not_finite_is_not_taken(tmp_path, data_dir, monkeypatch, quick):
    fit, tried = methods.get("gradient").fit, []

    def diverges(run):
        tried.append(run.config.optimizer.learning_rate)
        if run.config.optimizer.learning_rate == 1e-3:
            raise FloatingPointError("step 1 is not finite")
        fit(run)

    monkeypatch.setattr(methods.get("gradient"), "fit", diverges)
    row = Row("net", CONFIG, VIEW)
    comparison = Comparison(tmp_path, [row], {"d": data_dir}, "", 1 / 60)
    assert comparison.run(["d"], [row], lambda: None) == []
    found = attribution.line(comparison, "d", row)
    assert found["learning_rate"] == 1e-2 and found["note"] == "not finite with learning rate 0.001"
    assert found["valid"][0] is None and len(found["values"]) == 2
    tried.clear()
    assert comparison.run(["d"], [row], lambda: None) == []
    assert set(tried) == {1e-2}  # what has diverged is not tried again
    other = Row("other", CONFIG, VIEW)
    monkeypatch.setattr(methods.get("gradient"), "fit", lambda run: diverges(_with(run, 1e-3)))
    comparison = Comparison(tmp_path, [other], {"d": data_dir}, "", 1 / 60)
    assert comparison.run(["d"], [other], lambda: None) == ["d/other"]
    assert attribution.line(comparison, "d", other)["note"] == "failed: row other: no learning rate of 0.001, 0.01 ends well"
    monkeypatch.setattr(methods.get("gradient"), "fit", fit)
    assert comparison.run(["d"], [other], lambda: None) == []
    found = attribution.line(comparison, "d", other)
    assert found["note"] == "" and len(found["values"]) == 2


def test_without_a_split_valid_the_rate_is_that_of_the_config_and_one_seed_may_be_enough(tmp_path, data_dir, quick):
    row = Row("net", CONFIG, VIEW | {"data.valid": 0.0, "best": "", "optimizer.learning_rate": 2e-3})
    data = {"d": data_dir, "again": data_dir}
    comparison = Comparison(tmp_path, [row], data, "", 1 / 60, one_seed=("again",))
    assert comparison.run(list(data), [row], lambda: None) == []
    assert {path.name for path in (tmp_path / "d/net").glob("seed*")} == {"seed0", "seed1"}
    assert {path.name for path in (tmp_path / "again/net").glob("seed*")} == {"seed0"}
    config = Run.load(tmp_path / "d/net/seed1").config
    assert (config.optimizer.learning_rate, config.num_steps) == (2e-3, 2)
    found = attribution.line(comparison, "d", row)
    assert found["learning_rate"] is None and found["valid"] == [] and len(found["values"]) == 2


def test_the_steps_are_those_that_were_trained(tmp_path, data_dir, quick, monkeypatch):
    real, falls = loop.train, {0: (0.5, 0.4, 0.3), 1: (0.1, 0.2, 0.3)}  # the first seed ends after its second step

    def train(run, evaluate, origin=None):
        real(run, lambda state: {"accuracy": falls[run.config.seed][int(state["step"]) - 1]}, origin)

    monkeypatch.setattr(loop, "train", train)
    row = Row("net", CONFIG, VIEW | {"best": "max:accuracy", "patience": 1})
    comparison = Comparison(tmp_path, [row], {"d": data_dir}, "", 1.5 / 60)
    assert attribution.line(comparison, "d", row)["steps"] is None
    assert comparison.run(["d"], [row], lambda: None) == []
    (found,) = attribution.table(comparison, "d")[0]
    assert found["steps"] == [2, 3] and attribution.shown(found)["steps"] == "2 to 3"
    table.write(comparison)
    assert " 2 to 3 " in (tmp_path / "table.md").read_text() and ",2 3," in (tmp_path / "table.csv").read_text()


def _with(run, rate):
    run.config.optimizer.learning_rate = rate
    return run


def test_the_figures_are_those_of_the_predictions(tmp_path, monkeypatch):
    rows = [Row("base", CONFIG), Row("new", CONFIG), Row("elsewhere", CONFIG), Row("nothing", CONFIG)]
    comparison = Comparison(tmp_path, rows, {"d": "D"}, str(tmp_path / "controls"), 2.0)
    found = {}
    for row, right in zip(rows, ((5, 6, 7), (9, 9, 10), (5,), ()), strict=True):
        for seed, count in enumerate(right):
            place = comparison.workdir("d", row, 1e-3, seed)
            found[place, "heldout", ""] = scored(count, ids=[f"e{i}" for i in range(20)] if row.name == "elsewhere" else None)
    for kind, split, other, count in (
        ("one_generator", "heldout", "", 2),
        ("reals", "heldout", "", 3),
        ("phantom_runs", "heldout", "", 10),
        ("phantom_runs", "train_generated", comparison.data_dir("other_run"), 4),
    ):
        found[comparison.workdir(kind, rows[0], 1e-3, 0), split, other] = scored(count)
    for workdir in {place for place, _, _ in found}:
        workdir.mkdir(parents=True)
        (workdir / "cost.json").write_text(json.dumps({"processor_s": 60.0 * (1 + int(workdir.name[-1]) ** 2)}))
        (workdir.parent / "choice.json").write_text(json.dumps({"learning_rate": 1e-3, "valid": {"0.001": 0.5}}))
    monkeypatch.setattr(Scored, "load", staticmethod(lambda workdir, split, data_dir="": found[workdir, split, data_dir]))
    monkeypatch.setattr(systems.compare, "finished", lambda *asked: asked in found)
    base, new, elsewhere, nothing = (attribution.line(comparison, "d", row, "base") for row in rows)
    assert base["accuracy"] == pytest.approx(0.6) and base["values"] == [0.5, 0.6, 0.7]
    # Student's t with 2 degrees of freedom, from a printed table.
    np.testing.assert_allclose([base["seeds_low"], base["seeds_high"]], 0.6 + 4.3026527 * 0.1 / 3**0.5 * np.array([-1, 1]))
    # Of each ten images five are right with 3 seeds, one with 2, one with 1: variance of an image's mean around its class's.
    share = np.tile([1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0], 2)
    error = np.sqrt(sum(share[k::2].var() / 10 for k in (0, 1))) / 2
    np.testing.assert_allclose([base["low"], base["high"]], 0.6 + 1.96 * error * np.array([-1, 1]), atol=0.04)
    assert base["difference"] is None and base["processor_minutes"] == pytest.approx(2)
    assert new["difference"] == pytest.approx(28 / 30 - 0.6) and 0 < new["difference_low"] < new["difference_high"]
    assert elsewhere["difference"] is None and elsewhere["note"].endswith("; other images than the baseline")
    assert elsewhere["seeds_low"] is None and elsewhere["low"] < 0.5 < elsewhere["high"]
    assert [base[name] for name in attribution.CONTROLS] == pytest.approx([0.2, 0.3, 1.0, 0.4])
    assert base["reals_low"] < 0.3 < base["reals_high"] and new["reals"] is None
    assert base["phantom_other_run_p"] == 1.0  # 0.6 the other way round
    assert nothing["accuracy"] is None and nothing["values"] == []
    table.write(comparison, "base")
    text = (tmp_path / "table.md").read_text()
    assert "| base |" in text and "0.6000 (" in text and "0.5000 0.6000 0.7000" in text


def test_p_of_classes_is_a_share_of_all_assignments():
    labels = np.repeat(np.arange(5), 10)
    assert attribution.class_p(labels, labels, 5) == 1 / 120
    shifted = (labels + 1) % 5
    assert attribution.class_p(labels, shifted, 5) == 1.0
    turned = np.array([0, 1, 3, 4, 2])[labels]  # two are right, as in 20 of all assignments; three in 10, five in 1
    assert attribution.class_p(labels, turned, 5) == (1 + 10 + 20) / 120


def test_controls_are_made_once_of_one_data_set_and_scored_with_the_first_seed(tmp_path, data_dir, quick, monkeypatch):
    splits = phantom.subtask2(0, 48, 0.5, real=40, generated=100, unknown=5)
    phantom.write(tmp_path / "images", "subtask2", splits, 0)
    packing.pack("subtask2", tmp_path / "data", tmp_path / "images/train", groups=tmp_path / "images/groups.csv")
    monkeypatch.setattr(controls, "PHANTOM", PHANTOM)
    write, made = controls.write, []
    monkeypatch.setattr(controls, "write", lambda kind, *rest, **options: (made.append(kind), write(kind, *rest, **options)))
    view = VIEW | {"data.cache": "none"}  # one compilation: images on the device have a shape of their own in each data set
    svm = Row("svm", "configs/subtask2/siamese_svm.py:smoke", VIEW, networks=0, uses=("features.run", "net"))
    rows = [Row("net", CONFIG, view), svm]
    comparison = Comparison(tmp_path / "out", rows, {"d": str(tmp_path / "data")}, str(tmp_path / "controls"), 1 / 60)
    theirs = tmp_path / "controls" / "one_generator"
    theirs.mkdir(parents=True)
    for name, said in (("notes.txt", "has 'notes.txt' and is no control of ours"), ("source.json", "source.json cannot be used")):
        (theirs / name).write_text('{"mine": 1}')
        with pytest.raises(ValueError, match=said):
            comparison.run(["d"], rows, lambda: None)
        assert [path.read_text() for path in theirs.iterdir()] == ['{"mine": 1}'] and made == []
        (theirs / name).unlink()
    for _ in range(2):
        assert comparison.run(["d"], rows, lambda: None) == []
    assert made == ["one_generator", "reals", "phantom_runs"]
    folder = tmp_path / "controls"
    first = (folder / "phantom_runs" / "a").rename(tmp_path / "a")  # of two runs of the same generators
    shutil.copytree(folder / "one_generator", folder / "phantom_runs" / "a")
    open_source.cache_clear()
    with pytest.raises(ValueError, match=f"{folder}/phantom_runs has other data than those that were made"):
        comparison.run(["d"], rows, lambda: None)
    shutil.rmtree(folder / "phantom_runs" / "a")
    first.rename(folder / "phantom_runs" / "a")
    open_source.cache_clear()
    other = Comparison(tmp_path / "other", rows, {"d": data_dir}, str(folder), 1 / 60)
    with pytest.raises(
        ValueError, match=f"{folder}/one_generator was made from other data than {data_dir}: give another --controls"
    ):
        other.run(["d"], rows, lambda: None)
    source = (folder / "reals" / "source.json").rename(tmp_path / "source.json")
    with pytest.raises(ValueError, match=f"{folder}/reals does not say which data it was made from: remove it"):
        comparison.run(["d"], rows, lambda: None)
    source.rename(folder / "reals" / "source.json")
    (folder / "reals" / "fingerprint").rename(tmp_path / "reals")
    shutil.copytree(folder / "one_generator" / "fingerprint", folder / "reals" / "fingerprint")
    open_source.cache_clear()
    with pytest.raises(ValueError, match=f"{folder}/reals has other data than those that were made: remove it"):
        comparison.run(["d"], rows, lambda: None)
    shutil.rmtree(folder / "reals" / "fingerprint")
    (tmp_path / "reals").rename(folder / "reals" / "fingerprint")
    open_source.cache_clear()
    for row in rows:
        found = attribution.line(comparison, "d", row)
        assert all(0 <= found[name] <= 1 for name in attribution.CONTROLS)
        runs = list((tmp_path / "out/phantom_runs" / row.name).glob("lr*"))
        assert [run.name for run in runs] == [f"lr{found['learning_rate']:g}-seed0"]
        assert Run.load(runs[0]).config.data_dir == str(tmp_path / "controls/phantom_runs/a")
        scored = Scored.load(runs[0], "train_generated", str(tmp_path / "controls/phantom_runs/b"))
        assert found["phantom_other_run"] == np.mean(scored.predicted == scored.labels)
        assert all("/b_" in name for name in scored.ids)
        results = json.loads((runs[0] / "results.json").read_text())
        assert results["fingerprints"] == Source(str(tmp_path / "controls/phantom_runs/b"), "subtask2").fingerprints


def test_figures_of_data_that_were_packed_anew_since_are_made_anew(tmp_path, quick):
    for seed in (0, 1):
        splits = phantom.subtask1(seed, 48, 1.0, real=20, generated=40, unknown=20, reference=20)
        phantom.write(tmp_path / f"images{seed}", "subtask1", splits, seed)
    train = tmp_path / "images0" / "train"

    def pack(seed):
        if seed:
            shutil.rmtree(train / "generated")
            shutil.copytree(tmp_path / "images1" / "train" / "generated", train / "generated")
        packing.pack(
            "subtask1", tmp_path / "data", train, "", train.parent / "reference", groups=train.parent / "groups.csv", overwrite=True
        )
        open_source.cache_clear()

    row = Row("pixels", "configs/subtask1/gan_leaks.py", networks=0)
    comparison = Comparison(tmp_path / "out", [row], {"d": str(tmp_path / "data")}, "", 1 / 60)
    pack(0)
    assert comparison.run(["d"], [row], lambda: None) == []
    assert set(comparison.scored("d", row)) == {0, 1}
    changed = dataclasses.replace(row, overrides={"member.estimator.calibrated": False})
    controls.write("unrelated", tmp_path / "others", tmp_path / "data")
    for other, data, what in ((changed, "data", "config.member.estimator.calibrated"), (row, "others", "data")):
        rewritten = Comparison(tmp_path / "out", [other], {"d": str(tmp_path / data)}, "", 1 / 60)
        line = membership.line(rewritten, "d", other, membership.family(rewritten, "d"))
        assert line["auc"] is None and f"seed 0 is of another {what}: give that, or move its folder away" in line["note"]
    pack(1)
    assert comparison.scored("d", row) == {}
    assert comparison.run(["d"], [row], lambda: None) == ["d/pixels"]  # it was started with others


def test_what_a_row_has_chosen_for_another_config_or_other_data_is_chosen_anew(tmp_path, data_dir, quick, monkeypatch):
    """Steps and learning rate are those of the row as it is; without them nobody is believed either."""
    row = Row("net", CONFIG, {"backbone.name": "siamese_cnn_tiny", "data.valid": 0.2, "best": ""}, networks=1)
    other = dataclasses.replace(row, overrides=row.overrides | {"backbone.name": "mlp_tiny"})
    monkeypatch.setattr(systems, "processor_seconds", lambda run: 0.5)

    def comparison(row):
        return Comparison(tmp_path / "out", [row], {"d": data_dir}, "", 1 / 60)

    before, after = comparison(row), comparison(other)
    assert before.run(["d"], [row], lambda: None) == []
    assert before.calibration("d", row)["network"] == "siamese_cnn_tiny" and before.kept("d", row, "choice.json")
    assert after.kept("d", other, "choice.json") == {} == after.kept("d", other, "calibration.json")
    line = attribution.line(after, "d", other)
    assert line["network"] is None and line["accuracy"] is None
    assert "seed 0 is of another config.backbone.name: give that, or move its folder away and run this row" in line["note"]
    kept = (tmp_path / "out" / "d" / "net" / "calibration.json").read_bytes()
    assert after.run(["d"], [other], lambda: None) == ["d/net"]
    said = json.loads((tmp_path / "out" / "d" / "net" / "failed.json").read_text())["error"]
    assert said.endswith("was begun with another config or on other data: give these, or move it away and have it made anew")
    assert (tmp_path / "out" / "d" / "net" / "calibration.json").read_bytes() == kept  # else its own runs would have other steps
    for path in (tmp_path / "out" / "d" / "net").glob("lr*"):
        shutil.rmtree(path)
    assert (
        "was begun with another config or on other data: give that, or move its folder"
        in attribution.line(after, "d", other)["note"]
    )
    (tmp_path / "out" / "d" / "net" / "calibration.json").unlink()  # as a refusal says
    assert after.run(["d"], [other], lambda: None) == []
    assert after.calibration("d", other)["network"] == "mlp_tiny" and after.scored("d", other).keys() == {0, 1}


def test_a_rate_that_was_chosen_among_other_trainings_is_not_taken(tmp_path, data_dir, quick):
    row = Row("net", CONFIG, {"backbone.name": "mlp_tiny", "data.valid": 0.2, "best": ""}, networks=1)
    long, short = (Comparison(tmp_path / name, [row], {"d": data_dir}, "", m) for name, m in (("long", 1.0), ("short", 1 / 60)))
    place = short.folder("d", row)
    place.mkdir(parents=True)
    content = {"learning_rate": 1e-3, "valid": {"0.001": 0.5}, "of": short._of("d", row, "choice.json")}
    (place / "choice.json").write_text(json.dumps(content))
    assert short.kept("d", row, "choice.json") == content
    long.folder("d", row).mkdir(parents=True)
    shutil.copy(place / "choice.json", long.folder("d", row))
    assert long.kept("d", row, "choice.json") == {}


def test_minutes_that_a_kill_has_cut_off_are_said(tmp_path, data_dir, quick, monkeypatch):
    row = Row("net", CONFIG, {"backbone.name": "mlp_tiny", "data.valid": 0.2, "best": ""}, networks=1)
    found = Comparison(tmp_path / "out", [row], {"d": data_dir}, "", 1 / 60)
    monkeypatch.setattr(systems, "processor_seconds", lambda run: 0.5)
    workdir, fit = found.workdir("d", row, 1e-3, 0), methods.fit

    def cost():
        return json.loads((workdir / "cost.json").read_text())

    def killed(run):  # the last that such a process sees of the file
        fit_until(run, 2)

    monkeypatch.setattr(methods, "fit", killed)
    found.fit("d", row, 1e-3, 0)
    assert cost()["whole"] is True  # it ended by itself
    seen = []
    monkeypatch.setattr(methods, "fit", lambda run: seen.append(cost()))
    found.fit("d", row, 1e-3, 0)
    assert [each["whole"] for each in seen] == [False]  # where a kill came now
    (workdir / "cost.json").write_text(json.dumps(seen[0]))
    monkeypatch.setattr(methods, "fit", fit)
    found.fit("d", row, 1e-3, 0)
    assert cost()["whole"] is False and cost()["processor_s"] > 0
    (workdir / "cost.json").unlink()  # a kill in the first start
    (workdir / "done").unlink()
    found.fit("d", row, 1e-3, 0)
    assert cost()["whole"] is False


def test_a_row_without_its_calibration_has_no_figure_of_another_config(tmp_path, data_dir, quick):
    row = Row("pixels", "configs/subtask1/gan_leaks.py", networks=0)
    given = {"output": tmp_path / "out", "data": {"d": data_dir}, "controls": "", "minutes": 1 / 60}
    assert Comparison(rows=[row], **given).run(["d"], [row], lambda: None) == []
    (tmp_path / "out" / "d" / "pixels" / "calibration.json").unlink()
    assert Comparison(rows=[row], **given).scored("d", row)
    changed = dataclasses.replace(row, overrides={"member.estimator.calibrated": False})
    assert Comparison(rows=[changed], **given).scored("d", changed) == {}


def test_controls_of_other_data_stand_on_no_line(tmp_path, data_dir, phantoms, quick):
    images = shutil.copytree(phantoms["subtask1"], tmp_path / "images")
    min((images / "train" / "real_used").iterdir()).unlink()
    packing.pack("subtask1", tmp_path / "b", images / "train", "", images / "reference", groups=images / "groups.csv")
    row = Row("pixels", "configs/subtask1/gan_leaks.py", networks=0)
    given = {"output": tmp_path / "out", "rows": [row], "controls": str(tmp_path / "controls"), "minutes": 1 / 60}
    data = {"a": data_dir, "b": str(tmp_path / "b")}
    both = Comparison(data=data, **given)
    assert both.run(["a", "b"], [row], lambda: None) == []
    assert membership.line(both, "a", row, membership.family(both, "a"))["copies"] is not None
    turned = Comparison(data=dict(reversed(data.items())), **given)
    line = membership.line(turned, "b", row, membership.family(turned, "b"))
    assert line["auc"] is not None and line["copies"] is None and line["unrelated"] is None
    assert "copies was made from other data than b" in line["note"]


def test_on_other_data_a_classical_run_learns_from_its_own(tmp_path, data_dir, monkeypatch):
    read = []
    features = classical.network_features.features
    monkeypatch.setattr(
        classical.network_features,
        "features",
        lambda run, *arguments: (read.append(run.config.data_dir), features(run, *arguments))[1],
    )
    monkeypatch.setattr(controls, "PHANTOM", PHANTOM)
    controls.write("phantom_runs", tmp_path / "controls")
    config = load_config("configs/subtask2/siamese_svm.py")
    config.data_dir = str(tmp_path / "controls/a")
    methods.get("classical").fit(Run(config, tmp_path / "run"))
    read.clear()
    methods.predict(Run.load(tmp_path / "run", data_dir=str(tmp_path / "controls/b")), "train_generated")
    assert read == [str(tmp_path / "controls/a"), str(tmp_path / "controls/b")]


def test_the_rows_of_subtask_2_resolve_and_see_the_same_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # any folder will do
    rows = sweep.load_file("tables/subtask2", "rows")
    comparison = Comparison("out", rows, {"d": "D"}, "", 2.0)
    views = {(c.task, c.data.folds, c.data.fold, c.data.valid, c.data.split_seed) for c in comparison.configs.values()}
    assert views == {("subtask2", 5, 0, 0.1, 0)}
    for row in rows:
        found = systems.network_config(comparison.configs[row.name])
        if found.method == "gradient" and found.num_steps:
            assert found.backbone.name.endswith("_tiny") or found.backbone.name == "siamese_cnn"


def test_the_rows_of_subtask_1_resolve_and_see_the_same_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = sweep.load_file("tables/subtask1", "rows")
    comparison = Comparison("out", rows, {"d": "D"}, "", 2.0)
    views = {(c.task, c.data.folds, c.data.fold, c.data.split_seed) for c in comparison.configs.values()}
    assert views == {("subtask1", 5, -1, 0)}
    for row in rows:
        found = systems.network_config(comparison.configs[row.name])
        assert bool(row.networks) == (found.method == "gradient" and found.num_steps > 0), row.name
        if row.networks:
            assert found.backbone.name.endswith("_tiny") or found.backbone.name == "mlp", row.name
        assert comparison.configs[row.name].ensemble.best_variant == (row.networks > 1), row.name


def test_a_table_of_somebody_else_is_not_overwritten_and_a_reason_cannot_obey(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("bad\x1b[2J")

    monkeypatch.setattr(Comparison, "_run", fails)
    row = Row("r", CONFIG, networks=0)
    comparison = Comparison(tmp_path, [row], {"d": "D"}, "", 1.0)
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(ValueError, match="table.csv is no table of ours, settings.json is missing: give another --output"):
        comparison.run(["d"], [row], lambda: None)
    (tmp_path / "settings.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="settings.json cannot be used .field 'minutes' is missing"):
        comparison.run(["d"], [row], lambda: None)
    assert (tmp_path / "settings.json").read_text() == '{"mine": 1}'
    (tmp_path / "settings.json").write_text('{"minutes": 1, "theme": "dark"}')
    with pytest.raises(ValueError, match="settings.json has 'theme' and is none of ours: give another --output"):
        comparison.run(["d"], [row], lambda: None)
    (tmp_path / "settings.json").unlink()
    (tmp_path / "table.csv").unlink()
    assert comparison.run(["d"], [row], lambda: None) == ["d/r"]
    assert capsys.readouterr().out == "failed    d/r: bad\\x1b[2J\n"
    (tmp_path / "d/r/failed.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="failed.json cannot be used .field 'error' is missing"):
        comparison.run(["d"], [row], lambda: None)
    assert (tmp_path / "d/r/failed.json").read_text() == '{"mine": 1}'


def test_what_lies_beside_the_runs_and_is_none_is_named(tmp_path):
    for name, text in (("choice.json", "{"), ("choice.json", "{}"), ("cost.json", '{"processor_s": "x"}'), ("failed.json", "{}")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} cannot be used"):
            systems.read(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "minutes", "said"),
    [
        ("../d=D", 1, "--data=../d=...: the name becomes that of a folder"),
        ("table.md=D", 1, "--data=table.md=...: the name becomes that of a folder"),
        ("d=D,d=E", 1, "--data=d=D,d=E: each NAME stands for one DIR"),
        ("d=D", "nan", "--minutes=nan: more than 0 are needed"),
    ],
)
def test_names_of_data_and_minutes_are_looked_at_before_anything_is_written(data, minutes, said, tmp_path):
    file = tmp_path / "rows.py"
    file.write_text("from launch.systems import Row\n\n\ndef rows():\n    return [Row('q', 'quickstart:smoke')]\n")
    with pytest.raises((ValueError, SystemExit), match=re.escape(said)):
        run_binary(table, f"--file={file}", f"--data={data}", f"--output={tmp_path / 'out'}", f"--minutes={minutes}")
    assert not (tmp_path / "out").exists()


def test_two_commands_make_no_table_at_once(tmp_path):
    file = tmp_path / "rows.py"
    file.write_text("from launch.systems import Row\n\n\ndef rows():\n    return [Row('q', 'quickstart:smoke')]\n")
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(ValueError, match="table.md is no table of ours"):
        run_binary(table, f"--file={file}", f"--data=d={tmp_path}", f"--output={tmp_path}")
    assert not (tmp_path / "lock").exists()
    (tmp_path / "table.md").unlink()
    with files.locked(tmp_path / "lock"), pytest.raises(ValueError, match=f"--output={tmp_path}: process .* makes the table there"):
        run_binary(table, f"--file={file}", f"--data=d={tmp_path}", f"--output={tmp_path}")
    assert not (tmp_path / "calibration.json").exists()
