"""A run compiled for devices that are not here."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import types

import jax
import pytest

from fingerprint_jax import methods
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding, targets
from fingerprint_jax.training import cost
from tests.conftest import ROOT, load_config

LIBTPU = ROOT / ".venv" / "libtpu"  # where .ci/run installs it
FIGURES = ("memory", "FLOPs", "bytes", "kernels", "exchanges", "compiled in", "floor")


def _target(data_dir, tmp_path, name, *more):
    command = [sys.executable, "-m", "fingerprint_jax.main", "--config=configs/quickstart.py:smoke", "--dry_run"]
    command += [f"--config.data_dir={data_dir}", f"--workdir={tmp_path / 'run'}", f"--target={name}", *more]
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(LIBTPU)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def _described(data_dir, tmp_path, target):
    config = load_config("configs/quickstart.py")
    config.data_dir = data_dir
    return dict(methods.describe(Run(config, tmp_path / "run"), target))


def _ms(text, what):
    return float(re.search(rf"{what}([\d.e-]+) ms", text)[1])


def test_the_figures_of_a_target(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(targets.Target, "mesh", lambda self: sharding.make_mesh())  # its table, and the devices that are here
    target = targets.parse("h100")
    here, rows = (_described(data_dir, tmp_path, each) for each in (None, target))
    assert {f"{program}: {what}" for program in ("step", "prediction") for what in FIGURES} <= rows.keys()
    assert rows["parameters"] == here["parameters"] and rows["target"].startswith("1 x cpu on 1 host; each 74.5 GiB, 3,350 GB/s")
    assert here["FLOPs a step"].split(",")[0] == rows["step: FLOPs"].split(" ")[0]
    flops, floor = float(rows["step: FLOPs"].split(" ")[0]), rows["step: floor"]
    assert _ms(floor, "FLOPs ") == pytest.approx(1e3 * flops / 494.5e12, rel=0.01)
    assert _ms(floor, "^") == max(_ms(floor, "FLOPs "), _ms(floor, "bytes "))
    assert "74.51 GiB: fits" in rows["step: memory"] and rows["step: exchanges"] == "none"
    small = dataclasses.replace(target, device=dataclasses.replace(target.device, memory=1000))
    assert "of 1,000 B: does NOT fit" in _described(data_dir, tmp_path, small)["step: memory"]


def test_what_xla_cannot_compile_is_one_line_with_what_may_help():
    def compile(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: Couldn't find output tile sizes satisfying the constraints\nand a stack")

    function = types.SimpleNamespace(lower=lambda *_: types.SimpleNamespace(compile=compile))
    with pytest.raises(ValueError) as raised:
        cost._compiled(function, (), 1.0, targets.parse("h100"), 1.0)
    line = str(raised.value)
    assert line.startswith("target h100:1: XLA cannot compile it (INTERNAL: Couldn't find output tile sizes") and "\n" not in line
    assert line.endswith("XLA_FLAGS=--xla_gpu_enable_triton_gemm=false")


def test_a_target_is_for_a_dry_run(data_dir, tmp_path):
    done = _target(data_dir, tmp_path, "h10")
    assert done.returncode == 1 and "error: target='h10' is unknown: did you mean 'h100'?" in done.stderr
    done = _target(data_dir, tmp_path, "h100", "--nodry_run")
    assert done.returncode == 1 and done.stderr.endswith("error: --target compiles and runs nothing: give --dry_run with it\n")


@pytest.mark.skipif(
    not LIBTPU.exists() and not importlib.util.find_spec("libtpu"), reason="needs pip install 'fingerprint_jax[target-tpu]'"
)
def test_a_step_compiles_for_four_chips_that_are_not_here(data_dir, tmp_path):
    done = _target(data_dir, tmp_path, "tpu-v5e:4")
    assert done.returncode == 0, done.stderr
    rows = dict(
        line.split(maxsplit=1) if ":" not in line[:24] else (line[:24].strip(), line[24:]) for line in done.stdout.splitlines()
    )
    assert rows["target"].startswith("4 x TPU v5 lite on 1 host; each 16.0 GiB, 819 GB/s, 197 TFLOP/s")
    assert "fits" in rows["step: memory"] and "all-reduce" in rows["step: exchanges"]
    assert "products" in rows["step: kernels"] and rows["prediction: exchanges"] == "none"
    assert not (tmp_path / "run").exists()
    done = _target(data_dir, tmp_path, "tpu-v5e:16")
    assert done.returncode == 1 and "data.streams.generated=8 is not a multiple of the 16 devices" in done.stderr
