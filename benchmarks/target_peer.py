"""What a training step is compiled to for a device that is not here, beside that of the same network in plain Flax.

    python -m benchmarks.target_peer

Network, batch, dtype, optimizer (Adam), loss and compiler are the same. Ours is the step of the training loop as it is, from raw
uint8 with its metrics and its checks; the peer's (benchmarks/flax_peer.py) is the step of Flax's ImageNet example, whose images are
of the dtype of the arithmetic already. Each program is compiled in a process of its own. Results go to
benchmarks/results/targets/peer.json at once, and from there into docs/performance.md. The same command goes on where it
was stopped.
"""

import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from benchmarks import flax_peer, rows, table
from benchmarks.targets import kept
from fingerprint_jax.runtime import cli, files, sharding, targets
from fingerprint_jax.training import hlo
from fingerprint_jax.training.model import Model

OUTPUT = rows.ROOT / "benchmarks" / "results" / "targets" / "peer.json"
DOCS = rows.ROOT / "docs" / "performance.md"
MARKS = "<!-- target peer: begin -->\n", "<!-- target peer: end -->\n"
TARGETS = ("h100", "tpu-v5e")
PIXELS, CLASSES = 224, 5
FIGURES = ("bytes", "kernels", "temporaries", "flops")
HEADER = (
    "| network | target, images | bytes | ratio | kernels | ratio | temporaries | ratio | FLOPs | ratio | floor by bytes to that by"
    " FLOPs | CPU seconds to compile |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def our_step(name: str, batch: int, dtype: str, mesh: jax.sharding.Mesh) -> tuple[Any, tuple]:
    """Our training step of a classifier, and what it takes, without content."""
    config = rows.classifier(name, batch, dtype)
    if name.startswith("efficientnet"):
        config.backbone.dropout = config.backbone.stochastic_depth = 0.0  # the peer has neither
    model = Model(config, CLASSES, (PIXELS, PIXELS, 1), mesh)
    stream = {"image": ((batch, PIXELS, PIXELS, 1), np.uint8), "label": ((batch,), np.int32), "index": ((batch,), np.int32)}
    images = {"generated": {name: jax.ShapeDtypeStruct(*each) for name, each in stream.items()}}
    whole, split = sharding.replicated(mesh), sharding.split(mesh)
    key = jax.eval_shape(jax.random.key, 0)
    trees = (model.abstract, whole), (images, split), ({}, whole), (np.float32(0), whole), (key, whole)
    return model.step, tuple(sharding.abstract(tree, place) for tree, place in trees)


def peer_step(name: str, batch: int, dtype: str, mesh: jax.sharding.Mesh) -> tuple[Any, tuple]:
    """The peer's training step, as Flax's ImageNet example has it, and what it takes, without content."""
    network = flax_peer.NETWORKS[name](CLASSES, jnp.dtype(dtype))
    optimizer = optax.adam(1e-4)
    images = jax.ShapeDtypeStruct((batch, PIXELS, PIXELS, 1), dtype)
    labels = jax.ShapeDtypeStruct((batch,), np.int32)

    def init(key: jax.Array) -> dict[str, Any]:
        variables = network.init(key, jnp.zeros((1, PIXELS, PIXELS, 1), dtype), train=False)
        return {**variables, "opt": optimizer.init(variables["params"])}

    def step(state: dict[str, Any], images: jax.Array, labels: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        rest = {name: value for name, value in state.items() if name not in ("params", "opt")}

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, new = network.apply({"params": params, **rest}, images, train=True, mutable=list(rest))
            return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(state["params"])
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt, **new}, value

    whole, split = sharding.replicated(mesh), sharding.split(mesh)
    state = jax.eval_shape(init, jax.random.key(0))
    arguments = ((state, whole), (images, split), (labels, split))
    return jax.jit(step, donate_argnums=0), tuple(sharding.abstract(tree, place) for tree, place in arguments)


STEPS = {"ours": our_step, "peer": peer_step}


def measure(side: str, name: str, batch: int, dtype: str, target: targets.Target, text: str = "") -> dict[str, float]:
    """What a step is compiled to; the text of the program goes to the file `text` where one is named."""
    # As the step is written for the platform: XLA counts the FLOPs of no program that is compiled for a GPU.
    function, arguments = STEPS[side](name, batch, dtype, sharding.make_mesh())
    written: Any = function.trace(*arguments).lower(lowering_platforms=(target.device.platform,))
    flops = written.cost_analysis()["flops"]
    function, arguments = STEPS[side](name, batch, dtype, target.mesh())
    before = sum(os.times()[:4])
    compiled = function.lower(*arguments).compile()
    seconds = sum(os.times()[:4]) - before
    if text:
        Path(text).write_text(compiled.as_text())
    program, memory = hlo.read(compiled.as_text()), compiled.memory_analysis()
    return {
        "bytes": program.bytes,
        "kernels": sum(program.kernels.values()),
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "flops": flops,
        "seconds": seconds,
    }


def key(name: str, target: str, batch: int, dtype: str) -> str:
    """Of a comparison in the file of results."""
    return f"{name}/{target}/{batch}/{dtype}"


def in_child(side: str, name: str, batch: int, dtype: str, target: targets.Target) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.target_peer", f"--one={side},{name},{batch},{dtype},{target}"]
    done = subprocess.run(command, cwd=rows.ROOT, env=targets.child_environment(target), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{side} {name} for {target}: {(done.stderr.strip().splitlines() or ['it ended'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, found: dict[str, dict[str, float]]) -> str:
    """A comparison as a row of Markdown: ours, and ours to the peer's."""
    network, target, batch, _ = name.split("/")
    device = targets.parse(target).device
    ours, peer = found["ours"], found["peer"]
    shown = {
        "bytes": f"{ours['bytes'] / 2**30:.2f} GiB",
        "kernels": f"{ours['kernels']:,}",
        "temporaries": f"{ours['temporaries'] / 2**30:.2f} GiB",
        "flops": f"{ours['flops']:.3g}",
    }
    cells = [f"{shown[figure]} | {ours[figure] / peer[figure]:.3f}" for figure in FIGURES]
    floors = [side["bytes"] / device.bandwidth / (side["flops"] / device.bfloat16) for side in (ours, peer)]
    seconds = f"{ours['seconds']:.0f}, peer {peer['seconds']:.0f}"
    return f"| `{network}` | `{target}`, {batch} | {' | '.join(cells)} | {floors[0]:.2f}, peer {floors[1]:.2f} | {seconds} |"


def tables(results: dict[str, Any]) -> str:
    """All comparisons as a table."""
    made = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [row(name, found) for name, found in results["rows"].items()]
    return "\n".join([f"Compiled with {made}.\n", HEADER, *lines]) + "\n"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("rows", [], "Compile these, patterns such as resnet50/*; default: what is open.", flag_values=values)
    flags.DEFINE_integer("batch", 128, "Images a step.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the arithmetic.", flag_values=values)
    flags.DEFINE_string("one", "", "SIDE,NETWORK,BATCH,DTYPE,TARGET: compiles this alone.", flag_values=values)
    flags.DEFINE_string("text", "", "With --one: a file for the text of the program.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Compiles, and writes file and page after every network."""
    if values.one:
        side, name, batch, dtype, target = values.one.split(",")
        print(json.dumps(measure(side, name, int(batch), dtype, targets.parse(target), values.text)))
        return
    results = kept(OUTPUT)
    known = [(name, target) for name in flax_peer.NETWORKS for target in TARGETS]
    names = {key(name, target, values.batch, values.dtype): (name, target) for name, target in known}
    for pattern in values.rows:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"--rows={pattern}: no such row, use {', '.join(names)}, or patterns such as resnet50/*")
    for row_name, (name, target) in names.items():
        chosen = any(fnmatch.fnmatch(row_name, pattern) for pattern in values.rows)
        if not (chosen or not values.rows and row_name not in results["rows"]):
            continue
        sides = {side: in_child(side, name, values.batch, values.dtype, targets.parse(target)) for side in STEPS}
        results["rows"][row_name] = sides
        files.write_text(OUTPUT, json.dumps(results, indent=1))
        table.place(DOCS, MARKS, tables(results))
        print(row(row_name, sides), flush=True)


if __name__ == "__main__":
    cli.run("target_peer", define_flags, main)
