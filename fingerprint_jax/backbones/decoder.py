"""From features back to an image, as in Neural Nexus' autoencoders (ImageCLEFmedical 2025): transposed convolutions of stride 2."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones import conv_ops, initializers
from fingerprint_jax.backbones.layers import BatchNorm, Conv, Linear
from fingerprint_jax.backbones.resnet import Block


def leaky_relu(x: jax.Array) -> jax.Array:
    """x where it is positive, else x / 10."""
    return nnx.leaky_relu(x, negative_slope=0.1)


class TransposedConv(nnx.Module):
    """4x4 transposed convolution of stride 2 without bias, see `conv_ops.transposed`: [N,H,W,C] -> [N,2H,2W,D]."""

    def __init__(self, channels: int, features: int, *, dtype: str = "float32", rngs: nnx.Rngs) -> None:
        init = initializers.variance_scaling(8.0, "fan_in", "normal")  # He's 2, of a kernel of which an output sees a fourth
        self.kernel = nnx.Param(init(rngs.params(), (4, 4, channels, features), jnp.float32))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Twice the size."""
        return conv_ops.transposed(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


class Step(nnx.Module):
    """A transposed convolution and a residual block, with batch normalisation: [N,H,W,C] -> [N,2H,2W,D]."""

    def __init__(self, channels: int, width: int, dtype: str, rngs: nnx.Rngs) -> None:
        conv, norm = functools.partial(Conv, dtype=dtype, rngs=rngs), functools.partial(BatchNorm, rngs=rngs)
        self.conv, self.norm = TransposedConv(channels, width, dtype=dtype, rngs=rngs), norm(width)
        self.block = Block(width, width, 1, conv, norm, leaky_relu)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The map after the block."""
        return self.block(leaky_relu(self.norm(self.conv(x), train=train)), train=train)


class Decoder(nnx.Module):
    """features [N,D] -> images [N,H,W,C]; or a map [N,h,w,D], h and w the size of the first one.

    Args:
        num_features: D.
        widths: channels of the first map, which a dense layer makes (of a map a convolution), then of each step, which doubles it.
        channels: C.
        image_size: (H, W), any: the first map is as small as will do, and the last one is cut off at the bottom and right.
        squash: whether the images are the tanh of the last convolution.
        rngs: `params` initialises.
        dtype: of the arithmetic, float32 or bfloat16; images are float32.
        of_map: whether it is given a map.
    """

    def __init__(
        self,
        num_features: int,
        *,
        widths: Sequence[int],
        channels: int,
        image_size: tuple[int, int],
        squash: bool,
        rngs: nnx.Rngs,
        dtype: str = "float32",
        of_map: bool = False,
    ) -> None:
        first, *steps = widths
        self.image_size, self.squash = tuple(image_size), squash
        self.map_size = tuple(-(-size // 2 ** len(steps)) for size in image_size)
        if of_map:
            self.first = Conv(num_features, first, 3, bias=True, dtype=dtype, rngs=rngs)
        else:
            self.dense = Linear(num_features, self.map_size[0] * self.map_size[1] * first, dtype=jnp.dtype(dtype), rngs=rngs)
        self.of_map = of_map
        self.steps = nnx.List()
        for width in steps:
            self.steps.append(Step(first, width, dtype, rngs))
            first = width
        # He's initialisation is that of a layer before ReLU; with it tanh would begin where it is flat.
        init = initializers.lecun_normal
        self.last = Conv(first, channels, 3, bias=True, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """The images."""
        x = self.first(features) if self.of_map else self.dense(features).reshape(len(features), *self.map_size, -1)
        for step in self.steps:
            x = step(x, train=train)
        height, width = self.image_size
        x = self.last(x)[:, :height, :width].astype(jnp.float32)
        return jnp.tanh(x) if self.squash else x
