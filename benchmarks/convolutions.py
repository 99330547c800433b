"""The convolutions of backbones/conv_ops.py against XLA's own, at the shapes where the two differ.

    python -m benchmarks.convolutions

A line a shape: milliseconds of ours and of `lax.conv_general_dilated`, forward and with the gradients of map and kernel, and the
ratio (above 1 ours is faster). Both sides take turns; medians of several runs.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import Conv, DepthwiseConv

# Images, side of the map, channels, features (None: depthwise), kernel size, stride.
SHAPES = [
    (16, 56, 64, 256, 1, 1),
    (16, 16, 64, 256, 1, 1),
    (16, 56, 64, 64, 3, 1),
    (16, 28, 128, 128, 3, 1),
    (16, 14, 256, 256, 3, 1),
    (16, 16, 64, 64, 3, 1),
    (8, 127, 16, 32, 3, 1),
    (16, 2, 512, 512, 3, 1),
    (16, 4, 256, 512, 3, 2),
    (16, 56, 144, None, 3, 1),
    (16, 28, 240, None, 5, 1),
    (16, 56, 144, None, 3, 2),
]
REPEATS = 5


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
    """Of one call."""
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Prints the table."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; milliseconds: ours, XLA's, ratio")
    for n, side, channels, features, kernel_size, stride in SHAPES:
        rngs = nnx.Rngs(0)
        if features:
            layer, groups = Conv(channels, features, kernel_size, stride, rngs=rngs), 1
        else:
            layer, groups = DepthwiseConv(channels, kernel_size, stride, rngs=rngs), channels
        args = layer.kernel[...], jax.random.normal(jax.random.key(1), (n, side, side, channels), jnp.float32)
        text = f"{n}x{side}x{side}, {channels:>3} -> {features or 'depthwise':<9} {kernel_size}x{kernel_size} stride {stride}"
        for name, pair in functions(layer, groups, kernel_size, stride).items():
            for f in pair:
                milliseconds(f, *args)  # compiles
            times = [[milliseconds(f, *args) for f in pair] for _ in range(REPEATS)]
            ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            text += f"   {name} {ours:8.1f} {theirs:8.1f} {theirs / ours:6.2f}"
        print(text, flush=True)


if __name__ == "__main__":
    main()
