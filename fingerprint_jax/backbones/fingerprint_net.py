"""Ours: the image, its high-pass residual and its spectrum, each at native resolution, side by side.

What a generator leaves is in the finest pixels and does not depend on where in the image it is: no layer strides, and maps are
averaged, never maximised. The residual is that of the rich models of steganalysis (features/residual.py), truncated as in Ye, Ni &
Yi 2017 (IEEE Transactions on Information Forensics and Security 12:2545).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm, Conv, Linear
from fingerprint_jax.features.residual import FILTERS
from fingerprint_jax.runtime import sharding

VARIANTS = {
    "fingerprint_net": {"widths": (32, 64, 128), "num_spectrum": 64},
    "fingerprint_net_tiny": {"widths": (16, 32), "num_spectrum": 16},
}

STEPS = (2.0, 4.0, 8.0)  # residuals are taken in these units, in grey levels ...
LEVELS = 3.0  # ... and cut off at so many
BANDS = 16, 8  # frequencies down (both signs) and across, averaged into so many bands


def high_pass(images: jax.Array) -> jax.Array:
    """Truncated residuals: grey levels [N,H,W,C] -> [N,H-2,W-2,18 C] in -LEVELS..LEVELS."""
    kernel = np.zeros((3, 3, 1, len(FILTERS)), np.float32)
    for i, weights in enumerate(FILTERS):
        for (down, across), weight in weights.items():
            kernel[1 + down, 1 + across, 0, i] = weight
    n, h, w, c = images.shape
    planes = jnp.moveaxis(images, -1, 1).reshape(n * c, h, w, 1)
    found = jax.lax.conv_general_dilated(planes, jnp.asarray(kernel), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    found = jnp.concatenate([jnp.clip(found / step, -LEVELS, LEVELS) for step in STEPS], axis=-1)
    return jnp.moveaxis(found.reshape(n, c, h - 2, w - 2, -1), 1, -2).reshape(n, h - 2, w - 2, -1)


def log_spectrum(images: jax.Array) -> jax.Array:
    """Logarithm of the power in bands of frequency: grey levels [N,H,W,C] -> [N,16,8,C], centred on 0 down."""
    _, height, width, _ = images.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    x = (images - images.mean(axis=(1, 2), keepdims=True)) * jnp.asarray(window, jnp.float32)[None, :, :, None]
    spectrum = sharding.by_rows(functools.partial(jnp.fft.rfft2, axes=(1, 2)), x)
    power = jnp.square(jnp.abs(spectrum))
    power = jnp.log(jnp.fft.fftshift(power, axes=1) + 1.0)
    down, across = (_bands(size, count) for size, count in zip(power.shape[1:3], BANDS, strict=True))
    return jnp.einsum("nhwc,ah,bw->nabc", power, down, across, precision=jax.lax.Precision.HIGHEST)


def _bands(size: int, count: int) -> np.ndarray:
    """Means over `count` runs of neighbours, as equal as can be: [count,size]."""
    member = np.arange(size) * count // size == np.arange(count)[:, None]
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)


def mean_pool2(x: jax.Array) -> jax.Array:
    """2x2 means, an odd border left out: [N,H,W,C] -> [N,H//2,W//2,C]."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


class Branch(nnx.Module):
    """3x3 convolutions, each with BatchNorm and ReLU, 2x2 means between them: [N,H,W,C] -> [N,h,w,D], D the last width."""

    def __init__(self, channels: int, widths: tuple[int, ...], conv: Callable, norm: Callable) -> None:
        self.convs, self.norms = nnx.List(), nnx.List()
        for width in widths:
            self.convs.append(conv(channels, width, 3))
            self.norms.append(norm(width))
            channels = width

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The last map."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = nnx.relu(norm(conv(mean_pool2(x) if i else x), train=train))
        return x


class Backbone(nnx.Module):
    """Grey levels 0..255 (`data.normalize=none`) [N,H,W,C] -> features [N,D], D twice the last of `widths` and `num_spectrum`.

    Args:
        widths: of the convolutions of image and residual.
        num_spectrum: features of the spectrum.
        channels: C.
        image_size: any from 18 pixels a side.
        rngs: `params` initialises.
        dtype: of the convolutions, float32 or bfloat16.
    """

    min_size = 18

    def __init__(
        self,
        *,
        widths: tuple[int, ...],
        num_spectrum: int,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        dtype: str = "float32",
    ) -> None:
        conv, norm = functools.partial(Conv, dtype=dtype, rngs=rngs), functools.partial(BatchNorm, rngs=rngs)
        self.image = Branch(channels, widths, conv, norm)
        self.residual = Branch(len(FILTERS) * len(STEPS) * channels, widths, conv, norm)
        self.spectrum_norm = norm(channels)
        self.spectrum = Linear(BANDS[0] * BANDS[1] * channels, num_spectrum, dtype=jnp.dtype(dtype), rngs=rngs)
        self.num_features = 2 * widths[-1] + num_spectrum

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last maps of image and residual side by side [N,h,w,2 widths[-1]]."""
        # The border that the residual loses is cut off the image, too.
        image = self.image(images[:, 1:-1, 1:-1] / 255, train=train)
        return jnp.concatenate([image, self.residual(high_pass(images), train=train)], axis=-1).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Means of the maps, and the spectrum [N,D]."""
        spectrum = self.spectrum_norm(log_spectrum(images), train=train)
        spectrum = nnx.relu(self.spectrum(spectrum.reshape(len(images), -1)))
        return jnp.concatenate([self.maps(images, train=train).mean(axis=(1, 2)), spectrum.astype(jnp.float32)], axis=-1)
