"""Every published size through the real binaries: `make full`, a table row a variant, then a row a network of subtask 1.

Each is trained for some steps on the phantom, once to the end and once with a SIGTERM on the way and a second start, which must
end in the same bytes; then the 20 images of the test split are predicted.

    python -m tests.backbones.full_sizes [variant or system ...]
"""

import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fingerprint_jax import backbones
from fingerprint_jax.data import packing, phantom, tables
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runtime.preemption import RUN_AGAIN
from tests.conftest import ROOT, load_config
from tests.faults import trainer

SIZE, BATCH, STEPS = 64, 8, 8
TAOZI = {
    "resnet50": {},
    "efficientnet_b0": {},
    "vit_base_patch16": {"backbone.norm_groups": 1, "data.normalize": "symmetric", "augment.brightness": 0.36},
}
QUEUE = {"objective.queue": 64}
# The network of a system of subtask 1: its config, where its fields and its run lie, and the fields that make the size.
SYSTEMS = {
    f"scope, {name}": (
        "scope_siamese_cross_attention",
        "member.",
        "children/seed0",
        {"backbone.name": name},
    )
    for name in ("resnet50", "densenet161", "efficientnet_b2", "vit_base_patch16")
} | {
    "challengers_resnet50v2": ("challengers_resnet50v2", "member.", "children/seed0", {}),
    "aimm_siamese": ("aimm_siamese", "member.", "children/seed0", {}),
    "likelihood_ratio": ("likelihood_ratio", "member.", "children/seed0", {}),
    "reidentification": ("reidentification", "member.", "children/seed0", {}),
    "neural_nexus_vit_autoencoder": ("neural_nexus_vit_autoencoder", "member.", "children/seed0", {"pretrain.num_steps": 2}),
    "neural_nexus_texture": ("neural_nexus_texture", "member.member.", "children/encoder-*", {}),
    "neural_nexus_dclgan": ("neural_nexus_dclgan", "member.", "children/seed0", {}),
    # Of the queue as many keys as there are images to hold, of the pairs as many as there are real ones. With the published
    # thresholds: after so few steps from drawn weights all scores can be the same, from which none is learned.
    **{
        f"taozi_moco, {name}": ("taozi_moco:published", "member.", "children/seed0", {"backbone.name": name} | more | QUEUE)
        for name, more in TAOZI.items()
    },
    "taozi_experts": ("taozi_experts:published", "member.", "children/seed0", QUEUE),
    "zhouyijiang_canet": (
        "zhouyijiang_canet",
        "member.",
        "children/seed0",
        {"pairs.candidates": 5, "pairs.member.backbone.weights": ""},
    ),
}


def pack_phantom(folder: Path) -> Path:
    """Both subtasks and a task images, packed, of 64 px, 20 images in each test split."""
    content = {
        "subtask1": phantom.subtask1(seed=0, size=SIZE, leak=0.5, real=20, generated=60, unknown=20, reference=20),
        "subtask2": phantom.subtask2(seed=0, size=SIZE, leak=0.5, real=8, generated=20, unknown=20),
    }
    for task, splits in content.items():
        root = folder / task
        phantom.write(root, task, splits, seed=0)
        reference = root / "reference" if task == "subtask1" else ""
        packing.pack(task, folder / "data", root / "train", root / "test", reference, root / "groups.csv")
    packing.pack("images", folder / "data", folder / "subtask2" / "train" / "real")
    return folder / "data"


def start(name: str, data: Path, workdir: Path) -> subprocess.Popen:
    """A training of one variant, or of one system."""
    fields = {"num_steps": STEPS, "checkpoint_every": STEPS // 2, "log_every": 1}
    if name in SYSTEMS:
        config, prefix, _, more = SYSTEMS[name]
        config, _, variant = config.partition(":")
        path, whole = f"configs/subtask1/{config}.py", {"data.folds": 2, "data.fold": 0}
        fields |= {"backbone.weights": ""} | more
        fields |= {f"data.streams.{stream}": BATCH for stream in network_config(load_config(path, variant)).data.streams}
        fields, path = {f"{prefix}{key}": value for key, value in fields.items()} | whole, f"{path}:{variant}"
    else:
        path = "configs/quickstart.py"
        fields |= {"backbone.name": name, "data.valid": 0.0, "best": "", "data.streams.generated": BATCH}
    flags = [f"--config.{key}={value}" for key, value in (fields | {"data_dir": data}).items()]
    command = [sys.executable, "-m", "fingerprint_jax.main", f"--config={path}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def trained(name: str, workdir: Path) -> Path:
    """Where the network of a run lies, or will."""
    return next(iter(workdir.glob(SYSTEMS[name][2])), workdir / "none") if name in SYSTEMS else workdir


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
    while trainer.last_step(trained(name, halves)) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    finish(process, RUN_AGAIN)
    (stopped,) = trainer.saved(trained(name, halves))
    assert 2 <= stopped < STEPS
    assert f"resumes at step {stopped}\n" in finish(start(name, data, halves))
    state = trainer.state(trained(name, whole))
    assert trainer.state(trained(name, halves)) == state, name
    split = "test_real" if name in SYSTEMS else "test_generated"
    evaluate = [sys.executable, "-m", "fingerprint_jax.evaluate", f"--workdir={halves}", f"--split={split}"]
    subprocess.run(evaluate, cwd=ROOT, check=True, capture_output=True)
    ids, scores, _ = tables.read_predictions(halves / "predictions" / f"{split}.csv")
    assert len(set(ids)) == len(scores) == 20 and np.isfinite(scores).all()
    if name not in SYSTEMS:
        assert scores.shape[1] == 5
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    losses = [line["loss"] for line in trainer.steps(trained(name, whole)) if "loss" in line]
    assert len(losses) == STEPS and all(map(math.isfinite, losses))
    count = sum(len(value) for path, value in state.items() if path.startswith("['params']")) // 4
    loss = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return [name, f"{count:,}", f"{STEPS}, {loss}", f"at {stopped}, same bytes", "20", f"{seconds:.0f} s"]


def main() -> None:
    """Prints the table."""
    names = sys.argv[1:] or [*(name for name in backbones.variants() if not backbones.for_tests(name)), *SYSTEMS]
    with tempfile.TemporaryDirectory() as data:
        packed = pack_phantom(Path(data))
        print("| variant | parameters, head included | steps | resumed | predictions | first training, compilation included |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {' | '.join(check(name, packed, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
