"""ResNet of pre-activation bottlenecks (He et al. 2016, arXiv 1603.05027), as timm builds it: the stride is in the 3x3."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm, Conv
from fingerprint_jax.backbones.resnet import Stem

VARIANTS = {
    "resnet50v2": {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3)},
    "resnetv2_tiny": {"widths": (8, 16), "depths": (2, 1)},
}

TIMM = [(r"^stages/(\d+)/", r"stages/\1/blocks/"), (r"shortcut", "downsample/conv")]


class Block(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, each after normalisation and ReLU, and a shortcut: [N,H,W,C] -> [N,H/stride,W/stride,D].

    D is four times the width. The first block of a stage projects its shortcut, from the normalised map.
    """

    def __init__(self, channels: int, width: int, stride: int, projected: bool, conv: Callable, norm: Callable) -> None:
        self.norm1, self.conv1 = norm(channels), conv(channels, width, 1)
        self.norm2, self.conv2 = norm(width), conv(width, width, 3, stride)
        self.norm3, self.conv3 = norm(width), conv(width, 4 * width, 1)
        self.shortcut = conv(channels, 4 * width, 1, stride) if projected else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The map after the block."""
        y = nnx.relu(self.norm1(x, train=train))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = nnx.relu(self.norm2(self.conv1(y), train=train))
        y = nnx.relu(self.norm3(self.conv2(y), train=train))
        return x + self.conv3(y)


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], D four times the last of `widths`.

    Args:
        widths: width of each stage; every stage but the first halves the map.
        depths: blocks of each stage.
        channels: C.
        image_size: any; the net is convolutional.
        rngs: `params` initialises.
        stem: imagenet or native, see `resnet.Stem`; without normalisation, the first block has it.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        stem: str = "imagenet",
        dtype: str = "float32",
    ) -> None:
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(BatchNorm, rngs=rngs)
        self.stem = Stem(channels, widths[0], stem, conv, norm=None)
        self.stages = nnx.List()
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            self.stages.append(nnx.List())
            for i in range(depth):
                self.stages[-1].append(Block(channels, width, 2 if stage and not i else 1, i == 0, conv, norm))
                channels = 4 * width
        self.norm = norm(channels)
        self.num_features = channels

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,D]."""
        x = self.stem(images, train=train)
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        return nnx.relu(self.norm(x, train=train)).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D], the mean over the last map."""
        return self.maps(images, train=train).mean(axis=(1, 2))
