"""Damage on the disk: flipped bits, cut and deleted files in checkpoints, damaged records, a full disk."""

import collections
import os
import shutil
import subprocess

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fingerprint_jax import methods
from fingerprint_jax.data import builder, loader
from fingerprint_jax.data.source import Source
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding
from fingerprint_jax.training import inputs
from fingerprint_jax.training.model import model_of
from tests.conftest import load_config
from tests.faults import trainer


@pytest.fixture(scope="module")
def saves(data_dir, tmp_path_factory):
    """A run with the checkpoints of steps 4 and 6, what its model restores into, and the state at each."""
    config = load_config("configs/subtask2/medhastra_resnet18.py")
    config.data_dir, config.num_steps, config.best = data_dir, 6, ""
    run = Run(config, tmp_path_factory.mktemp("saves"))
    methods.get("gradient").fit(run)
    model = model_of(run)
    abstract = sharding.abstract(model.abstract, sharding.replicated(model.mesh))
    return run.workdir, abstract, {step: trainer.state(run.workdir, str(step)) for step in (4, 6)}


def _flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def _cut(path, rng):
    os.truncate(path, rng.integers(path.stat().st_size))


def _delete(path, rng):
    path.unlink()


@pytest.mark.parametrize(("fault", "few", "many"), [(_flip, 25, 200), (_cut, 10, 50), (_delete, 10, 20)])
def test_no_damage_of_a_checkpoint_is_silent(fault, few, many, saves, tmp_path, counts, report, caplog):
    workdir, abstract, states = saves
    rng, alone, trials = np.random.default_rng(2), collections.Counter(), counts(few, many)
    for trial in range(trials):
        copy = tmp_path / str(trial)
        for name in ("checkpoints", "digests"):
            shutil.copytree(workdir / name, copy / name)
        files = [*(p for p in sorted((copy / "checkpoints" / "6").rglob("*")) if p.is_file()), copy / "digests" / "6.json"]
        sizes = np.array([p.stat().st_size for p in files], float)
        files, sizes = [f for f, s in zip(files, sizes, strict=True) if s], sizes[sizes > 0]
        # Half of the faults by size, where most bytes are; half in any file alike.
        victim = files[rng.choice(len(files), p=sizes / sizes.sum() if trial % 2 else None)]
        fault(victim, rng)
        if victim.is_relative_to(copy / "checkpoints"):
            alone[_orbax_alone(copy / "checkpoints" / "6", abstract, states[6])] += 1
        caplog.clear()
        step, state = checkpoint.Checkpoints(copy).restore("latest", abstract)
        assert step == 4 and trainer.arrays(state) == states[4]
        assert f"{victim} is " in caplog.text
        checkpoint.Checkpoints(copy).prune()
        assert checkpoint.Checkpoints(copy).resolve("latest") == 4
        shutil.rmtree(copy)
    what = {"_flip": "one bit flipped", "_cut": "one file cut short", "_delete": "one file deleted"}[fault.__name__]
    report(
        f"{what} in the latest checkpoint or its manifest",
        trials,
        f"{trials} noticed, the file named, the checkpoint before used; Orbax alone ({sum(alone.values())} of them in its files):"
        f" {alone['wrong']} restored wrong values without an error, {alone['right']} right ones, {alone['error']} raised",
    )


def _orbax_alone(path, abstract, expected):
    try:
        with ocp.StandardCheckpointer() as reader:
            state = reader.restore(path.absolute() / "default", abstract)
    except Exception:  # whatever it raises, it noticed
        return "error"
    return "right" if trainer.arrays(state) == expected else "wrong"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_full_disk_costs_the_save_and_nothing_else(small_disk, report, caplog):
    abstract = sharding.abstract({"w": np.zeros(200_000, np.float32)}, jax.sharding.SingleDeviceSharding(jax.devices()[0]))

    def state(step):
        return {"w": jax.random.normal(jax.random.key(step), 200_000)}  # does not compress

    checkpoints = checkpoint.Checkpoints(small_disk / "run")
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    failures = 0
    (moved := small_disk / "run" / "checkpoints" / "5.old").mkdir()  # by its owner
    for step in range(3, 8):
        _fill(small_disk)
        with pytest.raises(OSError, match=f"the checkpoint of step {step} could not be written: .*[Nn]o space left"):
            checkpoints.save(step, state(step), {})
            checkpoints.wait()
        failures += 1
        assert checkpoints.restore("latest", abstract)[0] == 2
        (small_disk / "filler").unlink()
    checkpoints.save(8, state(8), {})
    checkpoints.close()
    step, found = checkpoints.restore("latest", abstract)
    assert step == 8 and moved.is_dir()
    np.testing.assert_array_equal(found["w"], state(8)["w"])
    report("a full disk while saving", failures, "each save failed in one line, the latest stayed loadable, the next save worked")


def test_a_training_on_a_full_disk_stops_in_one_line_and_goes_on_later(whole, data_dir, small_disk, report):
    workdir = small_disk / "run"
    process = trainer.start(data_dir, workdir)
    while len(trainer.saved(workdir)) < 2:
        assert process.poll() is None, process.stderr.read()
    _fill(small_disk)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 1
    assert text.splitlines()[-1].startswith("main: error: ") and "o space left" in text.splitlines()[-1], text
    assert trainer.state(workdir)
    (small_disk / "filler").unlink()
    trainer.finish(data_dir, workdir)
    assert trainer.state(workdir) == whole[1]
    report("a training whose disk fills up", 1, "stopped with one line; with room again it ended with the same bytes")


@pytest.fixture
def damaged(data_dir, tmp_path):
    """A copy of the data, and a function that damages records of a split, neighbours among them, and returns their positions."""
    shutil.copytree(data_dir, tmp_path / "data")

    def damage(split, count):
        (file,) = builder.dataset_dir(tmp_path / "data", "subtask2").glob(f"*-{split}.array_record-*")
        content = bytearray(file.read_bytes())
        for at in range(len(content) // 50, len(content), 200):
            content[at] ^= 4
            file.write_bytes(content)
            source = Source(tmp_path / "data", "subtask2")
            rows = source.rows(split)
            if len(source.damaged) == count:
                return np.flatnonzero(np.isin(rows.index, list(source.damaged)))

    return str(tmp_path / "data"), damage


def test_damaged_records_are_named_and_within_the_budget_replaced(damaged, data_dir, tmp_path, report, caplog):
    data, damage = damaged
    whole, rows = Source(data_dir, "subtask2"), Source(data_dir, "subtask2").rows("train_real")
    positions = damage("train_real", 3)
    ids = ", ".join(rows.ids[positions])
    assert (np.diff(positions) == 1).any()
    source = Source(data, "subtask2")
    found = source.rows("train_real")
    for column in ("ids", "labels", "groups", "index"):
        np.testing.assert_array_equal(getattr(found, column), getattr(rows, column))
    assert f"damaged records in train_real: {ids}" in caplog.text
    expected = whole.images(rows.index)
    for position in positions:  # by the next one of its label, from the end on to the first
        others = [p for p in range(len(rows)) if rows.labels[p] == rows.labels[position] and p not in positions]
        (nearest, *_) = sorted(others, key=lambda p: (p < position, p))
        expected[position] = whole.images(rows.index[[nearest]])[0]
    np.testing.assert_array_equal(source.images(rows.index), expected)
    np.testing.assert_array_equal(Source(data, "subtask2").images(rows.index), expected)  # without having read the rows before

    def run(allowed, **fields):
        config = load_config("configs/subtask2/medhastra_resnet18.py")
        config.data_dir, config.data.max_damaged = data, allowed
        config.data.update(fields)
        return Run(config, tmp_path / f"run{allowed}{fields}")

    with pytest.raises(ValueError, match=f"3 damaged records, data.max_damaged=2 .in train_real: {ids}.*pack the data again"):
        methods.get("gradient").fit(run(2))
    batches = [
        list(loader.host_batches(inputs.sampler_of(run(3)), (data, "subtask2"), 0, 6, workers=workers)) for workers in (0, 1)
    ]
    jax.tree.map(np.testing.assert_array_equal, *batches)
    states = []
    for cache in ("none", "device"):
        fitted = run(3, cache=cache)
        methods.get("gradient").fit(fitted)
        states.append(trainer.state(fitted.workdir))
    assert states[0] == states[1]
    with pytest.raises(ValueError, match=f"split train_real: damaged records are not scored: {ids}; pack the data again"):
        methods.predict(fitted, "train_real")
    methods.predict(fitted, "test_generated")
    report(
        "damaged records in the packed data",
        3,
        "named; with a budget of 2 refused, of 3 each replaced by its neighbour, never scored",
    )


def test_damaged_tables_of_a_data_set_are_named(damaged):
    data, _ = damaged
    place = builder.dataset_dir(data, "subtask2")
    for name in ("summary.json", "dataset_info.json", "features.json"):
        content = (place / name).read_text()
        (place / name).write_text(content[: len(content) // 2])
        with pytest.raises(ValueError, match="is damaged .*pack the data again"):
            Source(data, "subtask2").rows("train_real")
        (place / name).write_text(content)
    Source(data, "subtask2").rows("train_real")


def test_bits_flipped_in_packed_records_are_never_silent(damaged, data_dir, counts, report):
    data, _ = damaged
    (file,) = builder.dataset_dir(data, "subtask2").glob("*-train_real.array_record-*")
    original, rng, noticed, trials = file.read_bytes(), np.random.default_rng(3), 0, counts(20, 200)
    whole = Source(data_dir, "subtask2")
    expected = whole.images(whole.rows("train_real").index)
    for _ in range(trials):
        file.write_bytes(original)
        _flip(file, rng)
        source = Source(data, "subtask2")
        rows = source.rows("train_real")
        good = ~np.isin(rows.index, list(source.damaged))
        np.testing.assert_array_equal(source.images(rows.index[good]), expected[good])
        noticed += not good.all()
    report(
        "one bit flipped in packed records", trials, f"{noticed} noticed, {trials - noticed} without effect (padding), none silent"
    )
