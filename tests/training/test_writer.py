"""Metrics on disk."""

import io
import json
import struct
import time

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from fingerprint_jax.training import trackers
from fingerprint_jax.training.writer import Writer, keep_lines
from tests.conftest import untimed


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def events(path):
    """A file of TFRecords: length, its checksum, content, its checksum."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def pictures(path):
    """{(step, name): uint8 [H,W,3]} of the pictures in a file of events."""
    values = [(event.step, value) for event in events(path) for value in event.summary.value if value.HasField("image")]
    return {(step, v.tag): np.asarray(Image.open(io.BytesIO(v.image.encoded_image_string))) for step, v in values}


def test_events_are_not_written_through_a_link(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (link := tmp_path / "tensorboard" / "events.out.tfevents.1.host").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=f"{link} is a link"):
        Writer(tmp_path, "x", 4, 10, trackers.begin(None, ()))


def test_lines_and_events_hold_the_same(tmp_path):
    begin = time.time()
    writer = Writer(tmp_path, "x", 4, 10, trackers.begin(None, ()))
    writer.write(5, {"loss": 0.5, "accuracy": 0.25})
    writer.close(True)
    (line,) = _lines(tmp_path)
    assert untimed(line) == {"step": 5, "loss": 0.5, "accuracy": 0.25}
    assert begin - 0.001 <= line["time"] <= time.time() + 0.001 and line["time"] == round(line["time"], 3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    _, start, *found = events(file)
    assert start.step == 5 and start.session_log.status == start.session_log.START  # hides what a killed process wrote past step 4
    values = {v.tag: v.simple_value for event in found for v in event.summary.value}
    assert values == {"loss": 0.5, "accuracy": 0.25} and {event.step for event in found} == {5}


def test_images_lie_side_by_side_in_one_picture_of_the_events_alone(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 1)).astype(np.uint8)
    writer = Writer(tmp_path, "x", 0, 10, trackers.begin(None, ()))
    writer.pictures(7, {"translated": images})
    writer.close(True)
    assert not _lines(tmp_path)
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = pictures(file)
    assert found.keys() == {(7, "translated")}
    row = np.concatenate([images[i, :, :, 0] for i in range(4)], axis=1)
    np.testing.assert_array_equal(found[7, "translated"], np.repeat(row[..., None], 3, axis=2))


@pytest.mark.parametrize("end", ["", '{"step": 3, "lo', "\0\0\0\0\n", "[]\n", "{}\n"])
def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint(end, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)) + end)
    writer = Writer(tmp_path, "x", 2, 10, trackers.begin(None, ()))
    writer.write(3, {})
    writer.close(True)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3]


def test_lines_of_something_else_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line in ('{"step": "x"}', '{"step": [1]}', '{"step": null}', '{"step": 1e999}', "[" * 100_000):
        path.write_text(f'{{"step": 1}}\n{line}\n')
        assert keep_lines(path, 5) == 1 and path.read_text() == '{"step": 1}\n'
