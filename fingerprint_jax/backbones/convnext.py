"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), as timm builds it."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones import initializers
from fingerprint_jax.backbones.layers import Conv, DepthwiseConv, drop_path
from fingerprint_jax.backbones.vit import LayerNorm, LayerScale, Mlp

VARIANTS = {
    "convnext_tiny": {"widths": (96, 192, 384, 768), "depths": (3, 3, 9, 3)},
    "convnext_tiny_tiny": {"widths": (8, 16), "depths": (1, 1)},
}

TIMM = [
    (r"^stages/(\d+)/(\d+)/", r"stages/\1/blocks/\2/"),
    (r"/depthwise/", "/conv_dw/"),
    (r"/ls/scale$", "/gamma"),
    (r"^stem/conv/", "stem/0/"),
    (r"^stem/norm/", "stem/1/"),
    (r"^reductions/(\d+)/norm/", lambda at: f"stages/{int(at[1]) + 1}/downsample/0/"),
    (r"^reductions/(\d+)/conv/", lambda at: f"stages/{int(at[1]) + 1}/downsample/1/"),
    (r"^norm/", "head/norm/"),
]

LAYER_SCALE = 1e-6


class Stem(nnx.Module):
    """A convolution and a normalisation: [N,H,W,C] -> [N,h,w,D].

    Args:
        channels: C.
        features: D.
        kind: imagenet (4x4 stride 4) or native (3x3 stride 1, which keeps the finest pixels).
        conv: makes a convolution.
        norm: makes a normalisation.
    """

    def __init__(self, channels: int, features: int, kind: str, conv: Callable, norm: Callable) -> None:
        imagenet = kind == "imagenet"
        self.conv = conv(channels, features, 4, 4, padding="valid") if imagenet else conv(channels, features, 3)
        self.norm = norm(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The map after the stem."""
        return self.norm(self.conv(x))


class Reduction(nnx.Module):
    """Half the size: [N,H,W,C] -> [N,H//2,W//2,D]."""

    def __init__(self, channels: int, features: int, conv: Callable, norm: Callable) -> None:
        self.norm, self.conv = norm(channels), conv(channels, features, 2, 2, padding="valid")

    def __call__(self, x: jax.Array) -> jax.Array:
        """The halved map; an odd row or column at the end is left out."""
        return self.conv(self.norm(x))


class Block(nnx.Module):
    """Depthwise 7x7, normalisation and a perceptron of each place, scaled and added to its input: [N,H,W,C] -> same."""

    def __init__(self, width: int, path_rate: float, norm: Callable, dtype: str, rngs: nnx.Rngs) -> None:
        self.depthwise = DepthwiseConv(width, 7, bias=True, dtype=dtype, rngs=rngs)
        self.norm, self.mlp = norm(width), Mlp(width, 0.0, jnp.dtype(dtype), rngs)
        self.ls = LayerScale(width, LAYER_SCALE)
        self.path_rate = path_rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """The map after the block."""
        places = self.norm(self.depthwise(x)).reshape(len(x), -1, x.shape[-1])
        branch = self.ls(self.mlp(places, train=train, rngs=rngs)).reshape(x.shape)
        return x + drop_path(branch, self.path_rate, train=train, rngs=rngs)


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], the mean over the last map after a normalisation.

    Args:
        widths: channels of each stage; between stages the map is halved.
        depths: blocks of each.
        channels: C.
        image_size: any from `min_size`; the net is convolutional.
        rngs: `params` initialises.
        stem: imagenet or native, see `Stem`.
        stochastic_depth: probability that the last block's branch is dropped for an image, growing linearly from 0
            (Huang et al. 2016, arXiv 1603.09382); 0.1 in the paper.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 32  # -> 8 after the stem -> 4 -> 2 -> 1

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        stem: str = "imagenet",
        stochastic_depth: float = 0.0,
        dtype: str = "float32",
    ) -> None:
        conv = functools.partial(Conv, bias=True, kernel_init=initializers.normal(0.02), dtype=dtype, rngs=rngs)
        norm = functools.partial(LayerNorm, rngs=rngs, dtype=dtype)
        rates = iter(np.linspace(0, stochastic_depth, sum(depths)).tolist())
        self.stem = Stem(channels, widths[0], stem, conv, norm)
        self.stages, self.reductions = nnx.List(), nnx.List()
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                self.reductions.append(Reduction(widths[stage - 1], width, conv, norm))
            self.stages.append(nnx.List([Block(width, next(rates), norm, dtype, rngs) for _ in range(depth)]))
        self.norm = LayerNorm(widths[-1], rngs)
        self.num_features = widths[-1]

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,D]."""
        x = self.stem(images)
        for i, stage in enumerate(self.stages):
            if i:
                x = self.reductions[i - 1](x)
            for block in stage:
                x = block(x, train=train, rngs=rngs)
        return x.astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        return self.norm(self.maps(images, train=train, rngs=rngs).mean(axis=(1, 2)))
