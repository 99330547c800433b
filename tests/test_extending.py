"""The package of docs/extending.md, as it stands there, trains, evaluates and appears in a table."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text()
COMMANDS = re.findall(r"^    python (-m .+)$", TEXT, re.M)


@pytest.fixture(scope="module")
def home(data_dir, tmp_path_factory):
    """A folder with the package, the configs of the repository, and the phantoms as `data`."""
    home = tmp_path_factory.mktemp("extending")
    for block in re.findall(r"^```python\n(.+?)^```$", TEXT, re.M | re.S):
        path = home / block.split("\n", 1)[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    (home / "data").symlink_to(data_dir)
    (home / "configs").symlink_to(ROOT / "configs")
    return home


def _run(home, command: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(home), str(ROOT)])}
    return subprocess.run([sys.executable, *command.split()], cwd=home, env=env, capture_output=True, text=True)


def test_every_command_runs(home):
    for command in COMMANDS:
        done = _run(home, command)
        assert done.returncode == 0, done.stderr
    for name, task in (("ours", "subtask1"), ("network", "subtask2")):
        results = json.loads((home / "runs" / name / "results.json").read_text())
        assert results["task"] == task and results["splits"]["heldout"]["metrics"]["n"] > 0
    config = results["config"]
    assert config["objective"]["name"] == "mypkg.objectives:Smoothed" and config["backbone"]["name"] == "mypkg.nets:Small"
    assert re.search(r"\| ours +\|", done.stdout)
    without = COMMANDS[1].removesuffix(" --plugins=mypkg")
    assert without != COMMANDS[1]
    done = _run(home, without)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("allow its import by --plugins=mypkg")
    shutil.rmtree(home / "runs")
