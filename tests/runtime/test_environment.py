"""Wrong sums are met before a figure is made, and what a seed draws does not hang on the environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fingerprint_jax
from fingerprint_jax.report import words
from fingerprint_jax.runtime import environment
from tests.conftest import ROOT
from tests.faults import trainer

MENDED = f"{environment.FLAG}={environment.VALUE}"


@pytest.mark.parametrize(
    ("jaxlib", "flags", "expected"),
    [
        ("0.10.2", None, MENDED),
        ("0.11.1", " ", MENDED),
        ("0.10.2", "--xla_dump_to=d", f"--xla_dump_to=d {MENDED}"),
        ("0.10.2", f"{environment.FLAG}=dot", f"{environment.FLAG}=dot"),  # whoever names the flag decides
        ("0.10.2", "flags.txt", "flags.txt"),  # XLA takes it for the name of a file
        ("0.10.1", None, None),
        ("0.12.0.1", "--xla_dump_to=d", "--xla_dump_to=d"),  # a later jaxlib may not know the flag, and would end the process
        ("0.10.20", None, None),
    ],
)
def test_a_jaxlib_with_wrong_sums_gets_the_flag_that_mends_it(jaxlib, flags, expected):
    environ = {} if flags is None else {"XLA_FLAGS": flags}
    environment.prepare(environ, jaxlib)
    assert environ.get("XLA_FLAGS") == expected


# Says what XLA_FLAGS is when JAX is imported first, with a jaxlib that says of itself that it is 0.10.2.
FIRST_IMPORT = """
import importlib, os, sys
from importlib import metadata

class Watch:
    def find_spec(self, name, *_):
        if name == "jax":
            print(os.environ.get("XLA_FLAGS"))
            sys.exit()

known = metadata.version
metadata.version = lambda name: "0.10.2" if name == "jaxlib" else known(name)
sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
print("never")
"""
ENTRIES = ("fingerprint_jax.main", "fingerprint_jax.audit.__main__", "launch.table", "benchmarks.rows", "tests.conftest")


def test_a_jaxlib_that_is_loud_about_its_own_hints_is_quiet_unless_asked():
    environ = {}
    environment.prepare(environ, "0.10.1")
    assert environ == environment.QUIET
    environ = {name: "0" for name in environment.QUIET}
    environment.prepare(environ, "0.10.1")
    assert set(environ.values()) == {"0"}


@pytest.mark.parametrize("module", ENTRIES)
def test_every_entry_mends_before_it_imports_jax(module):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", FIRST_IMPORT, module]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [MENDED]


def test_sums_of_squares_of_a_vmapped_product():
    """https://github.com/jax-ml/jax/issues/39103: the last row was 0.2% off."""
    x = np.stack([np.arange(32_769), np.zeros(32_769), np.zeros(32_769)], axis=1).astype(np.float32)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((np.eye(3, dtype=np.float32) @ row) ** 2)))(x)
    np.testing.assert_allclose(found, x[:, 0].astype(np.float64) ** 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 1, 2, 2, 8, 8, 8), (1, 3, 2, 2, 8, 8, 8)])
def test_sums_of_products_of_rank_seven(shape):
    """https://github.com/jax-ml/jax/issues/40412: the process ended."""
    a, b = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    found = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b)
    np.testing.assert_allclose(found, (a.astype(np.float64) * b).sum(axis=3), rtol=1e-5, atol=1e-6)


@pytest.fixture
def untested():
    environment.self_test.cache_clear()
    yield
    environment.self_test.cache_clear()


def test_the_devices_here_pass(untested):
    with jax.transfer_guard("disallow"):
        assert environment.self_test() == "passed"
    assert environment.record()["self_test"] == "passed"


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("wrong", [1.002, np.nan])
def test_a_device_that_computes_wrongly_ends_it_with_one_line(case, wrong, untested, monkeypatch):
    cases = environment._cases()
    what, *_, right = cases[case]
    right[-1] *= wrong
    monkeypatch.setattr(environment, "_cases", lambda: cases)
    with pytest.raises(ValueError, match=rf"^self-test: jaxlib \S+ computes {what} wrongly on .*: install the versions of"):
        environment.self_test()
    monkeypatch.setattr(environment, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", f"{environment.FLAG}=dot")
    with pytest.raises(ValueError, match=f"jaxlib 0.10.2 .*: take {environment.FLAG} out of XLA_FLAGS, or install"):
        environment.self_test()


@pytest.mark.parametrize("binary", ["main", "evaluate", "audit"])
def test_a_binary_on_a_wrong_device_is_one_line_and_writes_nothing(binary, tmp_path):
    """numpy's side is changed, as if that of the device were wrong."""
    script = (
        "import runpy, sys, numpy as np; from fingerprint_jax.runtime import environment as e; known = e._cases;"
        "e._cases = lambda: [(*case[:3], [1.01 * x for x in case[3]]) for case in known()];"
        f"sys.argv = ['x', *sys.argv[1:]]; runpy.run_module('fingerprint_jax.{binary}', run_name='__main__')"
    )
    images = [f"--{name}={ROOT}" for name in ("generated", "used", "not_used")] + ["--output=run"]
    flags = {"main": ["--config=configs/quickstart.py", "--workdir=run"], "evaluate": ["--workdir=run"], "audit": images}[binary]
    flags = [flag.replace("=run", f"={tmp_path / 'run'}") for flag in flags]
    done = subprocess.run([sys.executable, "-c", script, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    jaxlib = metadata.version("jaxlib")
    assert done.stderr.startswith(f"{binary}: error: self-test: jaxlib {jaxlib} computes sums of squares wrongly on ")
    assert not (tmp_path / "run").exists()


AMBIENT = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "1",
    "JAX_ENABLE_CUSTOM_PRNG": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_LEGACY_PRNG_KEY": "error",
}


def test_a_jax_that_is_too_old_for_a_device_is_one_line(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    environment.check_version("cpu")
    for backend in ("gpu", "tpu"):
        with pytest.raises(ValueError, match=f"^jax .* is too old for a {backend.upper()}: install jax 0.12, .*JAX_PLATFORMS=cpu$"):
            environment.check_version(backend)
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0, 1))
    environment.check_version("gpu")


def test_pip_installs_no_older_jax_for_a_device():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = ".".join(map(str, environment.FOR_DEVICES))
    for name in ("cuda", "tpu", "target-cuda", "target-tpu"):
        assert [each for each in extras[name] if re.fullmatch(rf"jax\[[\w-]+\]>={wanted},<0\.13", each)], name


def test_every_setting_that_is_fixed_is_one_of_jax():
    assert environment.FIXED.keys() <= jax.config.values.keys()
    assert {name.upper() for name in environment.FIXED} == AMBIENT.keys()


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A run of four steps."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    trainer.finish(data_dir, path, "--config.num_steps=4")
    return path


@pytest.fixture
def stopped(whole, tmp_path):
    """The same run as it was after two steps."""
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "4")
    for name in ("digests/4.json", "done"):
        (stopped / name).unlink()
    return stopped


def test_the_environment_does_not_change_what_a_resumed_run_draws(stopped, whole, data_dir):
    log = trainer.finish(data_dir, stopped, "--config.num_steps=4", **AMBIENT)
    assert "resumes at step 2\n" in log and "goes on with other" not in log
    assert trainer.state(stopped) == trainer.state(whole) and trainer.history(stopped) == trainer.history(whole)


def test_what_rounds_sums_is_recorded_and_announced(stopped, data_dir):
    rounding = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    log = trainer.finish(data_dir, stopped, "--config.num_steps=4", **rounding)
    assert f"XLA_FLAGS --xla_cpu_enable_fast_math=false (before: {os.environ.get('XLA_FLAGS')})" in log
    assert "jax_default_matmul_precision highest (before: None)" in log
    first, second = (start["settings"] for start in json.loads((stopped / "provenance.json").read_text())["starts"])
    assert first.get("XLA_FLAGS") == os.environ.get("XLA_FLAGS") and second["XLA_FLAGS"] == rounding["XLA_FLAGS"]


def test_the_code_is_that_of_its_own_checkout(tmp_path):
    package = tmp_path / "checkout" / "fingerprint_jax"
    (package / "runtime").mkdir(parents=True)
    for name in ("__init__.py", "runtime/__init__.py", "runtime/environment.py"):
        shutil.copy(ROOT / "fingerprint_jax" / name, package / name)

    def git(*arguments):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, cwd=package.parent, check=True, capture_output=True, text=True).stdout.strip()

    def code(folder=package.parent):
        script = "import json; from fingerprint_jax.runtime import environment; print(json.dumps(environment.code()))"
        return json.loads(subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True).stdout)

    assert code()["commit"] is None and code()["changed"] is None
    git("init")
    git("add", ".")
    git("commit", "-m", "m")
    assert code() == {
        "fingerprint_jax": fingerprint_jax.__version__,
        "commit": git("rev-parse", "HEAD"),
        "changed": False,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    (package.parent / "notes.txt").touch()  # no figure depends on it
    assert not code()["changed"]
    (package / "more.py").touch()
    assert code()["changed"]
    below = package.parent / "venv"  # a package that is installed below somebody's checkout
    shutil.copytree(package, below / "fingerprint_jax")
    assert code(below)["commit"] is None


def test_a_page_says_what_made_it():
    e = {"fingerprint_jax": "1.2", "commit": "0123456789abcdef", "changed": True, "python": "3.11.7"}
    e |= {"devices": "gpu x 8 (H100)", "settings": {"a": 1, "b": "c"}, "self_test": "passed"}
    document = {"environment": e, "versions": {"jax": "0.12", "flax": "1"}}
    assert words.made_on(document) == [
        ("fingerprint_jax", "version 1.2, commit 0123456789ab with changes that are not committed"),
        ("Python", "3.11.7"),
        ("devices", "gpu x 8 (H100)"),
        ("settings", "a=1, b=c"),
        ("self-test of the devices", "passed"),
        ("libraries", "jax 0.12, flax 1"),
    ]
    e |= {"commit": None, "changed": None}
    assert words.made_on(document)[0] == ("fingerprint_jax", "version 1.2")
