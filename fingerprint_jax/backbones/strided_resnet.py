"""The encoder of Neural Nexus' ResNet autoencoder (ImageCLEFmedical 2025): strided convolutions, a residual block after each.

A convolution is followed by batch normalisation and ReLU here; of that the paper says nothing.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm, Conv, Linear
from fingerprint_jax.backbones.resnet import Block

VARIANTS = {
    "strided_resnet": {"widths": (32, 64, 128, 256), "num_features": 512},
    "strided_resnet_map": {"widths": (64, 128, 256), "num_features": 0},  # of generators/latent
    "strided_resnet_tiny": {"widths": (4, 8), "num_features": 16},
    "strided_resnet_map_tiny": {"widths": (4, 8, 8), "num_features": 0},
}


class Stage(nnx.Module):
    """A 3x3 convolution of stride 2 and a residual block: [N,H,W,C] -> [N,ceil(H/2),ceil(W/2),D]."""

    def __init__(self, channels: int, width: int, dtype: str, rngs: nnx.Rngs) -> None:
        conv, norm = functools.partial(Conv, dtype=dtype, rngs=rngs), functools.partial(BatchNorm, rngs=rngs)
        self.conv, self.norm = conv(channels, width, 3, 2), norm(width)
        self.block = Block(width, width, 1, conv, norm)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The map after the block."""
        return self.block(nnx.relu(self.norm(self.conv(x), train=train)), train=train)


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], neither rectified nor normalised.

    Args:
        widths: of the stages.
        num_features: D, of the dense layer after the last stage; 0: none, features are the mean over the last map.
        channels: C.
        image_size: (H, W), any; it sets the size of the dense layer.
        rngs: `params` initialises.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self,
        *,
        widths: Sequence[int],
        num_features: int,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        dtype: str = "float32",
    ) -> None:
        self.stages = nnx.List()
        height, width = image_size
        for features in widths:
            self.stages.append(Stage(channels, features, dtype, rngs))
            channels, height, width = features, -(-height // 2), -(-width // 2)
        linear = functools.partial(Linear, dtype=jnp.dtype(dtype), rngs=rngs)
        self.dense = linear(height * width * channels, num_features) if num_features else None
        self.num_features = num_features or channels

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,C], C the last of `widths`."""
        x = images
        for stage in self.stages:
            x = stage(x, train=train)
        return x.astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        x = self.maps(images, train=train)
        return x.mean(axis=(1, 2)) if self.dense is None else self.dense(x.reshape(len(x), -1)).astype(jnp.float32)
