"""Training steps a second and memory of every objective; a step of MoCo beside one of two views without what MoCo adds.

    python -m benchmarks.objectives --sizes=64,256 --backbones=published --batch=32

An objective is that of the first config under configs/ that trains it. The images are noise that lies on the device already. Beside
MoCo's step stands one of the same encoder on the same two views, with the gradient through one of them and without momentum encoder
and queue; they take turns in one process, and a repeat gives one ratio.
"""

import importlib
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from benchmarks.timing import ratios, shown, turns
from fingerprint_jax import Config, objectives
from fingerprint_jax.data import tasks
from fingerprint_jax.objectives import moco
from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runtime import cli, sharding
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.training import cost
from fingerprint_jax.training.model import Model


class TwoViews(moco.Objective):
    """One encoder: the keys of a batch are its own, without a gradient."""

    trainable = nnx.Param

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The encoder."""
        return self.encoder(rngs)

    def loss(self, net: Any, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """InfoNCE among the images of the batch."""
        images, second = (jnp.concatenate([stream[name] for stream in batch.values()]) for name in ("image", "second"))
        keys = jax.lax.stop_gradient(net(second, train=True, rngs=nnx.Rngs(dropout=key))[0])
        queries, temperature = net(images, train=True, rngs=nnx.Rngs(dropout=key))
        return losses.info_nce(queries, keys, keys, temperature), {}


def configs(variant: str) -> dict[str, Config]:
    """Objective -> the config of its network."""
    found = {}
    for path in sorted(Path("configs").glob("subtask*/*.py")):
        if path.stem != "__init__":
            config = network_config(importlib.import_module(".".join(path.with_suffix("").parts)).get_config(variant))
            if config.method == "gradient" and config.num_steps:
                found.setdefault(config.objective.name, config)
    return found


class Step:
    """The compiled step of a config on a batch of noise: `batch` images in all, shared as its streams are; 0: its own.

    `mib` is what it holds in memory, `flops` what XLA counts.
    """

    def __init__(self, config: Config, size: int, batch: int) -> None:
        streams, shape = config.data.streams.to_dict(), (size, size, 1)
        if batch:
            if batch < 2 * len(streams):
                raise ValueError(f"--batch={batch}: {len(streams)} streams need {2 * len(streams)} images or more")
            largest, all_images = max(streams, key=lambda name: streams[name]), sum(streams.values())
            streams = {name: max(2, round(batch * count / all_images)) for name, count in streams.items()}
            streams[largest] += batch - sum(streams.values())
        self.images = sum(streams.values())
        if "queue" in config.objective:
            config.objective.queue = -(-config.objective.queue // self.images) * self.images
        classes = len(tasks.of(config.task).classes)
        model, rng = Model(config, classes, shape), np.random.default_rng(0)
        content = {
            name: {
                "image": rng.integers(0, 256, (count, *shape), np.uint8),
                "label": np.arange(count, dtype=np.int32) % classes,
                "index": np.arange(count, dtype=np.int32),
            }
            for name, count in streams.items()
        }
        self.state = model.init(jax.random.key(0))
        self.arguments = jax.device_put(content, sharding.split(model.mesh)), {}, jnp.float32(1e-4), jax.random.key(1)
        lowered: Any = model.step.lower(self.state, *self.arguments)
        self.flops, self.step = cost.flops_of(lowered, model.mesh.size), lowered.compile()
        memory = self.step.memory_analysis()
        self.mib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
        self.seconds(1)

    def seconds(self, steps: int) -> float:
        """Time of a step, the mean of some."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.step(self.state, *self.arguments)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - begin) / steps


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("names", [], "Objectives, all if empty.", flag_values=values)
    flags.DEFINE_list("sizes", ["64", "256"], "Sides of the images in pixels.", flag_values=values)
    flags.DEFINE_enum("backbones", "tiny", ["tiny", "published"], "Which size of the networks.", flag_values=values)
    flags.DEFINE_integer("batch", 0, "Images a step; 0: those of the config.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("steps", 5, "Steps of a turn.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Turns.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each objective and size, and the ratios of MoCo."""
    show_log()
    known = configs("smoke" if values.backbones == "tiny" else "")
    print("| objective | backbone | pixels | images a step | steps a second | MiB |\n|---|---|---|---|---|---|")
    for size in map(int, values.sizes):
        for name in values.names or sorted(known):
            step = Step(known[name], size, values.batch)
            rate = 1 / statistics.median(step.seconds(values.steps) for _ in range(values.repeats))
            backbone = known[name].backbone.name
            print(f"| `{name}` | {backbone} | {size} | {step.images} | {rate:.3g} | {step.mib:,.0f} |", flush=True)
            if name == "moco":
                with mock.patch.object(moco, "Objective", TwoViews):
                    plain = Step(known[name], size, values.batch)
                sides = {"moco": lambda: step.seconds(values.steps), "plain": lambda: plain.seconds(values.steps)}  # noqa: B023
                times = turns(sides, values.repeats)
                text = shown(ratios(times["moco"], times["plain"]))
                print(f"| `moco` to two views, time of a step | {backbone} | {size} | {step.images} | {text} | |", flush=True)


if __name__ == "__main__":
    cli.run("objectives", define_flags, main, devices=True)
