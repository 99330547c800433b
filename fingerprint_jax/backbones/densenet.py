"""DenseNet with bottlenecks and compression (Huang et al. 2017, arXiv 1608.06993), as torchvision builds it."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm, Conv, dropout
from fingerprint_jax.backbones.resnet import Stem

VARIANTS = {
    "densenet121": {"growth": 32, "depths": (6, 12, 24, 16)},
    "densenet161": {"growth": 48, "depths": (6, 12, 36, 24)},
    "densenet_tiny": {"growth": 4, "depths": (2, 2)},
}

TIMM = [
    (r"^stem/(conv|norm)", r"features/\g<1>0"),
    (r"^blocks/(\d+)/(\d+)", lambda at: f"features/denseblock{int(at[1]) + 1}/denselayer{int(at[2]) + 1}"),
    (r"^transitions/(\d+)", lambda at: f"features/transition{int(at[1]) + 1}"),
    (r"^norm/", "features/norm5/"),
]


class DenseLayer(nnx.Module):
    """1x1 to four times the growth, then 3x3, each after normalisation and ReLU: [N,H,W,C] -> [N,H,W,growth]."""

    def __init__(self, channels: int, growth: int, rate: float, conv: Callable, norm: Callable) -> None:
        self.norm1, self.conv1 = norm(channels), conv(channels, 4 * growth, 1)
        self.norm2, self.conv2 = norm(4 * growth), conv(4 * growth, growth, 3)
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """The new features."""
        x = self.conv1(nnx.relu(self.norm1(x, train=train)))
        x = self.conv2(nnx.relu(self.norm2(x, train=train)))
        return dropout(x, self.rate, train=train, rngs=rngs)


class Transition(nnx.Module):
    """1x1 to half the features, then 2x2 mean: [N,H,W,C] -> [N,H//2,W//2,C//2]."""

    def __init__(self, channels: int, conv: Callable, norm: Callable) -> None:
        self.norm, self.conv = norm(channels), conv(channels, channels // 2, 1)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The halved map."""
        x = self.conv(nnx.relu(self.norm(x, train=train)))
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D].

    Args:
        growth: features that every layer adds.
        depths: layers of each block; the map is halved between blocks.
        channels: C.
        image_size: any from `min_size`; the net is convolutional.
        rngs: `params` initialises.
        stem: imagenet or native, see `resnet.Stem`.
        dropout: of each layer's new features; the paper takes 0.2 where training has no augmentation.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 29  # -> 8 after the stem -> 4 -> 2 -> 1

    def __init__(
        self,
        *,
        growth: int,
        depths: Sequence[int],
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        stem: str = "imagenet",
        dropout: float = 0.0,
        dtype: str = "float32",
    ) -> None:
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(BatchNorm, rngs=rngs)
        self.stem = Stem(channels, 2 * growth, stem, conv, norm)
        self.blocks, self.transitions = nnx.List(), nnx.List()
        channels = 2 * growth
        for block, depth in enumerate(depths):
            if block:
                self.transitions.append(Transition(channels, conv, norm))
                channels //= 2
            self.blocks.append(nnx.List())
            for _ in range(depth):
                self.blocks[-1].append(DenseLayer(channels, growth, dropout, conv, norm))
                channels += growth
        self.norm = norm(channels)
        self.num_features = channels

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,D]."""
        x = self.stem(images, train=train)
        for i, block in enumerate(self.blocks):
            if i:
                x = self.transitions[i - 1](x, train=train)
            for layer in block:
                x = jnp.concatenate([x, layer(x, train=train, rngs=rngs)], axis=-1)
        return nnx.relu(self.norm(x, train=train)).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D], the mean over the last map."""
        return self.maps(images, train=train, rngs=rngs).mean(axis=(1, 2))
