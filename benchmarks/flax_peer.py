"""The networks of `python -m benchmarks.target_peer` as a user of Flax writes them: Linen's own layers and nothing else.

ResNet follows Flax's ImageNet example (github.com/google/flax, examples/imagenet/models.py): convolutions and normalisations in the
dtype of the arithmetic, the statistics of which Flax takes in float32. DenseNet, EfficientNet and ViT are built the same way, with
the layers of Bonsai's (github.com/jax-ml/bonsai) and of torchvision, so that parameters and arithmetic are those of our variants.
Images [N,H,W,C] -> logits [N,K].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

STAGES = (3, 4, 6, 3)  # ResNet-50
DENSE = (6, 12, 24, 16)  # DenseNet-121
# EfficientNet-B0: kernel size, stride, expansion, width and depth of each stage.
MOBILE = (
    *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)),
    *((5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
)


def _layers(dtype: Any, train: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Convolution without bias and batch normalisation, as Flax's example makes them."""
    conv = functools.partial(nn.Conv, use_bias=False, dtype=dtype)
    return conv, functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


class ResNet50(nn.Module):
    """ResNet-50, the stride of a bottleneck in its 3x3 convolution."""

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Logits."""
        conv, norm = _layers(self.dtype, train)
        x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, depth in enumerate(STAGES):
            for i in range(depth):
                width, strides, before = 64 * 2**stage, (2, 2) if stage and not i else (1, 1), x
                x = nn.relu(norm()(conv(width, (1, 1))(x)))
                x = nn.relu(norm()(conv(width, (3, 3), strides)(x)))
                x = norm()(conv(4 * width, (1, 1))(x))
                if before.shape != x.shape:
                    before = norm()(conv(4 * width, (1, 1), strides)(before))
                x = nn.relu(before + x)
        return nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))


class DenseNet121(nn.Module):
    """DenseNet-121."""

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Logits."""
        conv, norm = _layers(self.dtype, train)
        x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block, depth in enumerate(DENSE):
            if block:
                x = conv(x.shape[-1] // 2, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(depth):
                y = conv(128, (1, 1))(nn.relu(norm()(x)))
                x = jnp.concatenate([x, conv(32, (3, 3))(nn.relu(norm()(y)))], axis=-1)
        x = nn.relu(norm()(x))
        return nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))


class EfficientNetB0(nn.Module):
    """EfficientNet-B0, without dropout and stochastic depth."""

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Logits."""
        conv, norm = _layers(self.dtype, train)
        x = nn.silu(norm()(conv(32, (3, 3), (2, 2))(x)))
        for kernel_size, stride, expansion, width, depth in MOBILE:
            for i in range(depth):
                before, inner = x, x.shape[-1] * expansion
                if expansion > 1:
                    x = nn.silu(norm()(conv(inner, (1, 1))(x)))
                strides = (1, 1) if i else (stride, stride)
                x = nn.silu(norm()(conv(inner, (kernel_size, kernel_size), strides, feature_group_count=inner)(x)))
                gate = jnp.mean(x, axis=(1, 2), keepdims=True)
                gate = nn.silu(conv(before.shape[-1] // 4, (1, 1), use_bias=True)(gate))
                x = x * nn.sigmoid(conv(inner, (1, 1), use_bias=True)(gate))
                x = norm()(conv(width, (1, 1))(x))
                x = x + before if before.shape == x.shape else x
        x = nn.silu(norm()(conv(1280, (1, 1))(x)))
        return nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))


class ViTB16(nn.Module):
    """ViT-B/16 without dropout."""

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Logits of the class token."""
        width, norm = 768, functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        x = nn.Conv(width, (16, 16), (16, 16), padding="VALID", dtype=self.dtype)(x).reshape(len(x), -1, width)
        token = self.param("token", nn.initializers.zeros, (1, 1, width)).astype(x.dtype)
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        for _ in range(12):
            x = x + nn.MultiHeadDotProductAttention(12, dtype=self.dtype)(norm()(x))
            y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(norm()(x)), approximate=False)
            x = x + nn.Dense(width, dtype=self.dtype)(y)
        return nn.Dense(self.classes, dtype=self.dtype)(norm()(x)[:, 0])


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet50": ResNet50,
    "densenet121": DenseNet121,
    "efficientnet_b0": EfficientNetB0,
    "vit_base_patch16": ViTB16,
}
