"""Speed of the backbones: training step, inference and compilation, against PyTorch and timm where they are given.

    python -m benchmarks.backbones --peer_python=/path/to/torch/bin/python --output=benchmarks/results/cpu.json
    python -m benchmarks.backbones --names=resnet50 --sizes=224 --batch=64 --dtype=bfloat16     # on a GPU, no PyTorch needed

The peer, a Python that has torch and timm, runs benchmarks/torch_peer.py in a process of its own. The two sides take turns on
the same cores: a repeat is some steps of one, then of the other, and gives one ratio, the peer's time by ours (above 1 we are
faster). Reported is the median ratio with the least and the largest. Both sides: one grey channel, two
classes, SGD with momentum, PyTorch's default layout (NCHW), as many threads as the machine has cores; the peer in float32.

Compilation is timed twice from the trace on: with an empty persistent cache, then with the entry that this left there.
"""

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from fingerprint_jax import backbones

NAMES = (
    "siamese_cnn,resnet18,resnet50,resnet50v2,densenet121,efficientnet_b0,efficientnet_lite0,mobilenet_v2,"
    "vit_tiny_patch16,vit_small_patch16"
)


class Peer:
    """A process with another library, that answers the requests of a script beside this file."""

    def __init__(self, python: str, script: str = "torch_peer.py"):
        path = Path(__file__).with_name(script)
        self.process = subprocess.Popen([python, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            raise RuntimeError(f"the peer ended with status {self.process.wait()}; its error stands above")
        return json.loads(line)

    def ask(self, **request) -> dict:
        """The answer to a request."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()


class Net(nnx.Module):
    """A backbone and a head for two classes."""

    def __init__(self, name: str, size: int, dtype: str, key: jax.Array):
        rngs = nnx.Rngs(key)
        self.backbone = backbones.build(name, image_size=(size, size), dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(self.backbone.num_features, 2, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits [N,2]."""
        return self.head(self.backbone(images, train=train, rngs=rngs))


class Ours:
    """One step of a backbone, of training (SGD with momentum) or of inference, on random images."""

    def __init__(self, name: str, size: int, batch: int, train: bool, dtype: str):
        build = functools.partial(Net, name, size, dtype)
        graph = nnx.split(nnx.eval_shape(build, jax.random.key(0)))[0]
        params, rest = jax.jit(lambda key: nnx.split(build(key), nnx.Param, ...)[1:])(jax.random.key(0))
        images, labels = jax.random.uniform(jax.random.key(1), (batch, size, size, 1)), jnp.arange(batch) % 2
        optimizer = optax.sgd(1e-3, momentum=0.9)

        def training(state, images, labels):
            params, rest, moments = state

            def loss_fn(params):
                net = nnx.merge(graph, params, rest, copy=True)
                logits = net(images, train=True, rngs=nnx.Rngs(dropout=jax.random.key(2)))
                loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
                return loss, nnx.state(net, nnx.Not(nnx.Param))

            (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), rest, moments), loss

        def inference(state, images, labels):
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


def spread(values: list[float]) -> dict:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(name: str, size: int, train: bool, args, peer: Peer | None) -> dict:
    """One row of the results."""
    row = {"name": name, "size": size, "batch": args.batch, "step": "training" if train else "inference"}
    with tempfile.TemporaryDirectory() as cache:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", cache)
        ours = Ours(name, size, args.batch, train, args.dtype)
        row["compile_seconds"] = {"cold": ours.compile(), "cached": ours.compile()}
    ours.run(1)
    steps = max(1, round(args.seconds / ours.run(1)))
    if peer:
        peer.ask(name=name, size=size, batch=args.batch, train=train)
        peer.ask(steps=1)
        peer_steps = max(1, round(args.seconds / peer.ask(steps=1)["seconds"]))
    times, peer_times = [], []
    for _ in range(args.repeats):
        times.append(ours.run(steps) / steps)
        if peer:
            peer_times.append(peer.ask(steps=peer_steps)["seconds"] / peer_steps)
    row["milliseconds"] = spread([1000 * t for t in times])
    row["images_per_second"] = args.batch / statistics.median(times)
    if peer:
        row["peer_milliseconds"] = spread([1000 * t for t in peer_times])
        row["ratio"] = spread([theirs / t for theirs, t in zip(peer_times, times, strict=True)])
    return row


def main():
    """Measures, prints a line a row, writes the file after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=NAMES, help="variants")
    parser.add_argument("--sizes", default="64,224", help="sides of the images in pixels")
    parser.add_argument("--steps", default="training,inference")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=backbones.DTYPES, help="of our side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in each repeat, at least one step")
    parser.add_argument("--peer_python", help="a Python that has torch and timm")
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    peer = Peer(args.peer_python) if args.peer_python else None
    results = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "dtype": args.dtype,
        "peer": peer.about if peer else None,
        "rows": [],
    }
    for name, size, step in itertools.product(args.names.split(","), args.sizes.split(","), args.steps.split(",")):
        row = measure(name, int(size), step == "training", args, peer)
        results["rows"].append(row)
        text = f"{name:20} {size:>4} px {step:9} {row['milliseconds']['median']:9.1f} ms"
        text += "   compile {cold:6.1f} s, cached {cached:5.1f} s".format(**row["compile_seconds"])
        if peer:
            text += "   ratio {median:5.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
        print(text, flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
