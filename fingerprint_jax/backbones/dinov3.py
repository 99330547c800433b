"""The Vision Transformer of DINOv3 (Siméoni et al. 2025, arXiv 2508.10104), as timm builds it.

What differs from DINOv2's: a position is a rotation of queries and keys (Su et al. 2021, arXiv 2104.09864), so that none is learned
and any grid will do. Queries, keys and values have no bias, the normalisations an epsilon of 1e-5. Features are the class token,
as in the paper; timm takes the mean of the patches unless it is asked for `global_pool='token'`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones import initializers, vit

_small = {"width": 384, "depth": 12, "heads": 6, "patch": 16}
_tiny = {"width": 16, "depth": 2, "heads": 2, "patch": 8}

VARIANTS = {
    "vit_small_patch16_dinov3": _small,
    "vit_small_plus_patch16_dinov3": _small | {"swiglu": True},
    "vit_base_patch16_dinov3": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
    "vit_dinov3_tiny": _tiny,
    "vit_plus_dinov3_tiny": _tiny | {"swiglu": True},
}

TIMM = [(r"/ls(\d)/scale$", r"/gamma_\1"), *vit.TIMM]

REGISTERS, LAYER_SCALE, EPSILON = 4, 1e-5, 1e-5
PERIOD = 100.0  # the longest, of a grid whose sides reach from -1 to 1


@functools.cache  # one constant of a program for all its blocks
def angles(grid: tuple[int, int], tokens: int, features: int) -> np.ndarray:
    """By how much each pair of a head's features is turned, of each token: float32 [tokens, features / 2], in radians.

    Half of the pairs turn with the row of a patch, the others with its column; tokens before the patches are not turned.
    """
    rows, columns = (2 * (np.arange(size) + 0.5) / size - 1 for size in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    periods = PERIOD ** (np.arange(features // 4) / (features // 4))
    turned = (2 * np.pi * places / periods).reshape(len(places), -1)
    return np.concatenate([np.zeros((tokens - len(turned), features // 2)), turned]).astype(np.float32)


class Attention(vit.Attention):
    """Self-attention whose queries and keys are turned by the place of their patch: [N,T,D] -> [N,T,D]."""

    def __init__(self, grid: tuple[int, int], width: int, heads: int, dtype: np.dtype, rngs: nnx.Rngs) -> None:
        super().__init__(width, heads, dtype, rngs, bias=False)
        self.grid = grid

    def __call__(self, x: jax.Array) -> jax.Array:
        """Every token attends to all."""
        n, tokens, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads), 2, 0)
        return self.proj(vit.attention(self._turned(q), self._turned(k), v).reshape(n, tokens, width))

    def _turned(self, x: jax.Array) -> jax.Array:
        """[N,T,h,D], in float32; the result has the dtype of the input."""
        a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        by = angles(self.grid, x.shape[1], x.shape[-1])[None, :, None]
        sine, cosine = np.sin(by), np.cos(by)
        return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1).astype(x.dtype)


class Backbone(vit.Backbone):
    """images [N,H,W,C] -> features [N,D], the class token after the last normalisation.

    Args:
        width: D.
        depth: blocks.
        heads: of the attention, D / heads a multiple of 4.
        patch: side of a patch in pixels, see `vit.PatchEmbed`.
        channels: C.
        image_size: (H, W), any; it sets the grid of the rotations.
        rngs: `params` initialises.
        dropout: after the tokens are joined and every dense layer but those of queries, keys and values.
        stochastic_depth: probability that the last block's branches are dropped for an image, see `vit.Backbone`.
        project: channels that a 1x1 convolution makes of the image before it is cut into patches; 0: none.
        swiglu: the perceptrons are `vit.SwiGlu` of width 4 D.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        channels: int,
        image_size: tuple[int, int],
        rngs: nnx.Rngs,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        project: int = 0,
        swiglu: bool = False,
        dtype: str = "float32",
    ) -> None:
        precision = jnp.dtype(dtype)
        self._embed(width, patch, channels, image_size, project, dtype, rngs)
        self.reg_token = nnx.Param(initializers.normal(0.02)(rngs.params(), (1, REGISTERS, width)))
        norm = functools.partial(vit.LayerNorm, width, rngs, dtype, EPSILON)
        attn = functools.partial(Attention, self.grid, width, heads, precision, rngs)
        mlp = functools.partial(vit.Mlp, width, dropout, precision, rngs)
        if swiglu:
            mlp = functools.partial(vit.SwiGlu, width, 4 * width, dropout, precision, rngs)
        scale = functools.partial(vit.LayerScale, width, LAYER_SCALE)
        self._stack(width, depth, dropout, stochastic_depth, norm, attn, mlp, scale)

    def _placed(self, x: jax.Array) -> jax.Array:
        """All tokens; those of the patches get their positions in the attention."""
        return self._joined(x)
