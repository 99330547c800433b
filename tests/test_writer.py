"""Metrics on disk."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from fingerprint_jax.writer import Writer


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def _events(path):
    """A file of TFRecords: length, its checksum, content, its checksum."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_lines_and_events_hold_the_same(tmp_path):
    writer = Writer(tmp_path, "x", 4, 10)
    writer.write(5, {"loss": 0.5, "accuracy": 0.25})
    writer.close()
    assert _lines(tmp_path) == [{"step": 5, "loss": 0.5, "accuracy": 0.25}]
    (file,) = (tmp_path / "tensorboard").iterdir()
    _, start, *events = _events(file)
    assert start.step == 5 and start.session_log.status == start.session_log.START  # hides what a killed process wrote past step 4
    found = {v.tag: v.simple_value for event in events for v in event.summary.value}
    assert found == {"loss": 0.5, "accuracy": 0.25} and {event.step for event in events} == {5}


@pytest.mark.parametrize("end", ["", '{"step": 3, "lo', "\0\0\0\0\n", "[]\n", "{}\n"])
def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint(end, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)) + end)
    writer = Writer(tmp_path, "x", 2, 10)
    writer.write(3, {})
    writer.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3]
