"""A recipe before its release: who is on which side, what is said, and that nothing is made twice."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from fingerprint_jax.audit import __main__ as main
from fingerprint_jax.audit import recipe, verdict
from fingerprint_jax.data.source import Rows, open_source
from fingerprint_jax.leaks import generators
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runtime import files
from tests.launch.test_benchmark import write


def _values(root, **given):
    values = flags.FlagValues()
    main.define_flags(values)
    options = {"recipe": root / "config.py", "real": root / "real", "groups": root / "groups.csv", "output": root / "out"}
    options |= {"steps": "2,4", "count": 20} | given
    values(["audit", *(f"--{name}={value}" for name, value in options.items() if value != "")])
    return values


def _run(root, **given):
    return main.of_recipe(_values(root, **given))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """90 images of 85 patients, and what is said of a generator that was trained for four steps."""
    root = tmp_path_factory.mktemp("recipe")
    write(root, 90, twice=5)
    return root, _run(root)


def test_half_of_the_patients_are_used_and_each_is_on_one_side(made):
    root, document = made
    pool, used = open_source(str(root / "out" / "pool"), "images"), open_source(str(root / "out" / "used"), "images")
    drawn = recipe.draw(pool.rows("train"), 0)
    groups = {name: set(rows.groups.tolist()) for name, rows in drawn.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 85
    assert [len(groups[name]) / 85 for name in ("used", "not_used", "reference")] == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert sorted(used.digests(used.rows("train").index)) == sorted(pool.digests(drawn["used"].index))
    assert document["counts"] == {name: {"images": len(rows), "patients": len(groups[name])} for name, rows in drawn.items()}
    with pytest.raises(ValueError, match="70 patients in --real are too few: .* an audit needs 20 of each, 80 in all"):
        recipe.draw(Rows(*(np.arange(70).astype(str), np.zeros(70, int), np.arange(70).astype(str), np.arange(70))), 0)


def test_each_checkpoint_is_audited_whole_and_stays(made):
    root, document = made
    assert checkpoint.steps(root / "out" / "run") == [2, 4] == [line["step"] for line in document["checkpoints"]]
    for line in document["checkpoints"]:
        folder = root / "out" / f"step-{line['step']}"
        found = json.loads((folder / "audit" / "audit.json").read_text())
        assert (line["verdict"], line["p"]) == (found["verdict"]["name"], found["panel"]["p"])
        assert line["auc"] == {each["name"]: each["auc"] for each in found["panel"]["methods"]}
        counts = {name: document["counts"][name]["images"] for name in ("used", "not_used", "reference")}
        assert {name: found["counts"][name] for name in counts} == counts and found["counts"]["generated"] == 20
        assert line["page"] == str(folder / "audit" / "index.html")
        assert 0 <= line["oracle"]["value"] <= 1 and (folder / "grid.png").exists()
    images = [np.asarray(Image.open(root / "out" / f"step-{step}" / "generated" / "000000.png")) for step in (2, 4)]
    assert (images[0] != images[1]).any()
    assert document["sentence"] in (root / "out" / "recipe.md").read_text()


def test_a_second_start_makes_nothing_and_another_recipe_is_refused(made, monkeypatch):
    root, document = made
    before = {
        path: path.stat().st_mtime_ns
        for path in (root / "out").rglob("*")
        if path.is_file() and path.suffix in (".json", ".png", ".npz")
    }
    monkeypatch.setattr(generators, "train", None)
    assert _run(root) == document
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.name for path in before if before[path] != after[path]] == ["recipe.json"]
    for given, said in (
        ({"seed": 1}, "is of another --seed"),
        ({"count": 30}, "is of another --count"),
        ({"steps": "4"}, "is of another --steps"),
        ({"repeats": 20}, "is of another --repeats"),
        ({"groups": ""}, "of other patients"),
    ):
        with pytest.raises(ValueError, match=said):
            _run(root, **given)
    pages = [Path(line["page"]) for line in document["checkpoints"]]
    times = [page.stat().st_mtime_ns for page in pages]
    redacted = _run(root, redact="true")
    assert all(line["redacted"] for line in redacted["checkpoints"])
    assert all(page.stat().st_mtime_ns > time for page, time in zip(pages, times, strict=True))
    assert _run(root)["checkpoints"] == document["checkpoints"]


def test_without_patients_each_image_is_one(made):
    root, _ = made
    document = _run(root, groups="", output=root / "alone", steps="4")
    assert [line["step"] for line in document["checkpoints"]] == [4]
    assert document["counts"]["used"] == {"images": 45, "patients": 45}


def test_a_kill_in_an_audit_costs_that_audit_alone(made, monkeypatch):
    root, document = made
    path = root / "out" / "recipe.json"
    known = files.read_json(path, {}, "")
    path.write_text(json.dumps({"schema": 1, "plan": known["plan"], "checkpoints": known["checkpoints"][:1]}))
    (root / "out" / "step-4" / "audit" / "audit.json").unlink()
    monkeypatch.setattr(generators.sampling.Sampler, "__call__", None)  # the images are there
    assert _run(root) == document


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"real": ""}, r"missing: --real \("),
        ({"used": "x"}, "--used does not go with --recipe"),
        ({"plan_only": True}, "--plan_only does not go with --recipe"),
        ({"recipe": ""}, r"missing: --generated \(.*; --not_used \(.*; --used \("),
        ({"recipe": "", "generated": "a", "used": "b", "not_used": "c"}, "--count goes with --recipe"),
        ({"repeats": 3}, "--repeats=3: use at least 20"),
        ({"steps": "5"}, "--steps=5: use whole numbers from 1 to the recipe's num_steps=4"),
        ({"steps": "a"}, "--steps=a: use whole numbers"),
        ({"recipe": "configs/quickstart.py"}, "--recipe: no generator of the task images"),
        ({"recipe": "configs/subtask1/gan_leaks.py"}, "--recipe: no generator of the task images"),
        ({"real": "nowhere"}, "--real=nowhere: there is no such folder"),
        ({"image_size": 4}, "an audit needs images of at least 6 pixels a side"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_trained(made, tmp_path, given, said, monkeypatch):
    monkeypatch.setattr(generators, "train", None)
    with pytest.raises(ValueError, match=said):
        _run(made[0], **{"output": tmp_path / "out", **given})


def test_without_steps_they_are_parts_of_the_training(made):
    config = _values(made[0]).recipe
    assert recipe.steps_of(config, []) == (1, 2, 4)
    config.num_steps = 1000
    assert recipe.steps_of(config, []) == (125, 250, 500, 1000)


def _line(step, value, low, name, p=0.5):
    return {"step": step, "oracle": {"value": value, "interval": [low, 0.9]}, "verdict": name, "p": p, "auc": {"mosaic": 0.5}}


NONE, SURE, UNSURE, COPIES, CONTENT = verdict.NONE, verdict.EVIDENCE, verdict.CANNOT_TELL, verdict.COPIES, verdict.CONTENT


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [(10, 0.5, 0.4, NONE)],
            "at none of the checkpoints. The audit notices a leak at none of .* not notice is step 10: AUC 0.500",
        ),
        (
            [(10, 0.5, 0.4, NONE), (20, 0.7, 0.6, CONTENT), (30, 0.8, 0.7, SURE)],
            r"at step 20 and later. The audit notices a leak at step 30. It leaves open what it sees at step 20: a difference that"
            r" content explains. The last .* not notice is step 10: AUC 0.500 \(0.400 to 0.900\)",
        ),
        ([(10, 0.9, 0.8, COPIES)], "loss, at all checkpoints. The audit notices a leak at all checkpoints. What"),
        (
            [(10, 0.6, 0.55, NONE), (1000, 0.6, 0.4, SURE), (2000, 0.6, 0.55, NONE), (4000, 0.6, 0.55, UNSURE)],
            "at steps 10, 2000, 4000. .* at step 1000. It leaves open .* at step 4000: cannot tell. .* not notice is step 2000",
        ),
        ([(10, 0.9, 0.8, UNSURE), (20, 0.9, 0.8, UNSURE)], "at none of the .* what it sees at steps 10, 20: cannot tell. What"),
    ],
)
def test_the_sentence_says_where_it_leaks_and_where_that_is_noticed(lines, said):
    lines = [_line(*line) for line in lines]
    found = recipe.sentence(lines, {"images": 8, "patients": 4})
    assert found.startswith("Trained on 8 images of 4 patients, ") and found.endswith("says how much.")
    assert re.search(said, found)
    rows = recipe.table(lines).splitlines()
    assert len(rows) == 2 + len(lines) and rows[0] == "| step | oracle | mosaic | family-wise p | verdict |"
