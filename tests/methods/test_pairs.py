"""The table of pairs of a first stage, against brute force, and the training that samples from it."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.cluster import SpectralClustering

from fingerprint_jax import methods
from fingerprint_jax.data.sampler import PairSampler, Sampler
from fingerprint_jax.methods import gradient, pairs
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from fingerprint_jax.training import inference, inputs, loop, pair_table
from tests.conftest import fit, last_state, load_config, same_bytes

PATH = "configs/subtask1/zhouyijiang_canet.py"


def _config(data_dir, fold=0, **fields):
    config = network_config(load_config(PATH))
    config.data_dir, config.data.folds, config.data.fold = data_dir, 2, fold
    config.update_from_flattened_dict(fields)
    return config


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _nearest(query, gallery, count):
    """Rows of the gallery nearest to one query, by distance or by cosine."""
    by_distance = np.argsort(((gallery - query) ** 2).sum(axis=1))[:count]
    return sorted({*by_distance, *np.argsort(-_unit(gallery) @ _unit(query))[:count]})


@pytest.mark.parametrize("count", [1, 5, 60, 100])
def test_candidates_are_the_nearest_by_distance_and_by_cosine(count):
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 6)) * rng.uniform(0.2, 3, (n, 1)) for n in (20, 60))
    found = pairs.candidates(query.astype(np.float32), gallery.astype(np.float32), count)
    assert [row.tolist() for row in found] == [_nearest(q, gallery, count) for q in query]
    assert count in (60, 100) or max(map(len, found)) > count  # the two do not agree


def _blobs(sizes, seed):
    """Points around as many directions, in any order, and the blob of each."""
    rng = np.random.default_rng(seed)
    centres, owner = np.eye(8)[: len(sizes)] + 0.3, rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return (centres[owner] + rng.normal(0, 0.1, (len(owner), 8))) * rng.uniform(0.5, 2, (len(owner), 1)), owner, centres


@pytest.mark.parametrize("sizes", [(10, 10), (12, 4), (3, 30), (8, 9, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_the_cluster_most_like_the_query_stays(sizes, seed):
    found, owner, centres = _blobs(sizes, seed)
    square = ((_unit(found)[:, None] - _unit(found)[None]) ** 2).sum(axis=2)
    affinity = np.exp(-square / np.median(square[~np.eye(len(found), dtype=bool)]))
    expected = SpectralClustering(len(sizes), affinity="precomputed", random_state=seed).fit_predict(affinity)
    for blob, centre in enumerate(centres):
        kept = pairs.pruned(centre, found, len(sizes), seed, np.arange(100, 100 + len(found)))
        (cluster,) = set(expected[owner == blob])
        np.testing.assert_array_equal(kept, 100 + np.flatnonzero(expected == cluster))
        np.testing.assert_array_equal(kept, 100 + np.flatnonzero(owner == blob))


def test_what_cannot_be_clustered_stays():
    found, _, centres = _blobs((10, 10), 0)
    positions = np.arange(20)
    assert pairs.pruned(centres[0], found, 1, 0, positions) is positions
    assert pairs.pruned(centres[0], np.ones((20, 8)), 2, 0, positions) is positions  # copies
    for count in (1, 2):
        np.testing.assert_array_equal(pairs.pruned(centres[0], found[:count], 2, 0, positions[:count]), positions[:count])
    assert 0 < len(pairs.pruned(centres[0], found[:3], 2, 0, positions[:3])) < 3


@pytest.fixture(scope="module")
def fitted(data_dir, tmp_path_factory):
    """Both folds."""
    return fit(PATH, data_dir, tmp_path_factory.mktemp("pairs") / "run")


def _folds(run):
    return [fold for _, fold in methods.get("ensemble").members(run)]


def test_the_table_is_that_of_brute_force_over_the_rows_that_are_trained_on(fitted):
    for run in _folds(fitted):
        stage = pair_table.stage(run)
        source = pairs.encoder(stage)
        real, generated = run.rows("train_real"), run.rows("train_generated")
        query, gallery = (inference.encode(source, inference.restore(source)[1], rows)["embedding"] for rows in (generated, real))
        expected = []
        for number, q in zip(generated.index, query, strict=True):
            near = np.array(_nearest(q, gallery, 4))
            kept = pairs.pruned(q, gallery[near], 2, 0, near)
            assert 0 < len(kept) < len(near)
            expected += [(i, number) for i in real.index[kept]]
        table = pair_table.table(run)
        assert list(zip(table["real"], table["generated"], strict=True)) == expected
        assert not np.isin(table["real"], run.rows("heldout").index).any()
        assert json.loads((stage.workdir / "done").read_text())["pairs"] == len(expected)
        assert stage.provenance["fingerprints"] == run.fingerprints


def test_held_out_validating_and_sequestered_rows_are_in_no_pair(data_dir, tmp_path):
    run = Run(_config(data_dir, **{"data.valid": 1 / 3, "data.sequester": 1 / 3}), tmp_path / "run")
    pairs.fit(pair_table.stage(run))
    hidden = np.concatenate([run.rows(split).index for split in ("heldout", "valid", "sequestered")])
    table = pair_table.table(run)
    assert set(table["real"]) <= set(run.rows("train_real").index) and not np.isin(table["real"], hidden).any()
    batch = inputs.sampler_of(run)(3)
    drawn = set(zip(batch["real"]["index"].tolist(), batch["generated"]["index"].tolist(), strict=True))
    assert drawn <= set(zip(table["real"].tolist(), table["generated"].tolist(), strict=True))


def test_one_network_embeds_for_all_folds(fitted):
    names = sorted(path.name for path in (fitted.workdir / "children").iterdir())
    assert [name.partition("-")[0] for name in names] == ["encoder", "fold0", "fold1"]
    assert {pairs.encoder(pair_table.stage(run)).workdir.name for run in _folds(fitted)} == {names[0]}


def test_a_stage_is_made_once_and_a_resumed_run_ends_byte_identical(data_dir, tmp_path, monkeypatch):
    made, real = [], pairs.candidates
    monkeypatch.setattr(pairs, "candidates", lambda *args: (made.append(1), real(*args))[1])
    fields = {"optimizer.schedule": "constant"}  # the others depend on the number of steps
    runs = [Run(_config(data_dir, num_steps=steps, **fields), tmp_path / name) for name, steps in (("whole", 4), ("parts", 2))]
    for run in runs:
        gradient.fit(run)
    assert len(made) == 2
    path = tmp_path / "parts" / "children" / "stage1" / "pairs.npz"
    before = path.stat().st_mtime_ns
    longer = Run(_config(data_dir, num_steps=4, **fields), tmp_path / "parts", allow_change=("num_steps",))
    gradient.fit(longer)
    assert len(made) == 2 and path.stat().st_mtime_ns == before
    same_bytes(last_state(runs[0]), last_state(longer))
    table = pair_table.table(longer)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="its table of pairs is missing"):
        pair_table.table(longer)
    pairs.fit(pair_table.stage(longer))
    assert len(made) == 3
    for name, numbers in pair_table.table(longer).items():
        np.testing.assert_array_equal(numbers, table[name])


def test_a_table_of_other_pairs_under_its_name_is_not_trained_with(data_dir, tmp_path):
    stages = {}
    for count in (1, 4):
        run = Run(_config(data_dir, **{"pairs.candidates": count}), tmp_path / str(count))
        with methods.fitting(run):  # as stopped before its first step
            methods.fit(pair_table.stage(run))
        stages[count] = pair_table.stage(run)
    own = {path.name: path.read_bytes() for path in stages[4].workdir.iterdir() if path.name in ("done", "pairs.npz")}
    shutil.copy(stages[1].workdir / "pairs.npz", stages[4].workdir)
    with pytest.raises(ValueError, match="pairs.npz is another table of pairs than that which was made here"):
        gradient.fit(run)
    with pytest.raises(ValueError, match="pairs.npz is another table of pairs than that which was made here"):
        pair_table.table(run)
    known = json.loads(own["done"])
    (stages[4].workdir / "done").write_text(json.dumps({name: known[name] for name in ("pairs", "encoder")}))  # as older ones
    with pytest.raises(ValueError, match="pairs.npz is another table of pairs"):
        pair_table.table(run)
    shutil.copy(stages[1].workdir / "done", stages[4].workdir)
    with pytest.raises(ValueError, match="done is that of another run: put the run's own back, or remove it"):
        pair_table.table(run)
    (stages[4].workdir / "done").unlink()
    pairs.fit(pair_table.stage(run))
    assert {name: (stages[4].workdir / name).read_bytes() for name in own} == own


def test_other_options_of_the_stage_are_another_run(data_dir, tmp_path):
    gradient.fit(Run(_config(data_dir), tmp_path / "run"))
    with pytest.raises(ValueError, match="config.pairs.candidates is 3, the run was started with 4"):
        gradient.fit(Run(_config(data_dir, **{"pairs.candidates": 3}), tmp_path / "run", allow_change=("num_steps",)))


def test_without_candidates_each_stream_is_drawn_by_itself(data_dir, tmp_path):
    run = Run(_config(data_dir, **{"pairs.candidates": 0}), tmp_path / "run")
    assert pair_table.stage(run) is None and type(inputs.sampler_of(run)) is Sampler
    gradient.fit(run)
    assert not (run.workdir / "children").exists()
    assert type(inputs.sampler_of(Run(_config(data_dir), tmp_path / "b"), paired=False)) is Sampler


def test_reader_blocks_of_two_processes_are_aligned(fitted):
    run = _folds(fitted)[0]
    sampler = inputs.sampler_of(run)
    assert isinstance(sampler, PairSampler)
    table = pair_table.table(run)
    known = set(zip(table["real"].tolist(), table["generated"].tolist(), strict=True))
    for process in (0, 1):
        options = {"with_images": False, "process_index": process, "process_count": 2}
        for batch in loop.loader.host_batches(sampler, (run.config.data_dir, "subtask1"), 0, 2, **options):
            assert set(zip(batch["real"]["index"].tolist(), batch["generated"]["index"].tolist(), strict=True)) <= known


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs.method": "gradient"}, "pairs.method='gradient' makes no table of pairs: use pairs"),
        ({"data.streams.real": 4}, "pairs are of subtask1, real and generated, as many of each: not subtask1 with"),
        ({"pairs.clusters": 0}, "pairs.clusters=0: use 1 or more"),
        ({"pairs.member.num_steps": 2, "pairs.member.data.streams": ConfigDict({"real": 8})}, "trained on no row of train_real"),
    ],
)
def test_what_cannot_be_is_refused(fields, message, data_dir, tmp_path):
    with pytest.raises(ValueError, match=message):
        gradient.fit(Run(_config(data_dir, **fields), tmp_path / "run"))
    assert not (tmp_path / "run" / "children" / "stage1" / "config.json").exists()


def test_a_table_of_other_data_or_scores_of_it_are_refused(fitted):
    run = _folds(fitted)[0]
    stage = pair_table.stage(run)
    with pytest.raises(ValueError, match="is a table of pairs, which scores no image"):
        methods.predict(stage, "heldout")
    path = stage.workdir / "provenance.json"
    content = path.read_text()
    files.write_text(path, content.replace(run.fingerprints["train_real"], "other"))
    with pytest.raises(ValueError, match="its table of pairs is of other data"):
        pair_table.table(run)
    path.write_text(content)
