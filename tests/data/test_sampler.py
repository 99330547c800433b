import collections
import dataclasses
import itertools

import numpy as np
import pytest

from fingerprint_jax.data.sampler import PairSampler, PatientSampler, Sampler, StreamSampler
from fingerprint_jax.data.source import Rows


def rows(labels):
    labels = np.asarray(labels)
    ids = np.arange(len(labels)).astype(str)
    return Rows(ids, labels, ids, np.arange(len(labels)) + 100)


def draws(sampler, steps):
    return np.concatenate([sampler(step) for step in range(steps)])


def test_every_row_once_an_epoch_and_each_epoch_in_another_order():
    sampler = StreamSampler(rows(np.zeros(21)), 6, 0, "x", balanced=False)
    epochs = draws(sampler, 7).reshape(2, 21)  # 7 steps of 6: epochs end within batches
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(21))
    assert (epochs[0] != epochs[1]).any() and (epochs[0] != np.arange(21)).any()


def test_balanced_labels_take_turns_and_each_label_has_its_own_epochs():
    labels = np.array([0] * 3 + [1] * 12 + [4] * 6)
    order = draws(StreamSampler(rows(labels), 9, 0, "x", balanced=True), 8)
    np.testing.assert_array_equal(labels[order], np.tile([0, 1, 4], 24))
    for label, count in collections.Counter(labels.tolist()).items():
        for epoch in order[labels[order] == label].reshape(-1, count):
            np.testing.assert_array_equal(np.sort(epoch), np.flatnonzero(labels == label))


def test_all_orders_are_equally_frequent():
    orders = collections.Counter()
    for seed in range(3000):
        orders[tuple(StreamSampler(rows([0, 0, 0]), 3, seed, "x", balanced=False)(0))] += 1
    assert set(orders) == set(itertools.permutations(range(3)))
    assert sum((n - 500) ** 2 / 500 for n in orders.values()) < 20.5  # chi-square, 5 degrees of freedom: 0.1%


def test_streams_and_seeds_differ_and_a_step_does_not_depend_on_the_steps_before():
    def make(seed):
        return Sampler({"a": rows(range(50)), "b": rows(range(50))}, {"a": 50, "b": 50}, seed, balanced=False)

    first, again, other = make(0)(0), make(0), make(1)(0)
    assert (first["a"]["index"] != first["b"]["index"]).any() and (first["a"]["index"] != other["a"]["index"]).any()
    again(5)
    np.testing.assert_array_equal(again(0)["a"]["index"], first["a"]["index"])
    np.testing.assert_array_equal(first["a"]["index"], first["a"]["label"] + 100)


def test_an_empty_stream_is_named():
    with pytest.raises(ValueError, match="data.streams.x: no rows"):
        StreamSampler(rows([]), 1, 0, "x", balanced=False)


STREAMS = {"real": rows([0, 1, 1, 0]), "generated": rows([1] * 5)}
PAIRS = {"real": np.array([101, 102, 102, 100, 101, 102]), "generated": np.array([100, 101, 104, 103, 103, 103])}


def paired(seed=0, size=4, balanced=False, pairs=PAIRS):
    return PairSampler(STREAMS, pairs, size, seed, balanced)


def drawn(sampler, steps):
    batches = [sampler(step) for step in steps]
    return [pair for b in batches for pair in zip(b["real"]["index"].tolist(), b["generated"]["index"].tolist(), strict=True)]


def test_the_streams_of_a_table_are_aligned_and_every_pair_comes_once_an_epoch():
    found, table = drawn(paired(), range(6)), sorted(zip(*(values.tolist() for values in PAIRS.values()), strict=True))
    for epoch in range(4):  # 6 steps of 4: epochs end within batches
        assert sorted(found[6 * epoch : 6 * epoch + 6]) == table
    assert found[:6] != found[6:12]
    batch = paired()(0)
    np.testing.assert_array_equal(batch["real"]["label"], np.array([0, 1, 1, 0])[batch["real"]["index"] - 100])
    assert all(stream[name].dtype == np.int32 for stream in batch.values() for name in ("label", "index"))


def test_pairs_of_a_step_follow_from_seed_and_step_alone():
    sampler = paired()
    later = drawn(sampler, [5])
    assert drawn(sampler, [0]) == drawn(paired(), [0]) and drawn(paired(), range(6))[20:] == later
    assert drawn(paired(seed=1), range(3)) != drawn(paired(), range(3))


def test_balanced_pairs_take_turns_by_the_label_of_the_real_image():
    sampler = paired(balanced=True)
    np.testing.assert_array_equal([sampler(step)["real"]["label"] for step in range(3)], [[0, 1, 0, 1]] * 3)
    used = [pair for pair in drawn(sampler, range(5)) if pair[0] != 100]
    assert sorted(used[:5]) == sorted(used[5:]) and len(set(used)) == 5


def test_a_pair_of_an_image_that_is_not_trained_on_is_refused():
    with pytest.raises(ValueError, match="data.streams.real: 1 pairs of the table have an image that is not trained on"):
        paired(pairs=PAIRS | {"real": np.array([101, 102, 102, 100, 101, 104])})


def of_patients(sizes):
    """Rows of patients with so many images each, in no order."""
    groups = np.random.default_rng(0).permutation(np.repeat([f"p{i}" for i in range(len(sizes))], sizes))
    ids = np.arange(len(groups)).astype(str)
    return Rows(ids, np.zeros(len(groups), int), groups, np.arange(len(groups)) + 100)


def test_two_different_images_of_a_patient_follow_each_other_and_each_patient_comes_once_an_epoch():
    known = of_patients([2, 3, 1, 4, 2, 1])
    sampler = PatientSampler({"reference": known}, {"reference": 4}, 0)
    batches = [sampler(step)["reference"] for step in range(200)]
    index = np.concatenate([batch["index"] for batch in batches]).reshape(-1, 2)
    groups = known.groups[index - 100]
    assert (index[:, 0] != index[:, 1]).all() and (groups[:, 0] == groups[:, 1]).all()
    epochs = groups[:, 0].reshape(-1, 4)
    assert {tuple(sorted(epoch)) for epoch in epochs.tolist()} == {("p0", "p1", "p3", "p4")}
    labels = np.concatenate([batch["label"] for batch in batches])
    assert len(set(zip(labels.tolist(), groups.ravel().tolist(), strict=True))) == 4  # a number a patient
    counts = collections.Counter(map(tuple, index[groups[:, 0] == "p3"].tolist()))
    assert len(counts) == 12 and sum((n - 100 / 12) ** 2 / (100 / 12) for n in counts.values()) < 31.3  # chi-square: 0.1%


def test_pairs_of_patients_hang_on_seed_and_step_alone_and_on_no_name():
    def make(seed, known):
        return PatientSampler({"reference": known}, {"reference": 6}, seed)

    known = of_patients([2, 3, 4, 5, 2])
    first, again = make(0, known)(7), make(0, known)
    again(3)
    renamed = dataclasses.replace(known, groups=np.array([f"x{-int(name[1:])}" for name in known.groups]))
    for other in (again(7), make(0, renamed)(7)):
        np.testing.assert_array_equal(other["reference"]["index"], first["reference"]["index"])
    assert (make(1, known)(7)["reference"]["index"] != first["reference"]["index"]).any()
    assert (make(0, known)(8)["reference"]["index"] != first["reference"]["index"]).any()


@pytest.mark.parametrize(
    ("streams", "sizes", "text"),
    [
        ({"a": [1, 1, 2]}, {"a": 4}, "data.streams.a: 1 patients have two images or more.*--groups=CSV"),
        ({"a": []}, {"a": 4}, "data.streams.a: 0 patients have two images or more"),
        ({"a": [2, 2]}, {"a": 3}, "data.streams.a=3: two images of a patient are drawn, use an even number"),
        ({"a": [2, 2], "b": [2, 2]}, {"a": 2, "b": 2}, "pairs of one patient are drawn from one stream, name one"),
    ],
)
def test_rows_without_pairs_of_patients_are_named(streams, sizes, text):
    with pytest.raises(ValueError, match=text):
        PatientSampler({name: of_patients(of) for name, of in streams.items()}, sizes, 0)
