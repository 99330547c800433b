"""The networks of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958): a residual discriminator, and a generator driven by styles.

Left out of the paper's: equalised learning rates, the noise of every layer, mixed styles, the path length, and the statistics
over a batch, since an image is judged alone. Maps are halved by means of 2x2 and doubled by repetition.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones import initializers
from fingerprint_jax.backbones.layers import Conv, Linear, doubled

VARIANTS = {
    "stylegan2_small": {"widths": (16, 32, 64, 64)},  # 32 px on a CPU
    "stylegan2_base": {"widths": (128, 256, 512, 512, 512)},  # 64 px
    "stylegan2_large": {"widths": (64, 128, 256, 512, 512, 512, 512)},  # 256 px on a GPU
    "stylegan2_tiny": {"widths": (4, 8)},
}

_lecun = initializers.lecun_normal  # of a layer that nothing rectifies


def rectified(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, times the root of 2: normal values keep about their size."""
    return nnx.leaky_relu(x, negative_slope=0.2) * math.sqrt(2)


def halved(x: jax.Array) -> jax.Array:
    """Means of 2x2: [N,H,W,C] -> [N,ceil(H/2),ceil(W/2),C]; an odd side is first made longer by its last row or column."""
    _, height, width, _ = x.shape
    if height % 2:  # by slices: the second derivative of a pad moves images between devices
        x = jnp.concatenate([x, x[:, -1:]], axis=1)
    if width % 2:
        x = jnp.concatenate([x, x[:, :, -1:]], axis=2)
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


class Block(nnx.Module):
    """Two 3x3 convolutions and a halving, beside a 1x1 convolution of the halved input: [N,H,W,C] -> [N,H/2,W/2,D]."""

    def __init__(self, channels: int, width: int, dtype: str, rngs: nnx.Rngs) -> None:
        conv = functools.partial(Conv, kernel_init=_lecun, dtype=dtype, rngs=rngs)
        self.conv1, self.conv2 = conv(channels, channels, 3, bias=True), conv(channels, width, 3, bias=True)
        self.shortcut = conv(channels, width, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The halved map."""
        y = rectified(self.conv2(rectified(self.conv1(x))))
        return (halved(y) + self.shortcut(halved(x))) / math.sqrt(2)


class Backbone(nnx.Module):
    """The discriminator but for its last layers: images [N,H,W,C] -> features [N,D], the mean over the last map.

    Args:
        widths: of a 1x1 convolution of the image, then of a block each, which halves the map.
        channels: C.
        image_size: any; the net is convolutional.
        rngs: `params` initialises.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self, *, widths: Sequence[int], channels: int, image_size: tuple[int, int], rngs: nnx.Rngs, dtype: str = "float32"
    ) -> None:
        self.stem = Conv(channels, widths[0], 1, bias=True, kernel_init=_lecun, dtype=dtype, rngs=rngs)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nnx.List([Block(narrow, wide, dtype, rngs) for narrow, wide in pairs])
        self.last = Conv(widths[-1], widths[-1], 3, bias=True, kernel_init=_lecun, dtype=dtype, rngs=rngs)
        self.widths, self.num_features = tuple(widths), widths[-1]

    def places(self, image_size: tuple[int, int]) -> int:
        """Of the last map of such images."""
        return math.prod(-(-side // 2 ** len(self.blocks)) for side in image_size)

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,D]; the same in training, and `rngs` is of no use."""
        x = rectified(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return rectified(self.last(x)).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        return self.maps(images, train=train).mean(axis=(1, 2))


class Styled(nnx.Module):
    """A convolution whose input channels a style scales, and whose output channels are brought back to variance 1.

    Section 2.2 of the paper: of an input of independent channels of variance 1.

    Args:
        channels: of the input.
        width: of the output.
        size: of the kernel.
        style: numbers of a style.
        demodulate: whether the output is brought back.
        rngs: `params` initialises.
        dtype: of the arithmetic.
    """

    def __init__(
        self, channels: int, width: int, size: int, style: int, rngs: nnx.Rngs, dtype: str, *, demodulate: bool = True
    ) -> None:
        self.conv = Conv(channels, width, size, kernel_init=_lecun, dtype=dtype, rngs=rngs)
        self.style, self.demodulate = Linear(style, channels, rngs=rngs), demodulate
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        """[N,H,W,C], [N,S] -> [N,H,W,D], not rectified."""
        scale = 1 + self.style(style)
        y = self.conv(x * scale[:, None, None].astype(x.dtype))
        if self.demodulate:
            weight = jnp.square(self.conv.kernel[...]).sum(axis=(0, 1))
            variance = jnp.matmul(jnp.square(scale), weight, precision=jax.lax.Precision.HIGHEST)
            y = y * jax.lax.rsqrt(variance + 1e-8)[:, None, None].astype(y.dtype)
        return y + self.bias[...].astype(y.dtype)[None, None, None]


class Generator(nnx.Module):
    """Noise, and what else there is, into images: [N,L] -> float32 [N,H,W,C], the sum of what every resolution adds.

    Args:
        widths: of the maps, those of the discriminator; the last is that of the smallest map, which is learned.
        image_shape: (H, W, C).
        latent: L.
        rngs: `params` initialises.
        dtype: of the arithmetic.
    """

    def __init__(
        self, widths: Sequence[int], image_shape: tuple[int, int, int], latent: int, rngs: nnx.Rngs, dtype: str = "float32"
    ) -> None:
        height, width, channels = image_shape
        self.sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in reversed(range(len(widths)))]
        self.mapping = nnx.List([Linear(latent, latent, rngs=rngs) for _ in range(2)])
        self.start = nnx.Param(initializers.normal(1.0)(rngs.params(), (*self.sizes[0], widths[-1]), jnp.float32))
        self.firsts, self.seconds, self.shown, wide = nnx.List(), nnx.List(), nnx.List(), widths[-1]
        for narrow in reversed(widths):
            self.firsts.append(Styled(wide, narrow, 3, latent, rngs, dtype))
            self.seconds.append(Styled(narrow, narrow, 3, latent, rngs, dtype))
            self.shown.append(Styled(narrow, channels, 1, latent, rngs, dtype, demodulate=False))
            wide = narrow
        self.dtype = jnp.dtype(dtype)

    def __call__(self, latent: jax.Array) -> jax.Array:
        """The images, about -1..1."""
        style = latent * jax.lax.rsqrt(jnp.square(latent).mean(axis=1, keepdims=True) + 1e-8)
        for layer in self.mapping:
            style = rectified(layer(style))
        x = jnp.broadcast_to(self.start[...][None], (len(latent), *self.start.shape)).astype(self.dtype)
        images = jnp.zeros(())
        for i, (height, width) in enumerate(self.sizes):
            if i:
                x, images = (doubled(y)[:, :height, :width] for y in (x, images))
            x = rectified(self.firsts[i](x, style))
            x = rectified(self.seconds[i](x, style))
            images = images + self.shown[i](x, style).astype(jnp.float32)
        return images
