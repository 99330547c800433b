"""One table of a sweep: means and intervals over seeds, failed rows shown, differences paired with the baseline."""

import csv
import dataclasses
import json
import logging

import numpy as np
import pytest
from PIL import Image

from fingerprint_jax import methods
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import permutation
from launch import collect, sweep
from launch.compare import Scored
from launch.sweep import product, values
from tests.conftest import finish, fit
from tests.test_evaluate import run_binary

CONFIG = "configs/quickstart.py:smoke"
T1, T2 = 12.7062047, 4.3026527  # 97.5% points of Student's t with 1 and 2 degrees of freedom, from a printed table


def scored(correct, n=20, ids="abcdefghijklmnopqrst"):
    """`correct` of n images of two classes are right."""
    labels = np.arange(n) % 2
    predicted = np.where(np.arange(n) < correct, labels, 1 - labels)
    return Scored(np.array(list(ids)), labels, predicted, (predicted * 1.0)[:, None], None, 2)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A sweep whose finished rows are given as {(rate, seed): Scored}."""

    def build(content, **arguments):
        rows = sweep.rows(CONFIG, product(values("optimizer.learning_rate", 1e-3, 1e-2), values("seed", 0, 1, 2)))
        sweep.write(tmp_path, "", rows)
        found = {}
        for row in rows:
            key = (row.overrides["optimizer.learning_rate"], row.overrides["seed"])
            if key in content:
                found[tmp_path / row.name] = content[key]
        monkeypatch.setattr(collect, "finished", lambda workdir, split: workdir in found)
        monkeypatch.setattr(Scored, "load", staticmethod(lambda workdir, split: found[workdir]))
        return collect.collect(tmp_path, "heldout", arguments.get("figure", "accuracy"), arguments.get("baseline", rows[0].name))

    return build


def test_several_seeds_are_a_mean_with_students_interval_and_pairs_by_seed(table):
    low, high = table(
        {(1e-3, s): scored(c) for s, c in enumerate((8, 10, 12))} | {(1e-2, s): scored(c) for s, c in ((1, 12), (2, 18))}
    )
    assert low["values"] == [0.4, 0.5, 0.6] and low["seeds"] == "3/3" and low["note"] == "baseline"
    np.testing.assert_allclose([low["mean"], low["low"], low["high"]], [0.5, 0.5 - T2 * 0.1 / 3**0.5, 0.5 + T2 * 0.1 / 3**0.5])
    assert low["difference"] is None
    assert high["seeds"] == "2/3" and high["note"] == "seed 0 not finished"
    # Seeds 1 and 2: 0.6 - 0.5 and 0.9 - 0.6; their standard error is half their distance.
    assert 0.2 - T1 * 0.1 < -1 and 0.2 + T1 * 0.1 > 1  # which no difference of two accuracies can be
    expected = [0.2, -1, 1]
    np.testing.assert_allclose([high["difference"], high["difference_low"], high["difference_high"]], expected)
    assert high["difference_of"] == "mean over 2 pairs of seeds (t)"


def test_equal_seeds_have_the_bootstrap_of_the_images_of_one(table):
    same, other = scored(10), scored(14)
    low, high = table({(1e-3, s): same for s in (0, 1, 2)} | {(1e-2, s): other for s in (0, 1)})
    assert [low["low"], low["high"]] == same.figure("accuracy")[1] and low["low"] < 0.5 < low["high"]
    assert low["interval_of"] == "3 equal seeds, the first, images (bootstrap)"
    assert [high["difference_low"], high["difference_high"]] == other.difference(same, "accuracy")["interval"]
    assert high["difference"] == pytest.approx(0.2) and high["difference_low"] < 0.2 < high["difference_high"]
    assert high["difference_of"] == "2 equal pairs of seeds, the first, images (paired bootstrap)"


@pytest.mark.parametrize("figure, expected", [("accuracy", 0.5), ("cohen_kappa", 1.0), ("auc", 0.5)])
def test_one_seed_has_the_bootstrap_of_its_images_and_says_so(table, figure, expected):
    low, high = table({(1e-3, 0): scored(10), (1e-2, 0): scored(20)}, figure=figure)
    assert "(bootstrap)" in low["interval_of"] and low["low"] < low["mean"] < low["high"]
    assert "(paired bootstrap)" in high["difference_of"]
    assert high["difference"] == pytest.approx(expected)  # all right, minus half right
    assert 0 < high["difference_low"] < expected < high["difference_high"]


def test_an_auc_is_that_of_the_second_class_where_each_has_a_score():
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.7, 0.6, 0.8, 0.9])  # eight of nine pairs in order
    two = Scored(np.arange(6).astype(str), labels, labels, np.stack([1 - scores, scores], axis=1), None, 2, membership=False)
    one = dataclasses.replace(two, scores=scores[:, None], membership=True)
    assert two.figure("auc")[0] == one.figure("auc")[0] == pytest.approx(8 / 9)
    assert two.difference(one, "auc")["difference"] == 0


def test_what_cannot_be_paired_is_said(table):
    low, high = table({(1e-3, 0): scored(10), (1e-2, 0): scored(10, ids="ABCDEFGHIJKLMNOPQRST")})
    assert high["mean"] == 0.5 and high["difference"] is None and high["note"].endswith("other images than the baseline")


def test_seeds_of_other_data_or_of_another_config_have_no_mean(table):
    of = [{"fingerprints": {"train_real": "a"}, "config": {"seed": seed, "num_steps": 2}} for seed in (0, 1)]
    runs = [dataclasses.replace(scored(8 + 2 * seed), **of[seed]) for seed in (0, 1)]
    low, high = table({(1e-3, seed): runs[seed] for seed in (0, 1)} | {(1e-2, seed): runs[seed] for seed in (0, 1)})
    assert low["mean"] == high["mean"] == 0.45 and high["difference"] == 0 and "differ" not in low["note"] + high["note"]
    elsewhere = dataclasses.replace(runs[1], fingerprints={"train_real": "b"})
    edited = dataclasses.replace(elsewhere, config={"seed": 1, "num_steps": 3, "optimizer.learning_rate": 1})
    for other, said in ((elsewhere, ""), (edited, ", config.num_steps, config.optimizer.learning_rate")):
        low, high = table({(1e-3, 0): runs[0], (1e-3, 1): other} | {(1e-2, 0): runs[0]})
        assert low["values"] == [0.4, 0.5] and low["mean"] is low["low"] is high["difference"] is None
        assert low["note"] == f"seed 2 not finished; the seeds differ in the content of train_real{said} too: no mean; baseline"
        assert high["mean"] == 0.4 and high["note"].endswith("no difference: the baseline's seeds have no mean")
        low, high = table({(1e-3, 1): runs[1], (1e-2, 1): other})  # the rate is what the sweep changes
        said = said.removesuffix(", config.optimizer.learning_rate")
        assert high["difference"] == 0 and high["note"].endswith(
            f"differs from the baseline in the content of train_real{said} too"
        )


def test_without_a_baseline_groups_are_compared_with_the_first(table):
    old, new = (dataclasses.replace(scored(10), config={"num_steps": steps}) for steps in (2, 3))
    low, high = table({(1e-3, 0): old, (1e-2, 0): old, (1e-2, 1): old}, baseline="")
    assert "differ" not in low["note"] + high["note"]
    low, high = table({(1e-3, 0): old, (1e-2, 0): new}, baseline="")  # the file of the config was edited in between
    assert "differ" not in low["note"] and high["note"].endswith("differs from the first group in config.num_steps too")


def test_the_run_of_another_row_has_no_mean(table, tmp_path):
    table({})
    rows = sweep.read(tmp_path)[1]
    (tmp_path / rows[0].name).mkdir()
    (tmp_path / rows[0].name / "config.json").write_text(json.dumps({"seed": 1}))
    low, high = table({(1e-3, 0): scored(10), (1e-2, 0): scored(10)})
    assert low["mean"] is None and low["values"] == [] and high["mean"] == 0.5
    assert low["note"].startswith("seed 0 is the run of another row: config.seed is 1 in its folder, 0 in the sweep; seed 1 not")


def test_no_seed_in_common(table):
    _, high = table({(1e-3, 0): scored(10), (1e-2, 1): scored(10)})
    assert high["note"].endswith("no seed in common with the baseline")


def test_a_kappa_that_is_not_defined_gives_no_mean(table):
    ones = np.ones(4, int)
    constant = Scored(np.array(list("abcd")), ones, ones, ones[:, None] * 1.0, None, 2)
    low, high = table({(r, s): constant for r in (1e-3, 1e-2) for s in (0, 1)}, figure="cohen_kappa")
    assert low["values"] == [None, None] and low["mean"] is None
    assert high["note"].endswith("cohen_kappa is not defined for seed 0")
    assert "not defined not defined" in collect.shown(low, "cohen_kappa").values()


def test_names_from_outside_start_no_formula_and_break_no_table(tmp_path):
    line = dict.fromkeys(collect.COLUMNS) | {"group": "=1+1|<b>$x$", "seeds": "1/1", "values": [0.5], "note": "@a\nb [red]"}
    collect.write(tmp_path, [line], "accuracy", "a|b $\\frac$")
    with (tmp_path / "table.csv").open(newline="") as file:
        header, row = csv.reader(file)
    cells = dict(zip(header, row, strict=True))
    assert cells["group"] == "'=1+1|<b>$x$" and cells["note"] == "'@a\\nb [red]" and cells["values"] == "0.5"
    body = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert body.startswith("| =1+1\\|&lt;b>$x$ | 1/1 | 0.5000 |") and "@a\\\\nb" in body


def test_an_interval_that_is_not_there_has_no_mark(tmp_path, capsys, monkeypatch):
    line = dict.fromkeys(collect.COLUMNS) | {"group": "a", "seeds": "1/1", "values": [0.5], "mean": 0.5, "note": ""}
    line |= {"interval_of": "one run, images (bootstrap)"}
    monkeypatch.setattr(logging.getLogger("fingerprint_jax"), "handlers", [])
    for ends, marked in (((None, None), False), ((0.4, 0.6), True)):
        monkeypatch.setattr(collect, "collect", lambda *_, ends=ends: [line | dict(zip(("low", "high"), ends, strict=True))])
        run_binary(collect, f"--sweep={tmp_path}")
        assert ("*" in capsys.readouterr().out) == marked
    assert logging.getLogger("fingerprint_jax").handlers  # warnings are lines as those of other commands


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "table.csv",
            "group,mine\n",
            "table.csv is no table of ours, it does not begin with group,seeds,values,mean,: move it away",
        ),
        ("table.md", "mine", "table.md is no table of ours, table.csv is missing: move it away"),
        ("table.png", "mine", "table.png is no table of ours, table.csv is missing: move it away"),
    ],
)
def test_a_table_of_somebody_else_is_left_as_it_is(name, text, said, tmp_path, monkeypatch):
    line = dict.fromkeys(collect.COLUMNS) | {"group": "a", "seeds": "1/1", "values": [0.5], "note": ""}
    monkeypatch.setattr(collect, "collect", lambda *_: [line])
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        run_binary(collect, f"--sweep={tmp_path}")
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]
    (tmp_path / name).unlink()
    collect.write(tmp_path, [line], "accuracy", "before")
    run_binary(collect, f"--sweep={tmp_path}")
    assert "before" not in (tmp_path / "table.md").read_text()


def test_so_many_groups_that_no_picture_holds_them_have_none(tmp_path, monkeypatch, caplog, capsys):
    line = dict.fromkeys(collect.COLUMNS) | {"seeds": "1/1", "values": [0.5], "note": ""}
    monkeypatch.setattr(collect, "collect", lambda *_: [line | {"group": f"g{i}"} for i in range(1001)])
    (tmp_path / "table.csv").write_text(",".join(collect.COLUMNS) + "\n")
    (tmp_path / "table.png").write_text("of fewer")
    run_binary(collect, f"--sweep={tmp_path}")
    assert "has no table.png: 1001 groups are more than 1000" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md"]
    assert capsys.readouterr().out.rstrip().endswith("table.csv, table.md")


def test_a_folder_of_runs_has_a_family_wise_p_of_their_own_data(data_dir, packs, tmp_path, capsys):
    runs = {}
    for name in ("gan_leaks", "domias", "monte_carlo"):
        run = fit(f"configs/subtask1/{name}.py", data_dir, tmp_path / f"0.{name}")
        runs[run.workdir.name] = run
        score.evaluate(run, "heldout")
    rows = run.rows("heldout")
    scores = np.concatenate([methods.predict(runs[name], "heldout").scores for name in sorted(runs)], axis=1)
    expected = permutation.permutation_p(permutation.auc_of(scores), rows.labels, rows.groups)
    lines = collect.collect(tmp_path, "heldout", "auc", "0.domias", True)
    assert [line["group"] for line in lines] == sorted(runs)
    assert [line["p"] for line in lines] == expected["p"]
    assert {line["family_wise_p"] for line in lines} == {expected["family_wise"]} and expected["family_wise"] >= min(expected["p"])
    run_binary(collect, f"--sweep={tmp_path}", "--figure=auc", "--family")
    told = f"family-wise p of the best of 3 groups: {expected['family_wise']:.3g}"
    assert told in capsys.readouterr().out and told in (tmp_path / "table.md").read_text()
    lines = collect.collect(tmp_path, "heldout", "auc")
    assert {line["p"] for line in lines} == {None}
    with pytest.raises(ValueError, match="neither a sweep nor a folder of runs that are evaluated on test_real"):
        collect.collect(tmp_path, "test_real", "auc")
    domias, gan_leaks, _ = sorted(runs)
    score.evaluate(methods.load(tmp_path / gan_leaks, data_dir=packs["other"]), "train_real")
    before, elsewhere, after = collect.collect(tmp_path, "train_real", "auc", with_family=True)
    assert before["note"] == after["note"] == "not evaluated on train_real"
    assert elsewhere["group"] == gan_leaks and elsewhere["seeds"] == "0/1" and elsewhere["mean"] is elsewhere["p"] is None
    assert (
        elsewhere["note"]
        == "was scored on other data, by another config, checkpoint or members than it now has: evaluate train_real anew"
    )
    path = tmp_path / domias / "results.json"
    document = json.loads(path.read_text())
    reasons = {"transductive": ["it looks"], "in_sample": ["it was trained on them", "twice"]}
    document["splits"]["heldout"] |= reasons
    path.write_text(json.dumps(document))
    said = "transductive: it looks; in-sample: it was trained on them; in-sample: twice"
    assert collect.collect(tmp_path, "heldout", "auc")[0]["note"] == said
    document["splits"]["heldout"]["in_sample"] = [3]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="results.json: in_sample of heldout is no list of text: evaluate it anew"):
        collect.collect(tmp_path, "heldout", "auc")


def test_a_run_of_a_folder_that_has_no_figure_is_named(tmp_path, monkeypatch, capsys):
    for name in "abcd":
        finish(tmp_path / name)
    (tmp_path / "b" / "results.json").unlink()
    (tmp_path / "c" / "results.json").unlink()
    (tmp_path / "c" / "done").unlink()
    (tmp_path / "d" / "failed.json").write_text('{"error": "not finite"}')
    monkeypatch.setattr(collect, "finished", lambda workdir, split: workdir.name == "a")
    monkeypatch.setattr(Scored, "load", staticmethod(lambda workdir, split: scored(10)))
    run_binary(collect, f"--sweep={tmp_path}")
    said = {"b": "not evaluated on heldout", "c": "not finished", "d": "failed: not finite"}
    out, page = capsys.readouterr().out, (tmp_path / "table.md").read_text()
    assert all(f"{name}: {note}\n" in out and f"| {name} | 0/1 |" in page and f"| {note} |" in page for name, note in said.items())
    assert "| a | 1/1 | 0.5000 |" in page


def test_a_row_whose_failure_cannot_be_read_is_not_finished(tmp_path):
    (tmp_path / "a").mkdir()
    for content in ("[" * 100_000, '{"error": 1}'):
        (tmp_path / "a" / "failed.json").write_text(content)
        assert collect._state(tmp_path, sweep.Row("a", "c.py", {}), "heldout") == "not finished"


def test_a_real_sweep_becomes_table_and_picture(data_dir, tmp_path, capsys):
    # 30 steps: after the two of the smoke config every image is given one class, which has no interval
    rows = sweep.rows(CONFIG, product(values("num_steps", 30), values("optimizer.learning_rate", 1e-2, 3e-3), values("seed", 0, 1)))
    sweep.write(tmp_path, data_dir, rows)
    for row in rows[:3]:
        config = sweep.resolve(row.config, row.overrides)
        config.data_dir = data_dir
        methods.get(config.method).fit(Run(config, tmp_path / row.name))
        score.evaluate(Run.load(tmp_path / row.name), "heldout")
    (tmp_path / rows[3].name).mkdir()
    (tmp_path / rows[3].name / "failed.json").write_text(json.dumps({"error": "main: error: not finite"}))
    run_binary(collect, f"--sweep={tmp_path}", f"--baseline={rows[0].group}")
    out = capsys.readouterr().out
    assert f"{rows[3].group}: seed 1 failed: main: error: not finite\n" in out
    assert "* one seed, or equal ones: over the images of one run" in out
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    reported = [json.loads((tmp_path / r.name / "results.json").read_text())["splits"]["heldout"]["metrics"] for r in rows[:3]]
    assert list(map(float, first["values"].split())) == [r["accuracy"] for r in reported[:2]]
    assert first["seeds"] == "2/2" and second["seeds"] == "1/2"
    assert float(second["mean"]) == reported[2]["accuracy"]
    assert [float(second[bound]) for bound in ("low", "high")] == reported[2]["intervals"]["accuracy"]
    assert second["note"] == "seed 1 failed: main: error: not finite"
    assert float(second["difference"]) == pytest.approx(reported[2]["accuracy"] - reported[0]["accuracy"])
    with Image.open(tmp_path / "table.png") as image:
        assert image.format == "PNG" and min(image.size) > 200
    with pytest.raises(ValueError, match="no such row or group, the groups are quickstart.smoke_num_steps"):
        run_binary(collect, f"--sweep={tmp_path}", "--baseline=nothing")
    with pytest.raises(ValueError, match="two classes, this task has 5"):
        run_binary(collect, f"--sweep={tmp_path}", "--figure=auc")
    with pytest.raises(ValueError, match="--family is of AUCs of membership, subtask 1"):
        run_binary(collect, f"--sweep={tmp_path}", "--family")
