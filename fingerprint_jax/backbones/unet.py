"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597) as diffusion models have it: image, time and class -> a map of its shape.

Residual blocks with group normalisation, which time and class scale and shift, and self-attention where maps are small: Ho et al.
2020 (arXiv 2006.11239), Dhariwal & Nichol 2021 (arXiv 2105.05233).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones import initializers
from fingerprint_jax.backbones.layers import Conv, Linear, doubled
from fingerprint_jax.backbones.vit import Attention

VARIANTS = {
    "unet_small": {"widths": (16, 32, 64), "blocks": 1, "attended": 1, "heads": 4},  # 32 px on a CPU
    "unet_base": {"widths": (128, 256, 256, 256), "blocks": 2, "attended": 2, "heads": 4},  # 64 px
    "unet_large": {"widths": (128, 128, 256, 256, 512, 512), "blocks": 2, "attended": 2, "heads": 8},  # 256 px on a GPU
    "unet_tiny": {"widths": (4, 4, 8), "blocks": 1, "attended": 0, "heads": 2},
}

_zeros = nnx.initializers.zeros


def sinusoids(time: jax.Array, width: int) -> jax.Array:
    """Cosines and sines of times in 0..1 at `width` / 2 frequencies, 1,000 to 0.1 radians: [N] -> float32 [N,width]; width is even.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, of 1,000 steps as in Ho et al. 2020.
    """
    half = width // 2
    frequencies = 1000 * np.exp(-math.log(10_000) * np.arange(half, dtype=np.float32) / half)
    angles = time.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


class GroupNorm(nnx.GroupNorm):
    """Over groups of channels of each image (Wu & He 2018, arXiv 1803.08494) in float32; the result has the dtype of the input."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        super().__init__(width, num_groups=math.gcd(width // 4, 32), epsilon=1e-5, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape."""
        return super().__call__(x).astype(x.dtype)


class Block(nnx.Module):
    """Two 3x3 convolutions, each after normalisation and SiLU, added to their input: [N,H,W,C], [N,E] -> [N,H,W,D]."""

    def __init__(self, channels: int, width: int, embedding: int, dtype: str, rngs: nnx.Rngs) -> None:
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        self.norm1, self.conv1 = GroupNorm(channels, rngs), conv(channels, width, 3)
        self.condition = Linear(embedding, 2 * width, dtype=jnp.dtype(dtype), rngs=rngs)
        self.norm2, self.conv2 = GroupNorm(width, rngs), conv(width, width, 3, kernel_init=_zeros)
        self.shortcut = conv(channels, width, 1) if channels != width else None

    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """The map after the block."""
        scale, shift = jnp.split(self.condition(nnx.silu(embedding))[:, None, None], 2, axis=-1)
        y = self.norm2(self.conv1(nnx.silu(self.norm1(x))))
        y = self.conv2(nnx.silu(y * (1 + scale) + shift))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Attend(nnx.Module):
    """Self-attention of all places, after normalisation and added to its input: [N,H,W,C] -> [N,H,W,C]."""

    def __init__(self, width: int, heads: int, dtype: str, rngs: nnx.Rngs) -> None:
        self.norm, self.attention = GroupNorm(width, rngs), Attention(width, heads, np.dtype(jnp.dtype(dtype)), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The map after attention."""
        n, height, width, channels = x.shape
        tokens = self.norm(x).reshape(n, height * width, channels)
        return x + self.attention(tokens).reshape(x.shape)


class Level(nnx.Module):
    """The blocks of one resolution on the way down or up, each with attention behind it where the level attends."""

    def __init__(self, channels: Sequence[int], width: int, embedding: int, heads: int, dtype: str, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([Block(each, width, embedding, dtype, rngs) for each in channels])
        self.attends = nnx.List([Attend(width, heads, dtype, rngs) for _ in channels if heads])

    def block(self, i: int, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """The map after block `i`: [N,H,W,C], [N,E] -> [N,H,W,D]."""
        x = self.blocks[i](x, embedding)
        return self.attends[i](x) if self.attends else x


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], the mean over the last map, which has the size of the image; D the first of `widths`.

    Args:
        widths: of the maps of each level, each half as large as the one before; multiples of 4, of `heads` where a level attends.
        blocks: residual blocks of a level on the way down; on the way up there is one more.
        attended: levels with self-attention, the last ones; between the way down and the way up there is one more in any case.
        heads: of the attention.
        channels: C.
        image_size: any; the net is convolutional.
        rngs: `params` initialises.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self,
        *,
        widths: Sequence[int],
        blocks: int,
        attended: int,
        heads: int,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        dtype: str = "float32",
    ) -> None:
        attends = [i >= len(widths) - max(attended, 1) for i in range(len(widths))]
        if any(width % 4 or (width % heads and attend) for width, attend in zip(widths, attends, strict=True)):
            raise ValueError(
                f"backbone.widths={tuple(widths)}: use multiples of 4, and of backbone.heads={heads} where maps attend"
            )
        conv, first, last = functools.partial(Conv, dtype=dtype, rngs=rngs), widths[0], widths[-1]
        self.embedding = 4 * first  # numbers that time, and whatever else there is, becomes
        linear = functools.partial(Linear, dtype=jnp.dtype(dtype), rngs=rngs)
        self.time1, self.time2 = linear(first, self.embedding), linear(self.embedding, self.embedding)

        def level(channels: Sequence[int], i: int) -> Level:
            return Level(channels, widths[i], self.embedding, heads if attended and attends[i] else 0, dtype, rngs)

        self.stem, self.downs, self.halves = conv(channels, first, 3), nnx.List(), nnx.List()
        skips, wide = [first], first
        for i, width in enumerate(widths):
            if i:
                self.halves.append(conv(wide, wide, 3, 2))
                skips.append(wide)
            self.downs.append(level([wide, *[width] * (blocks - 1)], i))
            skips += [width] * blocks
            wide = width
        self.middle1, self.middle2 = (Block(last, last, self.embedding, dtype, rngs) for _ in range(2))
        self.attend = Attend(last, heads, dtype, rngs)
        self.ups, self.doubles = nnx.List(), nnx.List()
        for i in reversed(range(len(widths))):
            joined = []
            for _ in range(blocks + 1):
                joined.append(wide + skips.pop())
                wide = widths[i]
            self.ups.append(level(joined, i))
            if i:
                self.doubles.append(conv(wide, wide, 3))
        self.norm, self.num_features = GroupNorm(first, rngs), first

    def maps(
        self,
        images: jax.Array,
        *,
        train: bool,
        rngs: nnx.Rngs | None = None,
        time: jax.Array | None = None,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """The last map [N,H,W,D], normalised and through SiLU.

        Args:
            images: [N,H,W,C].
            train: the same in training.
            rngs: of no use.
            time: [N] in 0..1; None: 1, that of images without noise.
            condition: [N, self.embedding], what is added to the embedding of the time; None: nothing.
        """
        time = jnp.ones(len(images)) if time is None else time
        embedding = self.time2(nnx.silu(self.time1(sinusoids(time, self.num_features))))
        if condition is not None:
            embedding += condition.astype(embedding.dtype)
        x = self.stem(images)
        skips = [x]
        for i, level in enumerate(self.downs):
            if i:
                x = self.halves[i - 1](x)
                skips.append(x)
            for k in range(len(level.blocks)):
                x = level.block(k, x, embedding)
                skips.append(x)
        x = self.middle2(self.attend(self.middle1(x, embedding)), embedding)
        for i, level in enumerate(self.ups):
            if i:
                _, height, width, _ = skips[-1].shape  # a side that halving rounds up comes back longer
                x = self.doubles[i - 1](doubled(x)[:, :height, :width])
            for k in range(len(level.blocks)):
                x = level.block(k, jnp.concatenate([x, skips.pop()], axis=-1), embedding)
        return nnx.silu(self.norm(x)).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        return self.maps(images, train=train).mean(axis=(1, 2))


class Conditioned(nnx.Module):
    """Images, their times and classes -> maps of the shape of the images: [N,H,W,C], [N], [N] -> float32 [N,H,W,C].

    Args:
        backbone: all but the last convolution, which begins at zero.
        channels: C.
        classes: how many there are; 0: the map depends on none.
        rngs: `params` initialises.
        dtype: of the arithmetic.
    """

    def __init__(self, backbone: Backbone, channels: int, classes: int, rngs: nnx.Rngs, dtype: str = "float32") -> None:
        self.backbone = backbone
        shape = (classes, backbone.embedding)
        self.classes = nnx.Param(initializers.normal(0.02)(rngs.params(), shape, jnp.float32)) if classes else None
        self.last = Conv(backbone.num_features, channels, 3, bias=True, kernel_init=_zeros, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, time: jax.Array, labels: jax.Array, *, train: bool) -> jax.Array:
        """The maps; a label of -1 is no class, which adds nothing to the embedding of the time."""
        condition = None
        if self.classes is not None:  # as a product: the gradient of a look-up is a scatter
            table = self.classes[...]
            condition = jnp.matmul(jax.nn.one_hot(labels, len(table)), table, precision=jax.lax.Precision.HIGHEST)
        maps = self.backbone.maps(images, train=train, time=time, condition=condition)
        return self.last(maps).astype(jnp.float32)
