"""The real binary in a process of its own, and what it left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inference
from tests import processes
from tests.conftest import ROOT, untimed

STEPS, INTERVAL = 20, 2


def command(data_dir, workdir, *flags) -> list[str]:
    """A small ResNet with BatchNorm, Adam and averaged weights, a save every second step."""
    fields = {
        "data_dir": data_dir,
        "num_steps": STEPS,
        "checkpoint_every": INTERVAL,
        "eval_every": 10,
        "data.cache": "none",
        "optimizer.ema_decay": 0.9,
    }
    config = ["--config=configs/subtask2/medhastra_resnet18.py:smoke", *(f"--config.{k}={v}" for k, v in fields.items())]
    return ["fingerprint_jax.main", *config, f"--workdir={workdir}", *flags]


def start(data_dir, workdir, *flags, **env) -> subprocess.Popen | processes.Process:
    binary = command(data_dir, workdir, *flags)
    if not env and not any(flag.startswith("--config.data.workers") for flag in flags):
        return processes.Process(*binary)
    return subprocess.Popen(
        [sys.executable, "-m", *binary],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(data_dir, workdir, *flags, **env) -> str:
    """Runs to the end; standard error."""
    process = start(data_dir, workdir, *flags, **env)
    _, text = process.communicate()
    assert process.returncode == 0, text
    return text


def steps(workdir) -> list[dict]:
    """The lines of metrics.jsonl that are whole."""
    path = Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]


def last_step(workdir) -> int:
    return max((line["step"] for line in steps(workdir)), default=0)


def history(workdir) -> list[dict]:
    """Metrics without those that are times."""
    return [untimed(line) for line in steps(workdir)]


def saved(workdir) -> list[int]:
    return list(checkpoint.Checkpoints(Path(workdir)).manifests())


def unfinished_saves(workdir) -> list[str]:
    """What a kill inside a save leaves: folders without a manifest."""
    folder = Path(workdir) / "checkpoints"
    known = set(map(str, saved(workdir)))
    return [path.name for path in folder.iterdir() if path.name not in known] if folder.exists() else []


def state(workdir, which="latest") -> dict[str, bytes]:
    """Every array of a checkpoint: path -> bytes."""
    run = Run.load(workdir)
    return arrays(inference.restore(run, which, whole=True)[1])


def arrays(tree) -> dict[str, bytes]:
    """Every array of a tree: path -> bytes."""
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in jax.tree_util.tree_leaves_with_path(tree)}
