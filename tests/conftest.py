"""One phantom of each subtask, packed once, and a private compilation cache for the whole suite."""

import dataclasses
import functools
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import time
from importlib.metadata import version
from unittest import mock

from fingerprint_jax.runtime import environment

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores: threads that wait for one another took as long as the work
_CACHE = pathlib.Path(__file__).parents[1] / ".jax_cache"
_CACHE.mkdir(mode=0o700, exist_ok=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of the suite compiles tiny networks, which takes half as long where LLVM does not optimise, and a quarter by the older way
# that JAX 0.12 no longer has.
_OLDER = version("jax") < "0.12"
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _QUICK + " --xla_cpu_use_fusion_emitters=false" * _OLDER)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from fingerprint_jax import methods  # noqa: E402
from fingerprint_jax.data import loader, packing, phantom  # noqa: E402
from fingerprint_jax.data.source import open_source  # noqa: E402
from fingerprint_jax.estimators import local_match, mosaic  # noqa: E402
from fingerprint_jax.evaluation import score  # noqa: E402
from fingerprint_jax.runs import checkpoint  # noqa: E402
from fingerprint_jax.runs.config import config_hash  # noqa: E402
from fingerprint_jax.runs.run import Run  # noqa: E402
from fingerprint_jax.runtime import cli, preemption, sharding  # noqa: E402
from fingerprint_jax.training import inference  # noqa: E402
from fingerprint_jax.training.model import _model, forget_many_programs, forget_programs, model_of  # noqa: E402
from launch import sweep  # noqa: E402

environment.settle()
cli.collect_rarely()
jax.config.update("jax_numpy_rank_promotion", "raise")
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # reader processes need parsed flags

# These compute for longer than they compile.
_OPTIMISED = {"xla_backend_optimization_level": 2}
for _module, _name, _static in (
    (local_match, "_nearest", (3, 4, 5)),
    (local_match, "_pairs", (2, 3, 4)),
    (mosaic, "_logs", (3, 4, 5, 6)),
    (mosaic, "_weights", (3, 4, 5, 6)),
):
    _function = getattr(_module, _name).__wrapped__
    setattr(_module, _name, jax.jit(_function, static_argnums=_static, compiler_options=_OPTIMISED))

FULL_FAULTS = os.environ.get("FINGERPRINT_FAULTS") == "full"
ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py") if p.name not in ("base.py", "__init__.py"))


LONGEST = (
    "end_to_end",
    "slurm",
    "distributed",
    "audit",
    "backbones",
    "loop",
    "signals",
    "sharding",
    "extending",
    "cli",
    "environment",
)


def pytest_collection_modifyitems(items):
    """Files that take long come first: the one that ends last would have the machine for itself."""
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_xdist_auto_num_workers(config):
    """More than there are cores, as some wait for a disk, a cluster or a process; not many, as each has gigabytes of programs."""
    return min(4, len(os.sched_getaffinity(0)) + 1)


@pytest.fixture(autouse=True)
def _few_programs():
    begin = time.monotonic()
    yield
    if time.monotonic() - begin > 0.3:  # to count them takes as long as many a test
        forget_many_programs()


@pytest.fixture(autouse=True, scope="module")
def _few_networks():
    """Those of a file that had many are forgotten after it: a worker would hold gigabytes of programs."""
    yield
    if _model.cache_info().currsize > 8:
        forget_programs()


@pytest.fixture
def as_users_compile(monkeypatch):
    """Networks are compiled by the emitters that JAX has by itself: the older way rounds two programs of one thing otherwise."""
    if _OLDER:
        monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True}))
    _model.cache_clear()
    yield
    _model.cache_clear()


@pytest.fixture(autouse=True)
def _handlers(monkeypatch):
    """Signals, and what Python does with errors that nobody can catch, are as before after the test."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _log():
    """The log begins as in a process that has just begun, whatever an earlier test, or what several share, has shown of it."""
    own = logging.getLogger("fingerprint_jax")
    own.handlers[:], own.propagate = [], True  # pytest reads a log that goes no further by a handler of its own
    own.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Folders of the phantom images of both subtasks, 48 px: {task: path}."""
    root = tmp_path_factory.mktemp("phantoms")
    splits = {
        "subtask1": phantom.subtask1(seed=0, size=48, leak=1.0, real=20, generated=40, unknown=20, reference=20),
        "subtask2": phantom.subtask2(seed=0, size=48, leak=0.5, real=8, generated=20, unknown=20),
    }
    for task, content in splits.items():
        phantom.write(root / task, task, content, seed=0)
    return {task: root / task for task in splits}


@pytest.fixture(scope="session")
def data_dir(phantoms, tmp_path_factory):
    """Both phantoms packed, and the real images of subtask 2 as task `images`."""
    data = tmp_path_factory.mktemp("data")
    for task, root in phantoms.items():
        reference = str(root / "reference") if task == "subtask1" else ""
        packing.pack(task, str(data), str(root / "train"), str(root / "test"), reference, groups=str(root / "groups.csv"))
    packing.pack("images", str(data), str(phantoms["subtask2"] / "train" / "real"))
    return str(data)


@pytest.fixture(scope="session")
def packs(phantoms, tmp_path_factory):
    """Subtask 1 of `data_dir` packed again: `moved`, other splits apart; `changed`, an image less; `other`, of other images."""
    root, images = tmp_path_factory.mktemp("packs"), phantoms["subtask1"]
    packing.pack("subtask1", root / "moved", images / "train", images / "test", groups=images / "groups.csv")
    shutil.copytree(images / "train", root / "fewer")
    min((root / "fewer" / "real_used").iterdir()).unlink()
    packing.pack("subtask1", root / "changed", root / "fewer", groups=images / "groups.csv")
    content = phantom.subtask1(seed=9, size=48, leak=1.0, real=10, generated=40, unknown=2, reference=0)
    phantom.write(root / "new", "subtask1", content, seed=9)
    packing.pack("subtask1", root / "other", root / "new" / "train", groups=root / "new" / "groups.csv")
    return {name: str(root / name) for name in ("moved", "changed", "other")}


@pytest.fixture
def ends():
    """A read that never ends fails the test, and not the suite; a test of many such reads calls it before each."""

    def late(*_):
        pytest.fail("waits for ever")  # no OSError, which an act may end with

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield lambda: signal.alarm(120)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    open_source.cache_clear()


@pytest.fixture(scope="session")
def trained(data_dir, tmp_path_factory):
    """A finished run of the quickstart that was scored; to be copied."""
    run = fit("configs/quickstart.py", data_dir, tmp_path_factory.mktemp("trained") / "run")
    score.evaluate(run, "heldout")
    return run.workdir


def load_config(path: str, variant: str = "smoke"):
    """The config of a file, as the flag would load it."""
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def fit(path: str, data_dir: str, workdir) -> Run:
    """A run of a config, shrunk, fitted on the phantom."""
    config = load_config(path)
    config.data_dir = data_dir
    methods.get(config.method).fit(Run(config, workdir))
    return Run.load(workdir)


def drawn(config, data_dir: str, workdir, steps=(4,)) -> Run:
    """A run that was never trained: it has checkpoints of weights, and of others as their average, that numpy has drawn."""
    config.data_dir = data_dir
    run = Run(config, workdir)
    with methods.fitting(run):
        model, saved = model_of(run), checkpoint.Checkpoints(run.workdir)
        for step in steps:
            rng = np.random.default_rng(step)
            state = jax.tree.map(lambda x: (rng.normal(0, 0.2, x.shape)).astype(x.dtype), model.abstract)  # noqa: B023
            saved.save(step, jax.tree.map(sharding.put, state | {"step": np.int32(step)}, model.places), {})
        saved.close()
        (run.workdir / "done").write_text("{}")
    return Run.load(workdir)


def finish(workdir, split="heldout", **config) -> None:
    """What a run leaves that was trained and scored, without either; of a config that has only these fields."""
    of = {"data_dir": "", "fingerprints": {}, "config_hash": config_hash(ConfigDict(config))}
    results = {"schema": score.SCHEMA, "splits": {split: of}}
    left = {"done": {}, "config.json": config, "provenance.json": {"fingerprints": {}}, "results.json": results}
    workdir.mkdir(parents=True, exist_ok=True)
    for name, content in left.items():
        (workdir / name).write_text(json.dumps(content))


def tiny_config(data_dir: str, backbone: str = "resnet_tiny", **fields):
    """The config of a softmax classifier of real images, with a tiny backbone."""
    config = load_config("configs/subtask2/medhastra_resnet18.py")
    config.data_dir = data_dir
    config.backbone = ConfigDict({"name": backbone, "weights": ""} | ({"stem": "native"} if backbone == "resnet_tiny" else {}))
    config.update(fields)
    return config


def write_sweep(output, found, data_dir="D") -> list[str]:
    """A sweep as older versions wrote it, whose rows do not say what their whole config is: a run of `finish` has few fields."""
    sweep.write(output, data_dir, [dataclasses.replace(row, hash="") for row in found])
    return [row.name for row in found]


class Interrupted(Exception):
    """Ends a training that `fit_until` began."""


def fit_until(run: Run, reads: int) -> None:
    """Fits a run until it asks for so many batches; two are sent ahead of the step that runs."""
    real, given = loader.to_devices, []

    def interrupted(*args, **kwargs):
        for batch in real(*args, **kwargs):
            given.append(1)
            if len(given) == reads:
                raise Interrupted
            yield batch

    with mock.patch.object(loader, "to_devices", interrupted), pytest.raises(Interrupted):
        methods.get(run.config.method).fit(run)


def last_state(run: Run) -> dict:
    """The last state that a run saved, as numpy."""
    _, state = inference.restore(run, "latest", whole=True)
    return jax.tree.map(np.asarray, jax.device_get(state))


def untimed(line: dict) -> dict:
    """A line of metrics.jsonl without what is a time: runs that end with the same bytes have the same lines but for that."""
    return {name: value for name, value in line.items() if name not in ("time", "images_per_s", "input_wait")}


def same_bytes(a, b) -> None:
    """Two trees of arrays are the same to the last bit."""
    flat_a, flat_b = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
    assert [path for path, _ in flat_a] == [path for path, _ in flat_b]
    for (path, x), (_, y) in zip(flat_a, flat_b, strict=True):
        assert x.tobytes() == y.tobytes(), path


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="write tests/golden/steps.json anew; without -n")
