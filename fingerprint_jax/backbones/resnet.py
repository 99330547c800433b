"""ResNet of basic blocks (He et al. 2015, arXiv 1512.03385), as torchvision builds it."""

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm, Conv

VARIANTS = {
    "resnet18": {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2)},
    "resnet_tiny": {"widths": (8, 16), "depths": (1, 1)},
}


class Block(nnx.Module):
    """Two 3x3 convolutions and a shortcut: [N,H,W,C] -> [N,H/stride,W/stride,D]."""

    def __init__(self, channels: int, features: int, stride: int, dtype: str, rngs: nnx.Rngs):
        self.conv1 = Conv(channels, features, 3, stride, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(features, rngs=rngs)
        self.conv2 = Conv(features, features, 3, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(features, rngs=rngs)
        projected = stride != 1 or channels != features
        self.shortcut = Conv(channels, features, 1, stride, dtype=dtype, rngs=rngs) if projected else None
        self.shortcut_norm = BatchNorm(features, rngs=rngs) if projected else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The map after the block."""
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), train=train)
        return nnx.relu(x + y)


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], D the last of `widths`.

    Args:
        widths: features of each stage; every stage but the first halves the map.
        depths: blocks of each stage.
        channels: C.
        image_size: any; the net is convolutional.
        rngs: `params` initialises.
        stem: imagenet (7x7 stride 2, then 3x3 max-pool stride 2) or native (3x3 stride 1, which keeps the finest pixels).
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self, *, widths, depths, channels: int, image_size, rngs: nnx.Rngs, stem: str = "imagenet", dtype: str = "float32"
    ):
        if stem not in ("imagenet", "native"):
            raise ValueError(f"backbone.stem={stem!r} is unknown: use imagenet or native")
        self.pool = stem == "imagenet"
        kernel_size, stride = (7, 2) if self.pool else (3, 1)
        self.stem = Conv(channels, widths[0], kernel_size, stride, dtype=dtype, rngs=rngs)
        self.stem_norm = BatchNorm(widths[0], rngs=rngs)
        self.blocks = nnx.List()
        channels = widths[0]
        for stage, (features, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                self.blocks.append(Block(channels, features, 2 if stage and not block else 1, dtype, rngs))
                channels = features
        self.num_features = channels

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D], the mean over the last map."""
        x = nnx.relu(self.stem_norm(self.stem(images), train=train))
        if self.pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for block in self.blocks:
            x = block(x, train=train)
        return x.mean(axis=(1, 2), dtype=jnp.float32)
