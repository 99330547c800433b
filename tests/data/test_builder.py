import functools
import pathlib
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fingerprint_jax.data import builder
from fingerprint_jax.data.source import Source


def records(count, offset=0):
    for i in range(count):
        image = np.full((4, 6, 1), (i + offset) % 256, np.uint8)
        yield {"id": f"t1/ü{count - i:04d}", "image": image, "label": i % 3 - 1, "group": f"g{i // 2}"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    splits = {"train_real": functools.partial(records, 300), "test_real": functools.partial(records, 2, 100)}
    builder.write(root, "subtask1", splits, (4, 6, 1))
    return root


def test_the_place_is_named_by_task_and_version(written):
    place = builder.dataset_dir(written, "subtask1")
    assert place == written / "fingerprint" / "subtask1" / "1.0.0"
    assert sorted(p.name for p in place.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "fingerprint-test_real.array_record-00000-of-00001",
        "fingerprint-train_real.array_record-00000-of-00001",
    ]


def test_records_come_back_in_the_order_given(written):
    source = tfds.builder_from_directory(str(builder.dataset_dir(written, "subtask1"))).as_data_source("train_real")
    assert len(source) == 300
    for got, expected in zip(source.__getitems__(range(300)), records(300), strict=True):
        assert (got["id"].decode(), got["label"], got["group"].decode()) == (
            expected["id"],
            expected["label"],
            expected["group"],
        )
        np.testing.assert_array_equal(got["image"], expected["image"])
        assert got["image"].dtype == np.uint8


def test_other_files_in_the_folder_do_not_disturb(written):
    place = builder.dataset_dir(written, "subtask1")
    (place / "files.csv").write_text("split,id\n")
    reader = tfds.builder_from_directory(str(place))
    assert sorted(reader.info.splits) == ["test_real", "train_real"]
    assert reader.as_data_source("test_real")[1]["image"][0, 0, 0] == 101


def test_an_error_of_a_record_reaches_the_caller(tmp_path):
    def broken():
        yield from records(1)
        raise ValueError("x.png: changed while it was packed")

    with pytest.raises(ValueError, match="^x.png: changed while it was packed$"):
        builder.write(tmp_path, "images", {"train": broken}, (4, 6, 1))


def test_nothing_is_left_in_the_folder_for_temporary_files(tmp_path, monkeypatch):
    def broken():
        yield from records(1)
        raise ValueError("broken")

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    builder.write(tmp_path, "images", {"train": functools.partial(records, 3)}, (4, 6, 1))
    with pytest.raises(ValueError, match="broken"):
        builder.write(tmp_path / "other", "images", {"train": broken}, (4, 6, 1))
    assert not list((tmp_path / "temporary").iterdir())


def test_the_folder_or_task_that_was_meant_is_named(data_dir, packs, tmp_path):
    root = pathlib.Path(data_dir)
    for wrong in (root / "fingerprint", root / "fingerprint" / "subtask1"):
        with pytest.raises(ValueError, match=f"no packed data for task 'subtask1' .*; did you mean {root}\\?$"):
            Source(str(wrong), "subtask1")
    (tmp_path / "below").symlink_to(root)
    with pytest.raises(ValueError, match=f"; did you mean {tmp_path}/below\\?$"):
        Source(str(tmp_path), "subtask1")
    with pytest.raises(ValueError, match="; it has subtask1: give a config of that task, or run fingerprint_jax.pack$"):
        Source(packs["other"], "subtask2")
    with pytest.raises(ValueError, match="; there is no such folder; run fingerprint_jax.pack$"):
        Source(str(tmp_path / "nowhere"), "subtask2")
