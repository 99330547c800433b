"""Steps that are dispatched together have the batches that they have one by one."""

import itertools
import mmap
import shutil

import jax
import numpy as np
import pytest

from fingerprint_jax.data import builder, loader
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inputs
from tests.conftest import load_config


@pytest.mark.parametrize(("start", "stop", "count"), itertools.product((0, 3, 4), (0, 4, 9), (1, 4, 20)))
def test_dispatches_are_all_steps_in_order_and_end_at_multiples(start, stop, count):
    found = loader.dispatches(start, stop, count)
    assert [step for steps in found for step in steps] == list(range(start, stop))
    assert all(steps.stop % count == 0 for steps in found[:-1]) and all(0 < len(steps) <= count for steps in found)


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"process_index": 1, "process_count": 2}, {"with_images": False}])
def test_batches_of_several_steps_are_those_of_single_ones_stacked(options, data_dir, tmp_path):
    config = load_config("configs/subtask1/aimm_siamese.py").member
    config.data_dir = data_dir
    run = Run(config, tmp_path)
    read = (inputs.sampler_of(run), (data_dir, "subtask1"), 1, 7)
    single = list(loader.host_batches(*read, **options))
    several = list(loader.host_batches(*read, per_dispatch=3, **options))
    expected = [jax.tree.map(lambda *x: np.stack(x), *single[a:b]) for a, b in ((0, 2), (2, 5), (5, 6))]
    assert len(several) == len(expected) and ("image" in several[0]["real"]) == options.get("with_images", True)
    for a, b in zip(several, expected, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def test_readers_start_only_where_what_they_hold_has_room(data_dir, tmp_path, monkeypatch):
    config = load_config("configs/subtask1/aimm_siamese.py").member
    config.data_dir = data_dir
    sampler, asked = inputs.sampler_of(Run(config, tmp_path)), []
    monkeypatch.setattr(loader.shared, "require", asked.append)
    loader.host_batches(sampler, (data_dir, "subtask1"), 0, 8, workers=3, per_dispatch=2, process_count=4)
    images = 2 * sum(config.data.streams.values()) // 4
    assert asked == [(4 * 3 + 4) * images * 48 * 48 + 3 * 25 * mmap.PAGESIZE]
    loader.host_batches(sampler, (data_dir, "subtask1"), 0, 8, workers=1, with_images=False)
    loader.host_batches(sampler, (data_dir, "subtask1"), 0, 8)
    assert len(asked) == 1


def _copied(data_dir, tmp_path):
    """Where a copy of the data lies, and a sampler that sees it."""
    shutil.copytree(data_dir, tmp_path / "data")
    config = load_config("configs/subtask1/aimm_siamese.py").member
    config.data_dir = str(tmp_path / "data")
    return config.data_dir, inputs.sampler_of(Run(config, tmp_path / "run"))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_were_packed_anew_are_not_read_under_the_old_fingerprints(workers, data_dir, packs, tmp_path):
    copy, sampler = _copied(data_dir, tmp_path)
    folder = builder.dataset_dir(copy, "subtask1")
    shutil.rmtree(folder)
    shutil.copytree(builder.dataset_dir(packs["moved"], "subtask1"), folder)
    batches = loader.host_batches(sampler, (copy, "subtask1"), 0, 4, workers=workers)
    if workers:
        with pytest.raises(Exception, match="was packed anew while a run reads it"):
            list(batches)
    else:  # whoever opened it has its files
        assert len(list(batches)) == 4


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("allowed", [0, 1000])
def test_records_that_are_damaged_since_a_run_began_are_counted_too(allowed, workers, data_dir, tmp_path):
    """Seen: 127 images replaced by neighbours where none may be, while a copy was written over the data set."""
    copy, sampler = _copied(data_dir, tmp_path)
    (path,) = builder.dataset_dir(copy, "subtask1").glob("*-train_generated.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 4 + 200] = bytes(200)
    path.write_bytes(content)
    batches = loader.host_batches(sampler, (copy, "subtask1"), 0, 20, workers=workers, max_damaged=allowed)
    if allowed:
        assert len(list(batches)) == 20
    else:
        with pytest.raises(Exception, match=r"damaged records, data.max_damaged=0 \("):
            list(batches)
