"""EfficientNet (Tan & Le 2019, arXiv 1905.11946) and its Lite variant (ReLU6, no squeeze-and-excitation), as timm builds them.

The tf_ variants are the originals: TensorFlow's SAME padding and an epsilon of 1e-3. Weights named tf_* by timm, and those of
`pip:efficientnet_lite0`, need them.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm, Conv, DepthwiseConv, drop_path, dropout

# The baseline B0: kernel size, stride, expansion, width and depth of each stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
TINY = ((3, 1, 1, 8, 1), (5, 2, 2, 12, 2))


def _scaled(width: float, depth: float) -> dict:
    """The options of B0 with wider and deeper stages; widths in multiples of 8, none below 0.9 of what was asked for."""

    def rounded(features: int) -> int:
        new = int(features * width + 4) // 8 * 8
        return new if new >= 0.9 * features * width else new + 8

    stages = tuple((k, stride, expansion, rounded(w), int(-(-d * depth // 1))) for k, stride, expansion, w, d in STAGES)
    return {"stages": stages, "stem_width": rounded(32), "num_features": rounded(1280)}


_lite = {"act": "relu6", "squeeze": False}
_tiny = {"stages": TINY, "stem_width": 8, "num_features": 24, "dropout": 0.2, "stochastic_depth": 0.2}

VARIANTS = {
    "efficientnet_b0": _scaled(1.0, 1.0) | {"dropout": 0.2, "stochastic_depth": 0.2},
    "efficientnet_b1": _scaled(1.0, 1.1) | {"dropout": 0.2, "stochastic_depth": 0.2},
    "efficientnet_b2": _scaled(1.1, 1.2) | {"dropout": 0.3, "stochastic_depth": 0.2},
    "efficientnet_lite0": _scaled(1.0, 1.0) | _lite | {"dropout": 0.2, "stochastic_depth": 0.2},
    "tf_efficientnet_lite0": _scaled(1.0, 1.0) | _lite | {"dropout": 0.2, "stochastic_depth": 0.2, "tensorflow": True},
    "efficientnet_tiny": _tiny,
    "tf_efficientnet_lite_tiny": _tiny | _lite | {"tensorflow": True},
}

TIMM = [
    (r"^stem/", "conv_stem/"),
    (r"^stem_norm/", "bn1/"),
    (r"^head/", "conv_head/"),
    (r"^head_norm/", "bn2/"),
    (r"^stages/0/(\d+)/depthwise_norm/", r"blocks/0/\1/bn1/"),  # the first stage does not expand
    (r"^stages/0/(\d+)/project_norm/", r"blocks/0/\1/bn2/"),
    (r"^stages/0/(\d+)/project/", r"blocks/0/\1/conv_pw/"),
    (r"^stages/", "blocks/"),
    (r"/squeeze/reduce/", "/se/conv_reduce/"),
    (r"/squeeze/expand/", "/se/conv_expand/"),
    (r"/expand/", "/conv_pw/"),
    (r"/expand_norm/", "/bn1/"),
    (r"/depthwise/", "/conv_dw/"),
    (r"/depthwise_norm/", "/bn2/"),
    (r"/project/", "/conv_pwl/"),
    (r"/project_norm/", "/bn3/"),
]

# The same for the weights of `pip:efficientnet_lite0`, which numbers the blocks through.
LITE0 = [
    (r"^stem/", "_conv_stem/"),
    (r"^stem_norm/", "_bn0/"),
    (r"^head/", "_conv_head/"),
    (r"^head_norm/", "_bn1/"),
    (r"^stages/(\d+)/(\d+)/", lambda at: f"_blocks/{sum(depth for *_, depth in STAGES[: int(at[1])]) + int(at[2])}/"),
    (r"/expand/", "/_expand_conv/"),
    (r"/expand_norm/", "/_bn0/"),
    (r"/depthwise/", "/_depthwise_conv/"),
    (r"/depthwise_norm/", "/_bn1/"),
    (r"/project/", "/_project_conv/"),
    (r"/project_norm/", "/_bn2/"),
]

ACTIVATIONS = {"silu": nnx.silu, "relu6": nnx.relu6}


class Squeeze(nnx.Module):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507): scales each channel by a gate seen from the mean of the map."""

    def __init__(self, channels: int, reduced: int, act: Callable, conv: Callable) -> None:
        self.reduce, self.expand = conv(channels, reduced, 1, bias=True), conv(reduced, channels, 1, bias=True)
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape."""
        gate = x.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        return x * nnx.sigmoid(self.expand(self.act(self.reduce(gate))))


class Block(nnx.Module):
    """Inverted residual (Sandler et al. 2018, arXiv 1801.04381): 1x1 to the expanded width, depthwise, 1x1 to D.

    [N,H,W,C] -> [N,H/stride,W/stride,D]; added to its input where the shapes agree.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        kernel_size: int,
        stride: int,
        expansion: int,
        *,
        act: Callable,
        squeeze: bool,
        drop: float,
        conv: Callable,
        depthwise: Callable,
        norm: Callable,
    ) -> None:
        width = channels * expansion
        self.expand = conv(channels, width, 1) if expansion > 1 else None
        self.expand_norm = norm(width) if expansion > 1 else None
        self.depthwise, self.depthwise_norm = depthwise(width, kernel_size, stride), norm(width)
        self.squeeze = Squeeze(width, round(channels / 4), act, conv) if squeeze else None
        self.project, self.project_norm = conv(width, features, 1), norm(features)
        self.residual = stride == 1 and channels == features
        self.act, self.drop = act, drop

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """The map after the block."""
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = self.act(self.expand_norm(self.expand(y), train=train))
        y = self.act(self.depthwise_norm(self.depthwise(y), train=train))
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.project_norm(self.project(y), train=train)
        return x + drop_path(y, self.drop, train=train, rngs=rngs) if self.residual else y


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D].

    Args:
        stages: kernel size, stride, expansion, width and depth of each; the stride is that of its first block.
        stem_width: features of the first convolution, 3x3.
        num_features: D, those of the last convolution, 1x1.
        channels: C.
        image_size: any; the net is convolutional.
        rngs: `params` initialises.
        act: silu or relu6.
        squeeze: squeeze-and-excitation in every block, to a quarter of the block's input width.
        tensorflow: SAME padding and an epsilon of 1e-3, as the originals; otherwise as PyTorch.
        stem: imagenet (stride 2) or native (stride 1, which keeps the finest pixels).
        dropout: of the features, in training.
        stochastic_depth: probability that the last block's branch is dropped for an image, growing linearly from 0 (Huang et al.
            2016, arXiv 1603.09382), in training.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

    def __init__(
        self,
        *,
        stages: Sequence[tuple[int, int, int, int, int]],
        stem_width: int,
        num_features: int,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        act: str = "silu",
        squeeze: bool = True,
        tensorflow: bool = False,
        stem: str = "imagenet",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        dtype: str = "float32",
    ) -> None:
        self.act = ACTIVATIONS[act]
        padding = "same" if tensorflow else "torch"
        conv = functools.partial(Conv, padding=padding, dtype=dtype, rngs=rngs)
        depthwise = functools.partial(DepthwiseConv, padding=padding, dtype=dtype, rngs=rngs)
        norm = functools.partial(BatchNorm, epsilon=1e-3 if tensorflow else 1e-5, rngs=rngs)
        self.stem = conv(channels, stem_width, 3, 2 if stem == "imagenet" else 1)
        self.stem_norm = norm(stem_width)
        self.stages = nnx.List()
        channels, built, total = stem_width, 0, sum(depth for *_, depth in stages)
        for kernel_size, stride, expansion, width, depth in stages:
            self.stages.append(nnx.List())
            for i in range(depth):
                block = Block(
                    channels,
                    width,
                    kernel_size,
                    1 if i else stride,
                    expansion,
                    act=self.act,
                    squeeze=squeeze,
                    drop=stochastic_depth * built / total,
                    conv=conv,
                    depthwise=depthwise,
                    norm=norm,
                )
                self.stages[-1].append(block)
                channels, built = width, built + 1
        self.head, self.head_norm = conv(channels, num_features, 1), norm(num_features)
        self.dropout = dropout
        self.num_features = num_features

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map [N,h,w,D]."""
        x = self.act(self.stem_norm(self.stem(images), train=train))
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train, rngs=rngs)
        return self.act(self.head_norm(self.head(x), train=train)).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D], the mean over the last map."""
        x = self.maps(images, train=train, rngs=rngs).mean(axis=(1, 2))
        return dropout(x, self.dropout, train=train, rngs=rngs)
