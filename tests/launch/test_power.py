"""Power on phantoms: the scores are those of a run, a leak is found, nothing is drawn twice."""

import json

import numpy as np
import pytest
from absl import flags
from scipy.stats import beta, rankdata

from fingerprint_jax import methods
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files, plugins
from launch import power, sweep, systems
from tests.conftest import ROOT

FILE = str(ROOT / "launch" / "tables" / "subtask1.py")
SETTINGS = {"size": 32, "real": 10, "generated": 30, "unknown": 2, "reference": 20}


def _main(output, **values):
    given = flags.FlagValues()
    power.define_flags(given)
    options = {"file": FILE, "output": output, "image_size": 32} | SETTINGS | values
    options.pop("size")
    given(["power", *(f"--{name}={value}" for name, value in options.items())])
    power.main(given)
    return [json.loads(line) for line in (output / "draws.jsonl").read_text().splitlines()]


DRAWN = ("local_match", "both_directions")  # parts of them are drawn by place, and the larger set is in another order


@pytest.mark.parametrize("name", [*DRAWN, "gan_leaks_pixels", "zoq_cnn_ssim", "beside"])
def test_the_scores_are_those_of_a_run_on_the_same_phantom(name, tmp_path):
    drawn = power.Phantom(0, leak=1.0, **SETTINGS)
    phantom.write(tmp_path / "images", "subtask1", drawn.splits, 0)
    folders = [tmp_path / "images" / part for part in ("train", "test", "reference")]
    packing.pack("subtask1", tmp_path / "data", *folders, groups=tmp_path / "images" / "groups.csv")
    row = next(row for row in sweep.load_file(FILE, "rows") if row.name == name.replace("beside", "gan_leaks_pixels"))
    config = systems.resolve(row)
    if name == "beside":
        config.member.features.beside = "radial_spectrum"
    config.data_dir = str(tmp_path / "data")
    config.data.folds = 2
    run = Run(config, tmp_path / "run")
    methods.get(config.method).fit(run)
    scores = drawn.scores(power.attack(name, config))
    # Files have other names than the arrays have places: by label, in ascending order.
    rows, found = run.rows("heldout"), methods.predict(run, "heldout").scores[:, 0]
    for label in (0, 1):
        if name in DRAWN:
            assert np.mean(scores[drawn.labels == label]) == pytest.approx(np.mean(found[rows.labels == label]), abs=0.1)
        else:
            np.testing.assert_allclose(np.sort(scores[drawn.labels == label]), np.sort(found[rows.labels == label]), rtol=1e-4)


def test_a_leak_of_one_is_found_and_the_same_command_goes_on(tmp_path, monkeypatch):
    lines = _main(tmp_path, rows="gan_leaks_pixels", leaks="0,1", draws=2)
    assert [(line["leak"], line["draw"]) for line in lines] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert all(line["auc"] > 0.9 and line["p"] <= 0.002 for line in lines if line["leak"] == 1)
    whole = (tmp_path / "draws.jsonl").read_text()
    (tmp_path / "draws.jsonl").write_text(whole[:-20])  # killed in the middle of a line
    made = []
    monkeypatch.setattr(power, "Phantom", lambda seed, **options: made.append(seed) or Phantom(seed, **options))
    assert _main(tmp_path, rows="gan_leaks_pixels", leaks="0,1", draws=2) == lines
    assert made == [1]
    text = (tmp_path / "power.md").read_text()
    # Two of two, and Clopper-Pearson's lower end (alpha / 2) ** (1 / 2).
    assert f"2 of 2 ({beta.ppf(0.025, 2, 1):.4f} to 1.0000)" in text and "AUC, leak 0" in text
    (tmp_path / "draws.jsonl").write_text(whole * 2)  # two files in one
    _main(tmp_path, rows="gan_leaks_pixels", leaks="0,1", draws=2)
    assert (tmp_path / "power.md").read_text() == text and made == [1]
    with (
        files.locked(tmp_path / "lock"),
        pytest.raises(ValueError, match=r"--output=.*: process \d+ on .* draws there; wait for it"),
    ):
        _main(tmp_path, rows="gan_leaks_pixels", leaks="0,1", draws=3)
    assert (tmp_path / "draws.jsonl").read_text() == whole * 2
    monkeypatch.setattr(plugins, "code", lambda config: {"theirs": "edited"})  # of an attack of somebody's own
    lines = _main(tmp_path, rows="gan_leaks_pixels", leaks="0", draws=1)
    assert made == [1, 0] and lines[-1]["config"] == f"{lines[0]['config']}-edited"
    assert "of 1 (" in (tmp_path / "power.md").read_text()


Phantom = power.Phantom


def test_a_table_of_somebody_else_is_left_as_it_is(tmp_path):
    (tmp_path / "power.md").write_text("mine")
    with pytest.raises(ValueError, match="power.md is no table of ours, draws.jsonl is missing: give another --output"):
        _main(tmp_path, rows="gan_leaks_pixels", leaks="0", draws=1)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": "nothing"}, "--rows=nothing: use of local_match,"),
        ({"rows": "gan_leaks_deep"}, "row gan_leaks_deep has features of a network"),
        ({"rows": "local_match", "leaks": "2"}, "--leaks=2: use numbers from 0 to 1"),
    ],
)
def test_what_has_no_power_here_is_one_line(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _main(tmp_path, **fields)


def test_of_several_scores_each_has_its_part():
    drawn, row = power.Phantom(0, leak=1.0, **SETTINGS), systems.Row("both", "configs/subtask1/both_directions.py")
    config = power.attack("both", systems.resolve(row))
    parts = [drawn.scores(config.ensemble.variants[name]) for name in ("local_match", "mosaic")]
    np.testing.assert_allclose(drawn.scores(config), np.mean([rankdata(part) / len(part) for part in parts], axis=0))
    for field, value in (("runs", ("a",)), ("seeds", 2), ("admit", 0.5), ("best_variant", True)):
        config = systems.resolve(row)
        config.ensemble[field] = value
        with pytest.raises(ValueError, match="row both combines finished runs, several seeds or chosen members"):
            power.attack("both", config)
    config = systems.resolve(row)
    config.member.gallery.rivals = ("train_real",)
    with pytest.raises(ValueError, match="row both reads labels"):
        power.attack("both", config)


def test_a_row_that_reads_labels_is_refused():
    row = next(row for row in sweep.load_file(FILE, "rows") if row.name == "gan_leaks_pixels")
    config = systems.resolve(row)
    config.member.gallery.reference = ("train_real:0",)
    with pytest.raises(ValueError, match=r"row x reads labels \(train_real:0\)"):
        power.attack("x", config)


def test_the_grid_of_local_match_resolves():
    for row in sweep.load_file(str(ROOT / "launch" / "tables" / "local_match.py"), "rows"):
        power.attack(row.name, systems.resolve(row))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"leak": 0.0}\n', "is no draw: remove the line"),
        ('3\n{"leak"', "draws.jsonl, line 1: not one that is written here"),
        ("my only line", "draws.jsonl, line 1: not one that is written here"),
        ("my first\nand my last", "draws.jsonl, line 1: no JSON"),
    ],
)
def test_a_journal_of_something_else_is_one_line_and_left_as_it_is(text, said, tmp_path):
    (tmp_path / "draws.jsonl").write_text(text)
    with pytest.raises(ValueError, match=said):
        power.known_draws(tmp_path / "draws.jsonl")
    assert (tmp_path / "draws.jsonl").read_text() == text
