"""The networks of CycleGAN (Zhu et al. 2017, arXiv 1703.10593), which CUT and DCLGAN share: an encoder, the generator, PatchGAN.

Downsampling is by stride and upsampling by transposed convolutions of 4x4; borders are padded with zeros, not reflected.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones import initializers
from fingerprint_jax.backbones.decoder import TransposedConv
from fingerprint_jax.backbones.layers import Conv, instance_norm

VARIANTS = {
    "cyclegan_resnet": {"widths": (64, 128, 256), "blocks": 9},
    "cyclegan_resnet_tiny": {"widths": (4, 8), "blocks": 1},
}

_lecun = initializers.lecun_normal  # of a layer that no ReLU follows


class Block(nnx.Module):
    """Two 3x3 convolutions added to their input, which is not rectified after: [N,H,W,C] -> [N,H,W,C]."""

    def __init__(self, width: int, dtype: str, rngs: nnx.Rngs) -> None:
        self.conv1, self.conv2 = (Conv(width, width, 3, dtype=dtype, rngs=rngs) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The map after the block."""
        return x + instance_norm(self.conv2(nnx.relu(instance_norm(self.conv1(x)))))


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], the mean over the rectified last map; D the last of `widths`.

    Args:
        widths: of a 7x7 convolution, then of 3x3 ones of stride 2.
        blocks: residual blocks after them.
        channels: C.
        image_size: any; the net is convolutional.
        rngs: `params` initialises.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 8  # a map of one place would be normalised to zero

    def __init__(
        self,
        *,
        widths: Sequence[int],
        blocks: int,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        dtype: str = "float32",
    ) -> None:
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        self.stem, self.downs = conv(channels, widths[0], 7), nnx.List()
        for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
            self.downs.append(conv(narrow, wide, 3, 2))
        self.blocks = nnx.List([Block(widths[-1], dtype, rngs) for _ in range(blocks)])
        self.widths, self.num_features = tuple(widths), widths[-1]

    def layers(self, images: jax.Array) -> list[jax.Array]:
        """Maps [N,h,w,D] whose patches can be compared: of each halving convolution, of the first and of the middle block.

        As in the code of DCLGAN, before a normalisation: rectified patches can be zero, which has no direction.
        """
        x, found = nnx.relu(instance_norm(self.stem(images))), []
        for down in self.downs:
            found.append(down(x))
            x = nnx.relu(instance_norm(found[-1]))
        for i, block in enumerate(self._first_half):
            x = block(x)
            if i in (0, len(self._first_half) - 1):
                found.append(x)
        return found

    @property
    def _first_half(self) -> Sequence[Block]:
        return self.blocks[: len(self.blocks) // 2 + 1]

    def rest(self, x: jax.Array) -> jax.Array:
        """The last map [N,h,w,D] from the last of `layers`."""
        for block in self.blocks[len(self._first_half) :]:
            x = block(x)
        return x

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,D]."""
        return self.rest(self.layers(images)[-1]).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        return nnx.relu(self.maps(images, train=train)).mean(axis=(1, 2))


class Generator(nnx.Module):
    """Images into images of another domain: [N,H,W,C] -> [N,H,W,C], and the maps of the encoder.

    Args:
        backbone: the encoder.
        channels: C.
        squash: whether the images are the tanh of the last convolution.
        rngs: `params` initialises.
        dtype: of the arithmetic.
    """

    def __init__(self, backbone: Backbone, channels: int, squash: bool, rngs: nnx.Rngs, dtype: str = "float32") -> None:
        self.backbone, self.squash, self.ups = backbone, squash, nnx.List()
        wide, *narrower = reversed(backbone.widths)
        for narrow in narrower:
            self.ups.append(TransposedConv(wide, narrow, dtype=dtype, rngs=rngs))
            wide = narrow
        self.last = Conv(wide, channels, 7, bias=True, kernel_init=_lecun, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """The translated images in float32, and `layers` of the encoder."""
        layers = self.backbone.layers(images)
        x = self.backbone.rest(layers[-1])
        for up in self.ups:
            x = nnx.relu(instance_norm(up(x)))
        _, height, width, _ = images.shape  # a side that halving rounds up comes back longer
        x = self.last(x)[:, :height, :width].astype(jnp.float32)
        return jnp.tanh(x) if self.squash else x, layers


class Discriminator(nnx.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004): a score for each of the overlapping patches of an image.

    Args:
        widths: of 4x4 convolutions of stride 2, but the last of them of stride 1; four see patches of 70 pixels.
        channels: C of the images.
        rngs: `params` initialises.
        dtype: of the arithmetic.
    """

    def __init__(self, widths: Sequence[int], channels: int, rngs: nnx.Rngs, dtype: str = "float32") -> None:
        conv, self.convs = functools.partial(Conv, kernel_size=4, padding="same", dtype=dtype, rngs=rngs), nnx.List()
        for i, width in enumerate(widths):
            self.convs.append(conv(channels, width, stride=1 if i == len(widths) - 1 else 2, bias=i == 0))
            channels = width
        self.head = conv(channels, 1, bias=True, kernel_init=_lecun)

    def maps(self, images: jax.Array) -> jax.Array:
        """The last map of features: [N,H,W,C] -> float32 [N,h,w,D]."""
        x = images
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = nnx.leaky_relu(instance_norm(x) if i else x, negative_slope=0.2)
        return x.astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Scores of the patches: [N,H,W,C] -> float32 [N,h,w], 1 real and 0 fake."""
        return self.head(self.maps(images))[..., 0].astype(jnp.float32)
