"""Every config runs, shrunk, through both binaries, its network learns, and names have no say.

All tests of a config come one after the other, on the programs that its training has compiled.
"""

import csv
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fingerprint_jax import methods
from fingerprint_jax.data import packing, tables
from fingerprint_jax.evaluation import score
from fingerprint_jax.methods import ensemble
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.config import identity, network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding
from fingerprint_jax.training import inputs, optim, pair_table
from fingerprint_jax.training.model import model_of
from tests import golden
from tests.conftest import CONFIGS, fit, load_config

WITHOUT_NETWORKS = [path for path in CONFIGS if network_config(load_config(path)).method == "classical"]


@pytest.fixture(scope="module", params=CONFIGS)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(path, data_dir, tmp_path_factory) -> Run:
    return fit(path, data_dir, tmp_path_factory.mktemp("fitted") / "run")


def test_config_fits_evaluates_and_submits(path, fitted, tmp_path, phantoms, request):
    golden.check_step(path, golden.first_step(fitted), request.config.getoption("--golden"))
    config = fitted.config
    if path.startswith("configs/generators/"):  # it makes images (test_generate.py) and answers no question
        with pytest.raises(ValueError, match="answers membership, not task='images'"):
            score.evaluate(fitted, "train")
        return
    held = score.evaluate(fitted, "heldout")
    assert held["metrics"]["n"] == held["n"] > 0
    unknown = fitted.task.test
    submission = tmp_path / "run.csv"
    result = score.evaluate(fitted, unknown, {"path": submission, "header": True, "extension": ".png", "style": "int"})
    assert "metrics" not in result
    scored = score.score_files(config.task, submission, phantoms[config.task] / "truth.csv", tmp_path / "score")
    assert scored["metrics"]["n"] == result["n"]
    document = json.loads((fitted.workdir / "results.json").read_text())
    assert set(document["splits"]) == {"heldout", unknown}
    ids, _ = tables.read_labels(submission, len(fitted.task.classes), config.task)
    assert len(tables.align(fitted.rows(unknown).ids, ids)) == result["n"]


def test_config_can_be_described_and_nothing_is_written(path, data_dir, tmp_path):
    config = load_config(path)
    if config.get("features", {}).get("run") or config.get("ensemble", {}).get("runs"):
        pytest.skip("it stands on finished runs")
    config.data_dir = data_dir
    rows = dict(methods.describe(Run(config, tmp_path / "run")))
    if network_config(config).method == "gradient":
        for name in ("parameters", "FLOPs a step", "memory a device"):
            assert float(re.match(r"[\d,.e+]+", rows[name])[0].replace(",", "")) > 0, name
    elif network_config(config).method == "classical":
        first = next(iter(ensemble.variants(config).values())) if config.method == "ensemble" else config
        assert rows["features"] == network_config(first).features.name
    assert rows and not (tmp_path / "run").exists()


def _trained() -> list[str]:
    """The configs that train a network, the first of those that train the same."""
    found = {}
    for path in CONFIGS:
        config = network_config(load_config(path))
        if config.method == "gradient" and config.num_steps:
            found.setdefault(json.dumps(identity(config), sort_keys=True), path)
    return list(found.values())


TRAINED = _trained()
OF_OBJECTIVES = {network_config(load_config(path)).objective.name: path for path in TRAINED}.values()


def _begin(path, data_dir, workdir, dtype="float32"):
    """The run of a config's network, its beginning, and step(state) -> state, metrics: the program of its training on one batch."""
    config = network_config(load_config(path))
    config.backbone.dtype, config.data_dir = dtype, data_dir
    run = Run(config, workdir)
    if stage := pair_table.stage(run):
        methods.get("pairs").fit(stage)
    model = model_of(run)
    _, cache, batches = inputs.of_run(run, 0)
    batch, key = next(batches), sharding.key(1, model.mesh)
    rate = sharding.put(np.float32(3e-3), sharding.replicated(model.mesh))

    def beginning():
        return model.init(sharding.key(0, model.mesh))  # a step takes the arrays of a state for itself

    return run, beginning, lambda state: model.step(state, batch, cache, rate, key)


@pytest.fixture(scope="module")
def begun(path, data_dir, tmp_path_factory):
    if path not in TRAINED:
        pytest.skip("trains no network, or that of another config")
    return _begin(path, data_dir, tmp_path_factory.mktemp("begun"))


def test_the_loss_of_its_network_falls(begun):
    run, beginning, step = begun
    if "queue" in run.config.objective:
        pytest.skip("its loss rises while the queue fills: test_moco.py has how it falls then")
    if run.config.objective.name == "gan":
        pytest.skip("of two players one's gain is the other's loss: test_gan.py has each alone")
    # Always the step of the highest learning rate, else it would have decayed after four.
    rates = [float(optim.schedule(run.config.optimizer, run.config.num_steps)(k)) for k in range(run.config.num_steps)]
    state, number, losses = beginning(), np.int32(np.argmax(rates)), []
    for _ in range(40):
        state, metrics = step(state | {"step": sharding.put(number, state["step"].sharding)})
        losses.append(float(metrics["loss"]))
        if len(losses) > 9 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2]):
            return
    pytest.fail(f"it does not fall: {losses}")


def test_its_objective_learns_in_bfloat16_and_keeps_float32(path, begun, data_dir, tmp_path):
    if path not in OF_OBJECTIVES:
        pytest.skip("the objective of another config")
    (_, beginning, step), (_, _, other) = begun, _begin(path, data_dir, tmp_path, "bfloat16")
    state, _ = step(beginning())  # before it a head of zeros hides all
    after, metrics = jax.eval_shape(other, state)
    assert jnp.bfloat16 not in {x.dtype for x in jax.tree.leaves((after, metrics))}
    loss = float(jax.jit(lambda state: other(state)[1]["loss"])(state))  # without the gradients, most of what is compiled
    _, metrics = step(state)
    assert loss == pytest.approx(float(metrics["loss"]), rel=0.05, abs=0.02)
    assert loss != float(metrics["loss"])


def test_its_checkpoint_holds_all_that_the_next_step_depends_on(begun, tmp_path):
    run, beginning, step = begun
    state, _ = step(beginning())
    saved, model = checkpoint.Checkpoints(tmp_path), model_of(run)
    saved.save(1, state, {})
    saved.close()
    number, restored = saved.restore("latest", sharding.abstract(model.abstract, sharding.replicated(model.mesh)))
    assert number == 1
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    (after, metrics), (expected, others) = step(restored), step(state)
    jax.tree.map(np.testing.assert_array_equal, (after, metrics), (expected, others))


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


def test_names_of_files_and_patients_change_no_score(path, fitted, renamed, tmp_path):
    if path not in (*WITHOUT_NETWORKS, "configs/quickstart.py", "configs/subtask1/likelihood_ratio.py"):
        pytest.skip("the same of networks by three configs")
    other_dir, names = renamed
    before, after = fitted, fit(path, other_dir, tmp_path / "after")
    for split in ("heldout", "test_real" if before.config.task == "subtask1" else "test_generated"):
        places = [name.rpartition("/") for name in before.rows(split).ids.tolist()]
        assert [folder + slash + names[name] for folder, slash, name in places] == after.rows(split).ids.tolist()
        np.testing.assert_array_equal(methods.predict(after, split).scores, methods.predict(before, split).scores)
