"""The command itself, shrunk."""

import json
import os
import subprocess
import sys

import pytest
from absl import flags

from benchmarks.__main__ import define_flags, main, pin
from tests.conftest import ROOT


def test_rows_are_measured_and_kept(tmp_path):
    output = tmp_path / "quick.json"
    rows = ["loader/64", "training/siamese_cnn/64/float32", "loop", "dispatch", "pairs"]
    command = [sys.executable, "-m", "benchmarks", "--quick", "--cores=0", f"--output={output}", f"--rows={','.join(rows)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert list(results["rows"]) == rows and results["cores"] == len(os.sched_getaffinity(0)) and results["quick"]
    for name, row in results["rows"].items():
        measured = [line for line in row["lines"] if "figure" in line]
        assert measured and all(0 < line["figure"]["min"] <= line["figure"]["median"] for line in measured)
        assert all("needs --peer_python" in line["open"] for line in row["lines"] if line not in measured)
        assert f"| {name}: " in done.stdout
    assert 0 < results["rows"]["training/siamese_cnn/64/float32"]["lines"][0]["flops_per_second"]


def test_quick_figures_do_not_reach_the_page():
    values = flags.FlagValues()
    define_flags(values)
    values(["benchmarks", "--quick"])
    with pytest.raises(ValueError, match="--quick: .* give another --output"):
        main(values)


def test_more_cores_than_there_are_are_refused():
    before = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match=f"--cores=4096: this process may use {len(before)}"):
        pin(4096)
    assert os.sched_getaffinity(0) == before
