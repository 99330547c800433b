"""How parameters are drawn at the beginning: the values of jax.nn.initializers, by a few programs for all shapes.

XLA takes longer to compile the random numbers of a network than its training step, where each parameter has a program of its own or
all are in one. JAX's random numbers do not depend on how many are drawn (`jax_threefry_partitionable`): those of a shape are the
first of more, so that one program serves all shapes up to a size.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

_KINDS = {
    "normal": jax.random.normal,
    "truncated_normal": functools.partial(jax.random.truncated_normal, lower=-2.0, upper=2.0),  # of standard deviation _TRUNCATED
    "uniform": functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0),
}
_TRUNCATED = 0.87962566103423978
_LEAST = 1024


@functools.partial(jax.jit, static_argnums=(1, 2))
def _numbers(key: jax.Array, kind: str, count: int) -> jax.Array:
    return _KINDS[kind](key, shape=(count,), dtype=jnp.float32)


def _drawn(key: jax.Array, kind: str, shape: tuple[int, ...], factor: float) -> jax.Array:
    count = _LEAST
    while count < math.prod(shape):
        count *= 4
    numbers = _numbers(key, kind, count)
    if not isinstance(numbers, Tracer):  # else what follows would be a program a shape
        numbers = np.asarray(numbers)
    return jnp.asarray(numbers[: math.prod(shape)].reshape(shape) * np.float32(factor))


def normal(deviation: float) -> nnx.Initializer:
    """Normal of that standard deviation."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return _drawn(key, "normal", shape, deviation).astype(dtype)

    return draw


def variance_scaling(
    scale: float, mode: Literal["fan_in", "fan_out", "fan_avg"], distribution: Literal["normal", "truncated_normal", "uniform"]
) -> nnx.Initializer:
    """Of variance `scale` by the inputs or outputs of a unit, or their mean; kernels are [.., inputs, outputs]."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        places = math.prod(shape[:-2])
        fans = {"fan_in": places * shape[-2], "fan_out": places * shape[-1], "fan_avg": places * (shape[-2] + shape[-1]) / 2}
        factor = {"normal": 1.0, "truncated_normal": 1 / _TRUNCATED, "uniform": math.sqrt(3)}[distribution]
        return _drawn(key, distribution, shape, factor * math.sqrt(scale / fans[mode])).astype(dtype)

    return draw


he_normal = variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, arXiv 1502.01852, as PyTorch's ResNets have it
lecun_normal = variance_scaling(1.0, "fan_in", "truncated_normal")
glorot_uniform = variance_scaling(1.0, "fan_avg", "uniform")
