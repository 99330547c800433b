"""The wheel does in an empty folder what the checkout does."""

import configparser
import importlib
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The content of the wheel."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in ("fingerprint_jax", "configs", "launch", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={root}",
        str(source),
    ]
    subprocess.run(build, check=True, cwd=root)
    with zipfile.ZipFile(next(root.glob("*.whl"))) as wheel:
        wheel.extractall(root / "site")
    return root / "site"


def test_it_has_every_file_that_the_package_reads(site):
    for folder in ("fingerprint_jax", "configs", "launch"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert (site / path.relative_to(ROOT)).is_file(), path
    assert not (site / "benchmarks").exists() and not (site / "tests").exists()


def test_every_command_is_there(site):
    entries = configparser.ConfigParser()
    entries.read(next(site.glob("*.dist-info")) / "entry_points.txt")
    for name, place in entries["console_scripts"].items():
        module, _, function = place.partition(":")
        assert name.startswith("fingerprint-") and callable(getattr(importlib.import_module(module), function))


def test_a_run_in_an_empty_folder(site, data_dir, tmp_path):
    env = os.environ | {"PYTHONPATH": str(site)}
    entry = "import sys, fingerprint_jax; assert fingerprint_jax.__file__.startswith(sys.argv.pop(1));"
    named = "quickstart"
    for module, arguments in (
        ("fingerprint_jax.main", [f"--config={named}:smoke", f"--config.data_dir={data_dir}", "--workdir=run"]),
        ("fingerprint_jax.evaluate", ["--workdir=run", "--split=heldout", "--report"]),
        ("launch.sweep", [f"--config={named}:smoke", "--set=seed=1,2", "--output=sweep"]),
    ):
        code = f"{entry} from {module} import command; command()"
        done = subprocess.run(
            [sys.executable, "-c", code, str(site), *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{module}: {done.stderr}"
    assert (tmp_path / "run" / "report" / "index.html").exists() and (tmp_path / "sweep" / "sweep.json").exists()
