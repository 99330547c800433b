"""The order of the floors, which `make lint` holds, is one that can fail."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FOLDERS = ("fingerprint_jax", "configs", "launch", "benchmarks")


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("", "", "3 kept, 0 broken"),
        (
            "fingerprint_jax/stats/metrics.py",
            "from fingerprint_jax.runs import run",
            "fingerprint_jax.stats is not allowed to import",
        ),
        ("fingerprint_jax/report/words.py", "import fingerprint_jax.evaluate", "fingerprint_jax.report is not allowed to import"),
        ("launch/sweep.py", "from fingerprint_jax import pack", "launch is not allowed to import fingerprint_jax.pack"),
        ("fingerprint_jax/data/images.py", "from configs import base", "fingerprint_jax is not allowed to import configs"),
    ],
)
def test_an_import_upward_breaks_it(file, line, said, tmp_path):
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if file:
        with (tmp_path / file).open("a") as text:
            text.write(f"{line}\n")
    command = [str(pathlib.Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (not file), done.stdout + done.stderr
    assert said in " ".join(done.stdout.split())
