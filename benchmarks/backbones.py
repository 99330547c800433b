"""Speed of the backbones: training step, inference and compilation, against PyTorch and timm where they are given.

    python -m benchmarks.backbones --peer_python=/path/to/torch/bin/python --output=benchmarks/results/backbones/cpu.json
    python -m benchmarks.backbones --names=resnet50 --sizes=224 --batch=64 --dtype=bfloat16     # on a GPU, no PyTorch needed

The peer, a Python that has torch and timm, runs benchmarks/torch_peer.py in a process of its own. The two sides take turns on
the same cores: a repeat is some steps of one, then of the other, and gives one ratio, the peer's time by ours (above 1 we are
faster). Reported is the median ratio with the least and the largest. Both sides: one grey channel, two
classes, SGD with momentum, PyTorch's default layout (NCHW), as many threads as the machine has cores; the peer in float32.

Compilation is timed twice from the trace on: with an empty persistent cache, then with the entry that this left there.
"""

import functools
import itertools
import json
import os
import platform
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import optax
from absl import flags
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.timing import Peer, ratios, rounds, shown, spread, turns
from fingerprint_jax import backbones
from fingerprint_jax.runtime import cli, files, paths
from fingerprint_jax.runtime.progress import show_log

NAMES = [
    *("siamese_cnn", "resnet18", "resnet50", "resnet50v2", "densenet121", "efficientnet_b0", "efficientnet_lite0", "mobilenet_v2"),
    *("vit_tiny_patch16", "vit_small_patch16"),
]


class Net(nnx.Module):
    """A backbone and a head for two classes."""

    def __init__(self, name: str, size: int, dtype: str, key: jax.Array) -> None:
        rngs = nnx.Rngs(key)
        self.backbone = backbones.build(name, image_size=(size, size), dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(self.backbone.num_features, 2, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits [N,2]."""
        return self.head(self.backbone(images, train=train, rngs=rngs))


class Ours:
    """One step of a backbone, of training (SGD with momentum) or of inference, on random images."""

    def __init__(self, name: str, size: int, batch: int, train: bool, dtype: str) -> None:
        build = functools.partial(Net, name, size, dtype)
        graph = nnx.split(nnx.eval_shape(build, jax.random.key(0)))[0]
        params, rest = jax.jit(lambda key: nnx.split(build(key), nnx.Param, ...)[1:])(jax.random.key(0))
        images, labels = jax.random.uniform(jax.random.key(1), (batch, size, size, 1)), jnp.arange(batch) % 2
        optimizer = optax.sgd(1e-3, momentum=0.9)

        def training(state: tuple, images: jax.Array, labels: jax.Array) -> tuple[tuple, jax.Array]:
            params, rest, moments = state

            def loss_fn(params: nnx.State) -> tuple[jax.Array, nnx.State]:
                net = nnx.merge(graph, params, rest, copy=True)
                logits = net(images, train=True, rngs=nnx.Rngs(dropout=jax.random.key(2)))
                loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
                return loss, nnx.state(net, nnx.Not(nnx.Param))

            (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), rest, moments), loss

        def inference(state: tuple, images: jax.Array, labels: jax.Array) -> tuple[tuple, jax.Array]:
            return state, nnx.merge(graph, *state[:2])(images, train=False)

        self.step = jax.jit(training if train else inference, donate_argnums=0)
        self.state, self.inputs = (params, rest, optimizer.init(params)), (images, labels)

    def compile(self) -> float:
        """Seconds of tracing and compiling."""
        jax.clear_caches()
        start = time.perf_counter()
        self.compiled = self.step.lower(self.state, *self.inputs).compile()
        return time.perf_counter() - start

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        out = None
        start = time.perf_counter()
        for _ in range(steps):
            self.state, out = self.compiled(self.state, *self.inputs)
        jax.block_until_ready((self.state, out))
        return time.perf_counter() - start


def measure(name: str, size: int, train: bool, values: flags.FlagValues, peer: Peer | None) -> dict:
    """One row of the results."""
    row = {"name": name, "size": size, "batch": values.batch, "step": "training" if train else "inference"}
    with tempfile.TemporaryDirectory() as cache:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", cache)
        ours = Ours(name, size, values.batch, train, values.dtype)
        row["compile_seconds"] = {"cold": ours.compile(), "cached": ours.compile()}
    runs = {"ours": ours.run}
    if peer:
        peer.ask(make="net", kind="classifier", name=name, size=size, batch=values.batch, train=train)
        runs["peer"] = lambda steps: peer.ask(run="net", steps=steps)["seconds"]
    for run in runs.values():
        run(1)
    counts = {side: rounds(run, values.seconds) for side, run in runs.items()}
    sides = {side: lambda run=run, count=counts[side]: 1000 * run(count) / count for side, run in runs.items()}
    times = turns(sides, values.repeats)
    row["milliseconds"] = spread(times["ours"])
    row["images_per_second"] = 1000 * values.batch / statistics.median(times["ours"])
    if peer:
        row["peer_milliseconds"], row["ratio"] = spread(times["peer"]), ratios(times["peer"], times["ours"])
    return row


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("names", NAMES, "Variants.", flag_values=values)
    flags.DEFINE_list("sizes", ["64", "224"], "Sides of the images in pixels.", flag_values=values)
    flags.DEFINE_list("steps", ["training", "inference"], "Which steps.", flag_values=values)
    flags.DEFINE_integer("batch", 16, "Images a step.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("dtype", "float32", backbones.DTYPES, "Of our side.", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Turns of each side.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 1.0, "Of a turn, at least one step.", flag_values=values)
    paths.define("peer_python", None, "A Python that has torch and timm.", flag_values=values)
    paths.define("output", None, "A JSON file.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Measures, prints a line a row, writes the file after every row."""
    show_log()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    peer = Peer(values.peer_python) if values.peer_python else None
    results = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "dtype": values.dtype,
        "peer": peer.about if peer else None,
        "rows": [],
    }
    for name, size, step in itertools.product(values.names, values.sizes, values.steps):
        row = measure(name, int(size), step == "training", values, peer)
        results["rows"].append(row)
        text = f"{name:20} {size:>4} px {step:9} {row['milliseconds']['median']:9.1f} ms"
        text += "   compile {cold:6.1f} s, cached {cached:5.1f} s".format(**row["compile_seconds"])
        if peer:
            text += f"   ratio {shown(row['ratio'])}"
        print(text, flush=True)
        if values.output:
            files.write_text(values.output, json.dumps(results, indent=1))


if __name__ == "__main__":
    cli.run("backbones", define_flags, main, devices=True)
