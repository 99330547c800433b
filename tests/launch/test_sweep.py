"""The rows of a sweep: combined as written, checked against the config, named so that they can be read."""

import json
import os
import re

import pytest

from fingerprint_jax.runs.config import flat_config
from launch import local, sweep
from launch.sweep import chain, product, values, zip_
from tests.conftest import CONFIGS, ROOT, load_config
from tests.test_evaluate import run_binary

CONFIG = "configs/quickstart.py:smoke"


def test_product_zip_and_chain_combine_overrides():
    a, b = values("a", 1, 2), values("b", 3, 4)
    assert product(a, b) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert zip_(a, b) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain(a, b) == [{"a": 1}, {"a": 2}, {"b": 3}, {"b": 4}]
    assert product() == [{}]
    with pytest.raises(ValueError, match=r"\[2, 1\] rows cannot be zipped"):
        zip_(a, values("b", 3))


def test_the_command_line_is_a_product_and_its_rows_are_typed(tmp_path, capsys):
    arguments = (f"--config={CONFIG}", f"--output={tmp_path}", "--data_dir=D", "--set=seed=0,1")
    run_binary(sweep, *arguments, "--zip=num_steps=2,3", "--zip=optimizer.learning_rate=1e-3,0.01")
    data_dir, rows = sweep.read(tmp_path)
    assert data_dir == os.path.abspath("D")  # wherever the rows are run from
    expected = [(2, 1e-3, 0), (2, 1e-3, 1), (3, 1e-2, 0), (3, 1e-2, 1)]
    assert [tuple(row.overrides.values()) for row in rows] == expected
    assert list(rows[0].overrides) == ["num_steps", "optimizer.learning_rate", "seed"]
    assert rows[1].name == "quickstart.smoke_num_steps-2_optimizer.learning_rate-0.001_seed-1"
    assert rows[1].group == rows[0].group == "quickstart.smoke_num_steps-2_optimizer.learning_rate-0.001"
    assert rows[1].flags == [
        f"--config={CONFIG}",
        "--config.num_steps=2",
        "--config.optimizer.learning_rate=0.001",
        "--config.seed=1",
    ]
    assert "4 rows, 4 of them new" in capsys.readouterr().out


def test_a_row_resolves_to_its_config_with_the_overrides_and_nothing_else():
    rates = (("head", 0.1),)
    found = flat_config(sweep.resolve(CONFIG, {"seed": 3, "optimizer.rates": rates, "data.balanced": False}))
    plain = flat_config(load_config("configs/quickstart.py"))
    assert found.pop("optimizer.rates") in ([["head", 0.1]], [("head", 0.1)])
    assert found == {k: v for k, v in plain.items() if k != "optimizer.rates"} | {"seed": 3, "data.balanced": False}


def test_commas_in_brackets_and_quotes_do_not_part_values(tmp_path):
    text = "optimizer.rates=(('a',0.1),('b',0)),()"
    assert sweep.parse(text) == values("optimizer.rates", "(('a',0.1),('b',0))", "()")
    sweep.write(tmp_path, "D", sweep.rows(CONFIG, sweep.parse(text)))
    first, second = sweep.read(tmp_path)[1]
    assert first.overrides == {"optimizer.rates": [["a", 0.1], ["b", 0.0]]} and second.overrides == {"optimizer.rates": []}
    assert sweep.changed(first) == sweep.changed(second) == ""
    assert sweep.parse("backbone.weights='',\"a,b\"") == values("backbone.weights", "", "a,b")
    for wrong in ("seed", "seed=", "=1"):
        with pytest.raises(ValueError, match="expected field=value"):
            sweep.parse(wrong)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"learning_rate": 1}, r"no field learning_rate: did you mean optimizer.learning_rate"),
        ({"seed": 1.5}, r"seed=1.5: .* has 0 there, which is int"),
        ({"seed": "one"}, r"seed='one': .* has 0 there, which is int"),
        ({"backbone.name": 3}, r"backbone.name=3: .* which is str"),
        ({"optimizer": "adam"}, r"optimizer is no field but a group of them"),
        ({"config": "configs/quickstart.py:smok"}, r"variant='smok' is unknown: did you mean 'smoke'"),
        ({"config": ""}, "give --config"),
        (
            {"config": "configs/subtask1/domias.py", "member.seed": 1},
            "member.seed=1: a member has the value of the run around it: set seed",
        ),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_would_be_right(overrides, message):
    with pytest.raises(ValueError, match=message):
        sweep.rows(CONFIG, [overrides])


def test_two_rows_that_are_the_same_run_are_refused():
    with pytest.raises(ValueError, match="rows quickstart.smoke and quickstart.smoke_seed-0 are the same run"):
        sweep.rows(CONFIG, [{}, {"seed": 0}])  # 0 is the default


def test_names_are_safe_bounded_and_differ_where_overrides_differ():
    names = [sweep.name(CONFIG, {"backbone.weights": text}) for text in ("../a b", "../a  b", "x" * 300, "x" * 301, "-1")]
    assert len(set(names)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) and len(name) <= 100 for name in names)
    assert sweep.name("/home/x/subtask1/a.py", {}) == "subtask1.a"


def test_a_place_that_keeps_no_checkpoints_is_refused_before_a_sweep_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"lr\[1\]/' has '\[': checkpoints cannot be read again from there"):
        sweep.write(tmp_path / "lr[1]", "D", sweep.rows(CONFIG, values("seed", 0)))
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_extended_and_never_loses_rows(tmp_path):
    rows = sweep.rows(CONFIG, values("seed", 0, 1, 2))
    assert sweep.write(tmp_path, "D", rows[:2]) == 2
    assert sweep.write(tmp_path, "D", rows) == 1
    with pytest.raises(ValueError, match=r"1 rows that the new sweep lacks \(first: quickstart.smoke_seed-2\)"):
        sweep.write(tmp_path, "D", rows[:2])
    assert sweep.read(tmp_path) == ("D", rows)


def test_a_sweep_that_was_begun_keeps_its_data(tmp_path):
    rows = sweep.rows(CONFIG, values("seed", 0, 1))
    sweep.write(tmp_path, "D", rows[:1])
    assert sweep.write(tmp_path, "E", rows) == 1  # nothing was trained
    for row in rows:
        (tmp_path / row.name).mkdir()
    (tmp_path / rows[1].name / "config.json").touch()
    begun = f"1 rows of .*sweep.json were begun with 'E' .first: {rows[1].name}.: give that, or another --output"
    with pytest.raises(ValueError, match=f"--data_dir='D': {begun}"):
        sweep.write(tmp_path, "D", rows)
    assert sweep.read(tmp_path)[0] == "E" and sweep.write(tmp_path, "./E", rows) == 0
    own = sweep.rows(CONFIG, values("data_dir", "A", "B"))
    sweep.write(tmp_path / "own", "", own)
    (tmp_path / "own" / own[0].name).mkdir()
    (tmp_path / "own" / own[0].name / "config.json").touch()
    assert sweep.write(tmp_path / "own", "D", own) == 0  # each has its own


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{}], "data_dir": ""}'])
def test_a_file_that_is_no_sweep_is_named(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep.json: not a sweep .* python -m launch.sweep writes one"):
        sweep.read(tmp_path)


def test_a_row_cannot_lead_out_of_the_sweep_nor_stand_twice(tmp_path):
    row = {"name": "../x", "config": CONFIG, "overrides": {}}
    (tmp_path / "sweep.json").write_text(json.dumps({"data_dir": "", "rows": [row]}))
    with pytest.raises(ValueError, match="'../x' is not named after its overrides"):
        sweep.read(tmp_path)
    row["name"] = sweep.name(CONFIG, {})
    (tmp_path / "sweep.json").write_text(json.dumps({"data_dir": "", "rows": [row, row]}))
    with pytest.raises(ValueError, match=f"row '{row['name']}' stands there twice"):
        sweep.read(tmp_path)


def test_the_ablation_of_the_siamese_systems_fits_their_config():
    found = sweep.load_file("launch/ablations/contrastive.py")
    rows = sweep.rows("configs/subtask2/aimm_siamese.py:smoke", found)
    assert len(rows) == 5 * 3
    assert [row.group for row in rows[:3]] == ["subtask2.aimm_siamese.smoke"] * 3
    with pytest.raises(ValueError, match="no function sweep"):
        sweep.load_file("configs/base.py")
    with pytest.raises(ValueError, match="expected a Python file"):
        sweep.load_file("nothing.py")


def test_every_system_is_a_row_of_the_ablation_of_them_all(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [row["config"] for row in sweep.load_file("launch/ablations/systems.py")]
    left_out = {path for path in CONFIGS if f"{path}:smoke" not in found}
    standing = {"configs/subtask2/siamese_svm.py", "configs/subtask2/siamese_vote.py"}
    makers = {path for path in CONFIGS if path.startswith("configs/generators/")}
    assert left_out == {"configs/quickstart.py"} | makers | standing
    assert all(sweep.resolve(config, {}).task in ("subtask1", "subtask2") for config in found[:2])


def test_a_sweep_that_never_comes_or_is_nested_without_end_is_one_line(tmp_path):
    row = {"config": "c.py", "overrides": {"seed": [1]}}
    row["name"] = sweep.name("c.py", row["overrides"])
    for text in ('{"data_dir": 3, "rows": []}', "[" * 100_000, json.dumps({"data_dir": "", "rows": [row]})):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(ValueError, match="sweep.json: not a sweep"):
            sweep.read(tmp_path)
    (tmp_path / "sweep.json").unlink()
    os.mkfifo(tmp_path / "sweep.json")
    with pytest.raises(ValueError, match="a pipe, expected a file"):
        sweep.read(tmp_path)


def test_a_config_that_has_changed_is_no_row_of_a_sweep_that_was_begun(tmp_path, monkeypatch):
    config = tmp_path / "exp.py"

    def of(name):
        config.write_text(f"from configs.subtask2 import {name}\n\n\ndef get_config():\n    return {name}.get_config('smoke')\n")

    of("residual_svm")
    output = tmp_path / "s"
    arguments = f"--config={config}", f"--output={output}", "--set=seed=0,1"
    run_binary(sweep, *arguments)
    first, second = sweep.read(output)[1]
    assert sweep.changed(first) == "" and first.hash != second.hash
    of("medhastra_resnet18")
    assert "is another config than when the sweep was written" in sweep.changed(first)
    launcher = local.Launcher(output, "", "heldout")
    monkeypatch.setattr(launcher, "call", None)
    assert launcher.fit_and_evaluate(first) == "failed"
    assert "another config" in json.loads((output / first.name / "failed.json").read_text())["error"]
    run_binary(sweep, *arguments)  # nothing was begun: the rows are those of the config now
    assert sweep.changed(sweep.read(output)[1][0]) == ""
    (output / second.name).mkdir()
    (output / second.name / "config.json").write_text("{}")
    of("residual_svm")
    with pytest.raises(ValueError, match=f"row {re.escape(second.name)} of .* was begun with another config than {config} is now"):
        run_binary(sweep, *arguments)


def test_a_sweep_of_an_older_version_has_no_digests(tmp_path):
    run_binary(sweep, f"--config={CONFIG}", f"--output={tmp_path}", "--data_dir=D", "--set=seed=0")
    document = json.loads((tmp_path / "sweep.json").read_text())
    del document["rows"][0]["hash"]
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    (row,) = sweep.read(tmp_path)[1]
    assert sweep.changed(row) == "" and row.hash == ""
    run_binary(sweep, f"--config={CONFIG}", f"--output={tmp_path}", "--data_dir=D", "--set=seed=0,1")
