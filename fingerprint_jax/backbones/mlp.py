"""A perceptron of all pixels at once, with residual blocks. For small images, whose every place has weights of its own."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones.layers import Linear
from fingerprint_jax.backbones.layers import dropout as drop
from fingerprint_jax.backbones.vit import LayerNorm

VARIANTS = {
    "mlp": {"width": 512, "depth": 3},
    "mlp_tiny": {"width": 16, "depth": 1},
}


class Block(nnx.Module):
    """Two dense layers with GELU, after normalisation and added to their input: [N,D] -> [N,D]."""

    def __init__(self, width: int, dropout: float, dtype: np.dtype, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(width, rngs)
        self.fc1, self.fc2 = (Linear(width, width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.rate = dropout

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """The features after the block."""
        return x + drop(self.fc2(nnx.gelu(self.fc1(self.norm(x)))), self.rate, train=train, rngs=rngs)


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], after a last normalisation.

    Args:
        width: D.
        depth: blocks.
        channels: C.
        image_size: (H, W), any; it sets the size of the first layer.
        rngs: `params` initialises.
        dropout: of each block's output.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        dropout: float = 0.0,
        dtype: str = "float32",
    ) -> None:
        precision = jnp.dtype(dtype)
        self.dense = Linear(image_size[0] * image_size[1] * channels, width, dtype=precision, rngs=rngs)
        self.blocks = nnx.List([Block(width, dropout, precision, rngs) for _ in range(depth)])
        self.norm = LayerNorm(width, rngs)
        self.num_features = width

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """A map of one place [N,1,1,D]."""
        x = self.dense(images.reshape(len(images), -1))
        for block in self.blocks:
            x = block(x, train=train, rngs=rngs)
        return self.norm(x).astype(jnp.float32)[:, None, None]

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        return self.maps(images, train=train, rngs=rngs)[:, 0, 0]
