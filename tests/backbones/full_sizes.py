"""Every published size through the real binaries: `make full`, a table row a variant.

Each is trained for some steps on the phantom, once to the end and once with a SIGTERM on the way and a second start, which must
end in the same bytes; then the 20 images of the test split are predicted.

    python -m tests.backbones.full_sizes [variant ...]
"""

import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fingerprint_jax import backbones, pack, tables
from fingerprint_jax.data import phantom
from fingerprint_jax.preemption import RUN_AGAIN
from tests.conftest import ROOT
from tests.faults import trainer

SIZE, BATCH, STEPS = 64, 8, 8


def pack_phantom(folder: Path) -> Path:
    """A packed subtask 2 of 64 px, 20 test images."""
    content = phantom.subtask2(seed=0, size=SIZE, leak=0.5, real=8, generated=20, unknown=20)
    phantom.write(folder / "images", "subtask2", content, seed=0)
    pack.pack("subtask2", str(folder / "data"), str(folder / "images" / "train"), str(folder / "images" / "test"), "")
    return folder / "data"


def start(name: str, data: Path, workdir: Path) -> subprocess.Popen:
    """A training of one variant."""
    fields = {
        "data_dir": data,
        "backbone.name": name,
        "num_steps": STEPS,
        "checkpoint_every": STEPS // 2,
        "log_every": 1,
        "data.valid": 0.0,
        "best": "",
        "data.streams.generated": BATCH,
    }
    flags = [f"--config.{key}={value}" for key, value in fields.items()]
    command = [sys.executable, "-m", "fingerprint_jax.main", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits; what it wrote to standard error."""
    _, text = process.communicate()
    assert process.returncode == status, (process.returncode, text)
    return text


def check(name: str, data: Path, folder: Path) -> list[str]:
    """Trains, resumes and predicts; the cells of the row."""
    begin = time.monotonic()
    whole, halves = folder / "whole", folder / "halves"
    finish(start(name, data, whole))
    seconds = time.monotonic() - begin
    process = start(name, data, halves)
    while trainer.last_step(halves) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    finish(process, RUN_AGAIN)
    (stopped,) = trainer.saved(halves)
    assert 2 <= stopped < STEPS
    assert f"resumes at step {stopped}\n" in finish(start(name, data, halves))
    state = trainer.state(whole)
    assert trainer.state(halves) == state, name
    evaluate = [sys.executable, "-m", "fingerprint_jax.evaluate", f"--workdir={halves}", "--split=test_generated"]
    subprocess.run(evaluate, cwd=ROOT, check=True, capture_output=True)
    ids, scores, _ = tables.read_predictions(halves / "predictions" / "test_generated.csv")
    assert scores.shape == (20, 5) and len(set(ids)) == 20
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    losses = [line["loss"] for line in trainer.steps(whole) if "loss" in line]
    assert len(losses) == STEPS and all(map(math.isfinite, losses))
    count = sum(len(value) for path, value in state.items() if path.startswith("['params']")) // 4
    loss = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return [name, f"{count:,}", f"{STEPS}, {loss}", f"at {stopped}, same bytes", "20", f"{seconds:.0f} s"]


def main() -> None:
    """Prints the table."""
    names = sys.argv[1:] or [name for name in backbones.variants() if not name.endswith("tiny")]
    with tempfile.TemporaryDirectory() as data:
        packed = pack_phantom(Path(data))
        print("| variant | parameters, head included | steps | resumed | predictions | first training, compilation included |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {' | '.join(check(name, packed, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
