"""The code of docs/extending.md, as it stands there, trains, evaluates and appears in a table."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest

from fingerprint_jax import methods
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs.run import Run
from tests import processes
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text()
COMMANDS = re.findall(r"^    python (-m .+)$", TEXT, re.M)


def _files() -> dict[str, str]:
    """{path: text} of the blocks of Python, whose first line is the path."""
    blocks = re.findall(r"^```python\n# (\S+)\n(.+?)^```$", TEXT, re.M | re.S)
    assert len(blocks) == TEXT.count("```python")
    return dict(blocks)


@pytest.fixture(scope="module")
def home(data_dir, tmp_path_factory):
    """A folder with the package, and the phantoms as `data`."""
    home = tmp_path_factory.mktemp("extending")
    (home / "mypkg").mkdir()
    for name, text in _files().items():
        if name.startswith("mypkg/"):
            (home / name).write_text(text)
    (home / "data").symlink_to(data_dir)
    return home


def _run(home, command: str) -> tuple[int | None, str, str]:
    """Exit status, standard output and standard error."""
    _, module, *arguments = command.split()
    process = processes.Process(module, *arguments, cwd=home)
    return process.wait(), *process.communicate()


def test_every_command_runs(home):
    for command in COMMANDS:
        status, output, errors = _run(home, command)
        assert status == 0, errors
    for name, task in (("ours", "subtask1"), ("network", "subtask2")):
        results = json.loads((home / "runs" / name / "results.json").read_text())
        assert results["task"] == task and results["splits"]["heldout"]["metrics"]["n"] > 0
    assert results["splits"]["heldout"]["code"].keys() == {"mypkg"}  # by which it is told from figures of other code
    config = results["config"]
    assert config["objective"]["name"] == "mypkg.objectives:Smoothed" and config["backbone"]["name"] == "mypkg.nets:Small"
    assert re.search(r"\| ours +\|", output)
    without = COMMANDS[1].removesuffix(" --plugins=mypkg")
    assert without != COMMANDS[1]
    status, _, errors = _run(home, without)
    assert status == 1 and errors.splitlines()[-1].endswith("allow its import by --plugins=mypkg")
    shutil.rmtree(home / "runs")


def test_what_belongs_into_the_repository_passes_its_lint(tmp_path):
    written = {name: text for name, text in _files().items() if not name.startswith("mypkg/")}
    assert written
    for name, text in written.items():
        given = ["--config", ROOT / "pyproject.toml", "--stdin-filename", ROOT / name, "-"]
        for act in (["check"], ["format", "--check"]):
            command = [sys.executable, "-m", "ruff", *act, *given]
            done = subprocess.run(command, input=text, capture_output=True, text=True)
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def test_the_method_describes_itself_fits_and_evaluates(data_dir, tmp_path, monkeypatch):
    written = {name: tmp_path / name for name in _files() if not name.startswith("mypkg/")}
    for name, path in written.items():
        path.parent.mkdir(parents=True)
        path.write_text(_files()[name])
    method, experiment = written.values()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(method.parent)])
    spec = importlib.util.spec_from_file_location("config", experiment)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke")
    config.data_dir = data_dir
    run = Run(config, tmp_path / "run")
    try:
        assert dict(methods.describe(run))["gallery generated"] == "60 images"
        methods.fit(run)
        loaded = methods.load(tmp_path / "run")
        metrics = score.evaluate(loaded, "heldout")["metrics"]
        assert metrics["scores"]["auc"] > 0.8 and metrics["permutation"]["p"] < 0.01  # near copies, no label read
        assert "metrics" not in score.evaluate(loaded, "test_real")
        config.member.gallery.generated = ()
        with pytest.raises(ValueError, match="gallery is empty"):
            methods.check(run)
    finally:
        sys.modules.pop("fingerprint_jax.methods.nearest", None)
        vars(methods).pop("nearest", None)
