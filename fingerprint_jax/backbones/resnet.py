"""ResNet (He et al. 2015, arXiv 1512.03385), as torchvision builds it: the stride of a bottleneck is in its 3x3 convolution."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm, Conv

VARIANTS = {
    "resnet18": {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "bottleneck": False},
    "resnet50": {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "bottleneck": True},
    "resnet_tiny": {"widths": (8, 16), "depths": (1, 1), "bottleneck": False},
    "resnet_bottleneck_tiny": {"widths": (4, 8), "depths": (2, 1), "bottleneck": True},
}

TIMM = [
    (r"^stem/conv", "conv1"),
    (r"^stem/norm", "bn1"),
    (r"^stages/(\d+)/", lambda stage: f"layer{int(stage[1]) + 1}/"),
    (r"shortcut_norm", "downsample/1"),
    (r"shortcut", "downsample/0"),
    (r"norm(\d)", r"bn\1"),
]


@jax.custom_vjp
def max_pool3(x: jax.Array) -> jax.Array:
    """3x3 max-pool with stride 2, padded by 1: [N,H,W,C] -> [N,ceil(H/2),ceil(W/2),C].

    On a TPU as XLA's window reduction, whose gradient goes to the first of equal maxima. Elsewhere as maxima of shifted arrays,
    which share it: the gradient of the window reduction takes twice the time on CPU, and `xla_gpu_deterministic_ops` refuses it.
    """
    return jax.lax.platform_dependent(x, tpu=_window_maxima, default=_shifted_maxima)


def _window_maxima(x: jax.Array) -> jax.Array:
    pad = (0, 0), (1, 1), (1, 1), (0, 0)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pad)


def _shifted_maxima(x: jax.Array) -> jax.Array:
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = functools.reduce(jnp.maximum, [x[:, i : i + h : 2] for i in range(3)])
    return functools.reduce(jnp.maximum, [x[:, :, j : j + w : 2] for j in range(3)])


def _pooled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return max_pool3(x), x


def _gradient_of_pooled(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    ways = [lambda x, g, way=way: jax.vjp(way, x)[1](g)[0] for way in (_window_maxima, _shifted_maxima)]
    return (jax.lax.platform_dependent(x, gradient, tpu=ways[0], default=ways[1]),)


max_pool3.defvjp(_pooled, _gradient_of_pooled)


class Stem(nnx.Module):
    """The first layers of ResNet and DenseNet: [N,H,W,C] -> [N,h,w,D].

    Args:
        channels: C.
        features: D.
        kind: imagenet (7x7 stride 2, then 3x3 max-pool stride 2) or native (3x3 stride 1, which keeps the finest pixels).
        conv: makes a convolution.
        norm: makes a normalisation, followed by ReLU; None leaves both out, as pre-activation does.
    """

    def __init__(self, channels: int, features: int, kind: str, conv: Callable, norm: Callable | None) -> None:
        self.pool = kind == "imagenet"
        self.conv = conv(channels, features, 7, 2) if self.pool else conv(channels, features, 3)
        self.norm = norm(features) if norm else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The map after the stem."""
        x = self.conv(x)
        if self.norm is not None:
            x = nnx.relu(self.norm(x, train=train))
        if self.pool:
            x = max_pool3(x)
        return x


class Block(nnx.Module):
    """Two 3x3 convolutions and a shortcut: [N,H,W,C] -> [N,H/stride,W/stride,D], D the width."""

    expansion = 1

    def __init__(
        self, channels: int, width: int, stride: int, conv: Callable, norm: Callable, activation: Callable = nnx.relu
    ) -> None:
        self.conv1, self.norm1 = conv(channels, width, 3, stride), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3), norm(width)
        projected = stride != 1 or channels != width
        self.shortcut = conv(channels, width, 1, stride) if projected else None
        self.shortcut_norm = norm(width) if projected else None
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The map after the block."""
        y = self.activation(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), train=train)
        return self.activation(x + y)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: [N,H,W,C] -> [N,H/stride,W/stride,D], D four times the width."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, conv: Callable, norm: Callable) -> None:
        features = width * self.expansion
        self.conv1, self.norm1 = conv(channels, width, 1), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3, stride), norm(width)
        self.conv3, self.norm3 = conv(width, features, 1), norm(features)
        projected = stride != 1 or channels != features
        self.shortcut = conv(channels, features, 1, stride) if projected else None
        self.shortcut_norm = norm(features) if projected else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The map after the block."""
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = nnx.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(y), train=train)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), train=train)
        return nnx.relu(x + y)


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], D the last of `widths`, four times that with bottlenecks.

    Args:
        widths: width of each stage; every stage but the first halves the map.
        depths: blocks of each stage.
        bottleneck: blocks of three convolutions in place of two.
        channels: C.
        image_size: any; the net is convolutional.
        rngs: `params` initialises.
        stem: imagenet or native, see `Stem`.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        bottleneck: bool,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        stem: str = "imagenet",
        dtype: str = "float32",
    ) -> None:
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(BatchNorm, rngs=rngs)
        block = Bottleneck if bottleneck else Block
        self.stem = Stem(channels, widths[0], stem, conv, norm)
        self.stages = nnx.List()
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            self.stages.append(nnx.List())
            for i in range(depth):
                self.stages[-1].append(block(channels, width, 2 if stage and not i else 1, conv, norm))
                channels = width * block.expansion
        self.num_features = channels

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,D]."""
        x = self.stem(images, train=train)
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        return x.astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D], the mean over the last map."""
        return self.maps(images, train=train).mean(axis=(1, 2))
