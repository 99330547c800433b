"""Layers shared by the backbones."""

import jax
import jax.numpy as jnp
from flax import nnx


class Conv(nnx.Conv):
    """k x k convolution without bias, k odd, k//2 zeros on every side as in PyTorch ("SAME" pads otherwise where stride is 2).

    Initialised as He et al. 2015 (arXiv 1502.01852): normal with variance 2 / (k^2 * features).
    """

    def __init__(self, channels: int, features: int, kernel_size: int, stride: int = 1, *, dtype="float32", rngs: nnx.Rngs):
        super().__init__(
            channels,
            features,
            (kernel_size, kernel_size),
            strides=(stride, stride),
            padding=((kernel_size // 2, kernel_size // 2),) * 2,
            use_bias=False,
            dtype=jnp.dtype(dtype),
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            rngs=rngs,
        )
        self.size, self.stride = kernel_size, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,ceil(H/stride),ceil(W/stride),D]."""
        n, height, width, channels = x.shape
        rows, columns = range(0, height, self.stride), range(0, width, self.stride)
        # XLA:CPU is slow where a convolution ends in a map of 2x2 or less: 5 times for 4x4 -> 2x2, 150 times for 2x2 -> 2x2.
        if self.size == 1 or len(rows) > 2 or len(columns) > 2:
            return super().__call__(x)
        k, pad = self.size, self.size // 2
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        patches = [x[:, i : i + k, j : j + k].reshape(n, k * k * channels) for i in rows for j in columns]
        kernel = self.kernel[...].astype(self.dtype).reshape(k * k * channels, -1)
        return (jnp.stack(patches, axis=1) @ kernel).reshape(n, len(rows), len(columns), -1)


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation over (N, H, W) in float32; the result has the dtype of the input.

    In jit over a sharded batch the statistics are those of the global batch. The decay 0.9 is PyTorch's momentum 0.1; the
    running variance is the biased one, PyTorch's is n/(n-1) times that.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Same shape; `train` takes the batch's statistics and moves the running ones, else the running ones are used."""
        return super().__call__(x, use_running_average=not train).astype(x.dtype)


def max_pool2(x: jax.Array) -> jax.Array:
    """2x2 max-pool with stride 2, no padding: [N,H,W,C] -> [N,H//2,W//2,C].

    As a maximum over a reshaped array: the gradient of XLA's window reduction is a scatter, which is slow on CPU.
    """
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
