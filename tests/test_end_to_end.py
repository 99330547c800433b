"""Every config runs, shrunk, through both binaries, and names have no say."""

import csv
import json
import shutil

import numpy as np
import pytest

from fingerprint_jax import methods
from fingerprint_jax.data import packing, tables
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs.config import network_config
from tests import golden
from tests.conftest import CONFIGS, fit, load_config

WITHOUT_NETWORKS = [path for path in CONFIGS if network_config(load_config(path)).method == "classical"]


@pytest.mark.parametrize("path", CONFIGS)
def test_config_fits_evaluates_and_submits(path, data_dir, tmp_path, phantoms, request):
    run = fit(path, data_dir, tmp_path / "run")
    golden.check_step(path, golden.first_step(run), request.config.getoption("--golden"))
    config = run.config
    held = score.evaluate(run, "heldout")
    assert held["metrics"]["n"] == held["n"] > 0
    unknown = run.task.test
    submission = tmp_path / "run.csv"
    result = score.evaluate(run, unknown, {"path": submission, "header": True, "extension": ".png", "style": "int"})
    assert "metrics" not in result
    scored = score.score_files(config.task, submission, phantoms[config.task] / "truth.csv", tmp_path / "score")
    assert scored["metrics"]["n"] == result["n"]
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(document["splits"]) == {"heldout", unknown}
    ids, _ = tables.read_labels(submission, len(run.task.classes), config.task)
    assert len(tables.align(run.rows(unknown).ids, ids)) == result["n"]


@pytest.fixture(scope="module")
def renamed(phantoms, tmp_path_factory):
    """The phantoms with other names of images and patients, which are then in another order: their folder, and {name: new name}."""
    root, rng = tmp_path_factory.mktemp("renamed"), np.random.default_rng(0)
    for task, folder in phantoms.items():
        for image in folder.rglob("*.png"):
            place = root / task / image.relative_to(folder).parent
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, place)
    names = sorted({image.stem for image in root.rglob("*.png")})
    names = dict(zip(names, map("x{:05d}".format, rng.permutation(len(names))), strict=True))
    for image in list(root.rglob("*.png")):
        image.rename(image.with_name(names[image.stem] + ".png"))
    for task, folder in phantoms.items():
        with (folder / "groups.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        patients = sorted({row["group"] for row in rows})
        patients = dict(zip(patients, rng.permutation(len(patients)), strict=True))
        with (root / task / "groups.csv").open("w", newline="") as file:
            csv.writer(file).writerow(["split", "id", "group"])
            for row in rows:
                place, slash, name = row["id"].rpartition("/")
                csv.writer(file).writerow([row["split"], place + slash + names[name], f"p{patients[row['group']]}"])
        reference = str(root / task / "reference") if task == "subtask1" else ""
        packing.pack(task, root, root / task / "train", root / task / "test", reference, groups=root / task / "groups.csv")
    return str(root), names


@pytest.mark.parametrize("path", [*WITHOUT_NETWORKS, "configs/quickstart.py", "configs/subtask1/likelihood_ratio.py"])
def test_names_of_files_and_patients_change_no_score(path, data_dir, renamed, tmp_path):
    other_dir, names = renamed
    before, after = fit(path, data_dir, tmp_path / "before"), fit(path, other_dir, tmp_path / "after")
    for split in ("heldout", "test_real" if before.config.task == "subtask1" else "test_generated"):
        places = [name.rpartition("/") for name in before.rows(split).ids.tolist()]
        assert [folder + slash + names[name] for folder, slash, name in places] == after.rows(split).ids.tolist()
        np.testing.assert_array_equal(methods.predict(after, split).scores, methods.predict(before, split).scores)
