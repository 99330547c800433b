"""Turns, ratios and the peer."""

import sys

import pytest

from benchmarks.timing import Peer, PeerError, ratios, rounds, shown, spread, turns

PEER = """
import json, os, sys
print(json.dumps({"answers": os.environ["ANSWERS"]}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "end" in request:
        sys.exit(3)
    print(json.dumps({"error": "too odd"} if request["x"] % 2 else {"y": request["x"] ** 2}), flush=True)
"""


def test_the_ratio_is_one_a_repeat():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    # The medians, 2 and 2, have the ratio 1; those of the repeats are 4, 1 and 0.5.
    assert ratios([4.0, 2.0, 1.0], [1.0, 2.0, 2.0]) == {"median": 1.0, "min": 0.5, "max": 4.0}
    assert shown({"median": 1234.5, "min": 1, "max": 10000}, ",.1f") == "1,234.5 (1.0 to 10,000.0)"


def test_the_sides_take_turns():
    seen = []
    sides = {name: lambda name=name: seen.append(name) or len(seen) for name in "ab"}
    assert turns(sides, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert seen == ["a", "b"] * 3


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 4), (0.1, 1), (0.0, 1)])
def test_rounds_fill_the_time(seconds, expected):
    assert rounds(lambda n: 0.25 * n, seconds) == expected


def test_a_peer_answers_fails_and_ends(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    peer = Peer(sys.executable, str(script), ANSWERS="squares")
    assert peer.about == {"answers": "squares"}
    assert peer.ask(x=4) == {"y": 16}
    with pytest.raises(PeerError, match="too odd"):
        peer.ask(x=3)
    assert peer.ask(x=2) == {"y": 4}
    with pytest.raises(PeerError, match="the peer ended with status 3"):
        peer.ask(end=True)


def test_a_closed_peer_is_gone(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    peer = Peer(sys.executable, str(script), ANSWERS="squares")
    peer.close()
    assert peer.process.returncode == 0
