"""Names of a user's own package: found where the command line says so, else one line."""

import os

import pytest
from ml_collections import ConfigDict

from fingerprint_jax import features, methods
from fingerprint_jax.runs import unchanged
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import plugins
from tests.conftest import load_config, tiny_config


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "some_pkg").mkdir()
    (tmp_path / "some_pkg" / "scores.py").write_text("def near():\n    return 3\n")
    (tmp_path / "some_pkg" / "broken.py").write_text("import nothing_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_trusted", {})
    return tmp_path / "some_pkg"


def test_what_is_trusted_is_found():
    plugins.trust(["some_pkg"])
    assert plugins.find("estimator.name", "some_pkg.scores:near")() == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("some_pkg.broken:near", "ModuleNotFoundError: No module named 'nothing_there'.; install the package some_pkg, or put"),
        ("some_pkg.scors:near", "some_pkg.scors cannot be imported .* install the package some_pkg"),
        ("some_pkg.scores:neer", "some_pkg.scores has no 'neer': did you mean 'near'"),
        ("os:system", "estimator.name='os:system' is code of the package os: allow its import by --plugins=os"),
    ],
)
def test_what_cannot_be_is_one_line(name, text):
    plugins.trust(["some_pkg"])
    with pytest.raises(ValueError, match=text):
        plugins.find("estimator.name", name)


def test_the_packages_of_a_config_are_those_of_its_names():
    config = ConfigDict(
        {
            "estimator": {"name": "a.b:c"},
            "backbone": {"name": "resnet18+b.nets:Small", "weights": "pip:efficientnet_lite0"},
            "best": "max:accuracy",
            "member": {"features": {"name": "lbp", "beside": "c:d"}},
        }
    )
    assert plugins.packages(config) == {"a", "b", "c"}


def test_every_file_of_a_package_is_its_code(package, monkeypatch):
    def digest():
        monkeypatch.setattr(plugins, "_trusted", {})
        plugins.trust(["some_pkg"])
        return plugins._trusted["some_pkg"]

    found = [digest()]
    for name in ("weights.json", "lib.so", "data/table.csv"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("1")
        found.append(digest())
        (package / name).write_text("2")
        found.append(digest())
    assert len(set(found)) == len(found)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "scores.cpython-311.pyc").write_text("x")
    (package / ".DS_Store").write_text("x")
    os.mkfifo(package / "pipe")
    assert digest() != found[-1]  # a name more; it is not read
    (package / "pipe").unlink()
    assert digest() == found[-1]


def test_a_run_that_goes_on_with_other_code_says_so(package, data_dir, monkeypatch, caplog):
    config = tiny_config(data_dir, num_steps=0)
    config.objective.name = "some_pkg.loss:Objective"

    def fit(factor):
        text = f"from fingerprint_jax.objectives import softmax\nclass Objective(softmax.Objective):\n    factor = {factor}\n"
        (package / "loss.py").write_text(text)
        monkeypatch.setattr(plugins, "_trusted", {})
        plugins.trust(["some_pkg"])
        run = Run(config, package.parent / "run")
        methods.fit(run)
        return run

    run = fit(1)
    assert not unchanged.other_code(run) and run.provenance["starts"][-1]["code"].keys() == {"some_pkg"}
    (run.workdir / "done").unlink()
    caplog.clear()
    run = fit(2)
    assert "goes on with other code: some_pkg" in caplog.text and not unchanged.other_code(run)
    (package / "more.txt").write_text("x")
    monkeypatch.setattr(plugins, "_trusted", {})
    plugins.trust(["some_pkg"])
    assert unchanged.other_code(run) == ["some_pkg"]
    methods.state(run)
    assert f"{run.workdir} was trained by other code of some_pkg than that which is there now" in caplog.text


def test_what_is_kept_of_a_run_goes_by_the_code_that_its_config_names(package, monkeypatch):
    config = load_config("configs/subtask1/domias.py").member
    config.estimator.name = "some_pkg.scores:near"
    known, codes = [], []
    for text in ("def near(images):\n    return 3\n", "def near(images):\n    return 4\n"):
        (package / "scores.py").write_text(text)
        monkeypatch.setattr(plugins, "_trusted", {})
        plugins.trust(["some_pkg"])
        known.append((methods.state(Run(config, package / "run")), features._plan(config.estimator.name)[1]))
        codes.append(plugins.code(config))
    (state, feature), (other_state, other_feature) = known
    assert plugins.same(config, codes[1]) and not plugins.same(config, codes[0])
    assert plugins.same(config, {}) and not plugins.same(config, None)  # figures of before it was written down
    assert state["code"].keys() == {"some_pkg"} and state != other_state and feature != other_feature
    config.estimator.name = "domias"
    assert methods.state(Run(config, package / "run")) == {}
