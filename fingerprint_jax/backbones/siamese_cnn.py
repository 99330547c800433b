"""The small CNN of AI Multimedia Lab (CLEF 2025 working notes): four convolutions with ReLU and max-pool, a dense layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones import initializers
from fingerprint_jax.backbones.layers import Conv, Linear, max_pool2

VARIANTS = {
    "siamese_cnn": {"widths": (16, 32, 64, 128), "num_features": 256},
    "siamese_cnn_tiny": {"widths": (4, 8, 16, 32), "num_features": 16},
}

_glorot = initializers.glorot_uniform  # Keras's default, the framework of the published system


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], neither rectified nor normalised.

    Args:
        widths: features of the four convolutions, 3x3 without padding, each followed by a 2x2 max-pool.
        num_features: D.
        channels: C.
        image_size: (H, W), at least 46 pixels a side; it sets the size of the dense layer.
        rngs: `params` initialises.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 46  # 46 -> 22 -> 10 -> 4 -> 1

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
        options = {"dtype": jnp.dtype(dtype), "kernel_init": _glorot, "rngs": rngs}
        self.convs = nnx.List()
        height, width = image_size
        for features in widths:
            self.convs.append(Conv(channels, features, 3, bias=True, padding="valid", **options))
            channels, height, width = features, (height - 2) // 2, (width - 2) // 2
        self.dense = Linear(height * width * channels, num_features, **options)
        self.num_features = num_features

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,C], C the last of `widths`."""
        x = images
        for conv in self.convs:
            x = max_pool2(nnx.relu(conv(x)))
        return x.astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        x = self.maps(images, train=train)
        return self.dense(x.reshape(len(x), -1)).astype(jnp.float32)
