"""The convolutions of backbones/conv_ops.py against XLA's own, at the shapes where the two differ.

    python -m benchmarks.convolutions

A line a shape: milliseconds of ours and of `lax.conv_general_dilated`, forward and with the gradients of map and kernel, and the
ratio (above 1 ours is faster) with the least and the largest. They are processor time of all threads, which says what a way costs
where other work has the cores, too. Both sides take turns in one process; medians of several.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from benchmarks.timing import ratios, shown, turns
from fingerprint_jax.backbones.layers import Conv, DepthwiseConv
from fingerprint_jax.runtime import cli
from fingerprint_jax.runtime.progress import show_log

# Images, side of the map, channels, features (None: depthwise), kernel size, stride.
SHAPES = [
    (8, 56, 64, 256, 1, 1),
    (16, 16, 64, 256, 1, 1),
    (8, 56, 64, 64, 3, 1),
    (16, 28, 128, 128, 3, 1),
    (32, 31, 16, 32, 3, 1),
    (32, 31, 32, 64, 3, 2),
    (32, 15, 64, 128, 3, 1),
    (16, 14, 256, 256, 3, 1),
    (32, 14, 32, 64, 3, 1),
    (16, 8, 128, 128, 3, 1),
    (16, 2, 512, 512, 3, 1),
    (16, 4, 256, 512, 3, 2),
    (4, 56, 144, None, 3, 1),
    (16, 8, 240, None, 5, 1),
    (16, 4, 480, None, 3, 1),
    (4, 56, 144, None, 3, 2),
]


def functions(layer: nnx.Module, groups: int, kernel_size: int, stride: int) -> dict[str, tuple[Callable, Callable]]:
    """Name -> (ours, XLA's), both of (kernel, map)."""
    graph = nnx.graphdef(layer)
    pad = [(kernel_size // 2, kernel_size // 2)] * 2

    def ours(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, nnx.State({"kernel": nnx.Param(kernel)}))(x)

    def theirs(kernel: jax.Array, x: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=dims, feature_group_count=groups)

    def gradients(f: Callable) -> Callable:
        return jax.jit(jax.grad(lambda kernel, x: (f(kernel, x) ** 2).sum(), argnums=(0, 1)))

    return {"forward": (jax.jit(ours), jax.jit(theirs)), "gradients": (gradients(ours), gradients(theirs))}


def milliseconds(f: Callable, *args: Any) -> float:
    """Processor time of one call."""
    start = time.process_time()
    jax.block_until_ready(f(*args))
    return 1000 * (time.process_time() - start)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_integer("repeats", 5, "Turns of each side.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints the table."""
    show_log()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; milliseconds of processor time: ours, XLA's, ratio")
    for n, side, channels, features, kernel_size, stride in SHAPES:
        rngs = nnx.Rngs(0)
        if features:
            layer, groups = Conv(channels, features, kernel_size, stride, rngs=rngs), 1
        else:
            layer, groups = DepthwiseConv(channels, kernel_size, stride, rngs=rngs), channels
        args = layer.kernel[...], jax.random.normal(jax.random.key(1), (n, side, side, channels), jnp.float32)
        text = f"{n}x{side}x{side}, {channels:>3} -> {features or 'depthwise':<9} {kernel_size}x{kernel_size} stride {stride}"
        for name, pair in functions(layer, groups, kernel_size, stride).items():
            for f in pair * 2:  # compiles; a second call, since the first ones are slower
                milliseconds(f, *args)
            sides = {side: lambda f=f: milliseconds(f, *args) for side, f in zip(("ours", "XLA's"), pair, strict=True)}  # noqa: B023
            times = turns(sides, values.repeats)
            ours, theirs = times.values()
            text += f"   {name} {statistics.median(ours):.1f} {statistics.median(theirs):.1f} {shown(ratios(theirs, ours))}"
        print(text, flush=True)


if __name__ == "__main__":
    cli.run("convolutions", define_flags, main, devices=True)
