"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929; ViT-Ti from arXiv 2012.12877), as timm builds it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones import conv_ops, initializers
from fingerprint_jax.backbones.layers import Conv, Linear, drop_path, dropout, recomputed

VARIANTS = {
    "vit_tiny_patch16": {"width": 192, "depth": 12, "heads": 3, "patch": 16},
    "vit_small_patch16": {"width": 384, "depth": 12, "heads": 6, "patch": 16},
    "vit_base_patch16": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
    "vit_tiny": {"width": 16, "depth": 2, "heads": 2, "patch": 8},
}

TIMM = [(r"^patch_embed", "patch_embed/proj")]

_normal = initializers.normal(0.02)


def resample_positions(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Position embedding of a square grid, the class token's first, for another grid: [1,1+S*S,D] -> [1,1+h*w,D].

    Bicubic with antialias, as timm's `resample_abs_pos_embed`.
    """
    _, tokens, width = positions.shape
    side = round((tokens - 1) ** 0.5)
    if (side, side) == grid or side**2 != tokens - 1:  # of a grid that is not square its sides cannot be known
        return positions
    square = positions[:, 1:].reshape(1, side, side, width)
    resampled = jax.image.resize(square, (1, *grid, width), "cubic", antialias=True)
    return np.concatenate([positions[:, :1], np.asarray(resampled).reshape(1, -1, width)], axis=1)


def adapt(name: str, value: np.ndarray, net: "Backbone") -> np.ndarray:
    """A tensor of published weights, under our name, as `net` takes it."""
    return resample_positions(value, net.grid) if name == "pos_embed" else value


class LayerNorm(nnx.LayerNorm):
    """Over the last axis in float32; the result has the dtype of the input.

    Of bfloat16 the variance is that of one pass, the mean of the squares less the square of the mean.
    """

    def __init__(self, width: int, rngs: nnx.Rngs, dtype: np.dtype | str = "float32") -> None:
        fast = jnp.dtype(dtype) == jnp.bfloat16
        super().__init__(width, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=fast, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape."""
        return super().__call__(x).astype(x.dtype)


class PatchEmbed(nnx.Module):
    """Every patch through one dense layer, as a convolution whose stride is its size: [N,H,W,C] -> [N,h*w,D]."""

    def __init__(self, channels: int, width: int, patch: int, dtype: np.dtype, rngs: nnx.Rngs) -> None:
        shape = (patch, patch, channels, width)
        self.kernel = nnx.Param(initializers.lecun_normal(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width))
        self.patch, self.dtype = patch, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """The patches row by row; the bottom and right are filled with zeros to whole patches."""
        (n, height, width, _), p = x.shape, self.patch
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (0, -height % p), (0, -width % p), (0, 0)))
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return conv_ops.patches(x, kernel).reshape(n, -1, len(bias)) + bias[None, None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scaled dot-product attention of queries [N,T,h,D] to keys and values [N,S,h,D]: [N,T,h,D], the softmax in float32.

    In bfloat16 so are the products, and nothing but the probabilities of the [N,h,T,S] is kept for the gradient.
    """
    return _attention(q, k, v) if q.dtype == jnp.bfloat16 else jax.nn.dot_product_attention(q, k, v)


@jax.custom_vjp
def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _attended(q, k, v)[0]


def _attended(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    logits = jnp.einsum("nthd,nshd->nhts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    shares = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    found = jnp.einsum("nhts,nshd->nthd", shares, v)
    return found, (q, k, v, shares, found)


def _attention_gradients(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, shares, found = saved
    of_shares = jnp.einsum("nthd,nshd->nhts", gradient, v)
    # What the softmax takes off, the mean of the gradient by the shares, is the product of result and gradient (Dao et al. 2022,
    # arXiv 2205.14135): no sum over the [N,h,T,S].
    mean = jnp.einsum("nthd,nthd->nht", gradient, found, preferred_element_type=jnp.float32)[..., None]
    of_logits = (shares * (of_shares - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
    of_q, of_k = jnp.einsum("nhts,nshd->nthd", of_logits, k), jnp.einsum("nhts,nthd->nshd", of_logits, q)
    return of_q, of_k, jnp.einsum("nhts,nthd->nshd", shares, gradient)


_attention.defvjp(_attended, _attention_gradients)


class Attention(nnx.Module):
    """Multi-head self-attention: [N,T,D] -> [N,T,D]."""

    def __init__(self, width: int, heads: int, dtype: np.dtype, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype=dtype, kernel_init=_normal, rngs=rngs)
        self.proj = Linear(width, width, dtype=dtype, kernel_init=_normal, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Every token attends to all."""
        n, tokens, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads), 2, 0)
        return self.proj(attention(q, k, v).reshape(n, tokens, width))


class Mlp(nnx.Module):
    """Two dense layers with GELU: [N,T,D] -> [N,T,D]."""

    def __init__(self, width: int, rate: float, dtype: np.dtype, rngs: nnx.Rngs) -> None:
        self.fc1 = Linear(width, 4 * width, dtype=dtype, kernel_init=_normal, rngs=rngs)
        self.fc2 = Linear(4 * width, width, dtype=dtype, kernel_init=_normal, rngs=rngs)
        self.rate, self.dtype = rate, dtype

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """Each token by itself."""
        kernel, bias = self.fc1.kernel[...].astype(self.dtype), self.fc1.bias[...].astype(self.dtype)  # pyright: ignore[reportOptionalSubscript]
        x = recomputed(lambda x, bias: nnx.gelu(x + bias, approximate=False), x.astype(self.dtype) @ kernel, bias[None, None])
        return self.fc2(dropout(x, self.rate, train=train, rngs=rngs))


class Block(nnx.Module):
    """Attention and a perceptron, each after normalisation and added to its input: [N,T,D] -> [N,T,D]."""

    def __init__(self, width: int, heads: int, dropout_rate: float, path_rate: float, dtype: np.dtype, rngs: nnx.Rngs) -> None:
        self.norm1, self.attn = LayerNorm(width, rngs, dtype), Attention(width, heads, dtype, rngs)
        self.norm2, self.mlp = LayerNorm(width, rngs, dtype), Mlp(width, dropout_rate, dtype, rngs)
        self.dropout_rate, self.path_rate = dropout_rate, path_rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """The tokens after the block."""

        def drop(branch: jax.Array) -> jax.Array:
            branch = dropout(branch, self.dropout_rate, train=train, rngs=rngs)
            return drop_path(branch, self.path_rate, train=train, rngs=rngs)

        x = x + drop(self.attn(self.norm1(x)))
        return x + drop(self.mlp(self.norm2(x), train=train, rngs=rngs))


class Backbone(nnx.Module):
    """images [N,H,W,C] -> features [N,D], the class token after the last normalisation.

    Args:
        width: D.
        depth: blocks.
        heads: of the attention.
        patch: side of a patch in pixels, see `PatchEmbed`.
        channels: C.
        image_size: (H, W), any; it sets the grid of the position embedding.
        rngs: `params` initialises.
        dropout: after the position embedding and every dense layer but those of queries, keys and values; 0.1 in the paper.
        stochastic_depth: probability that the last block's branches are dropped for an image, growing linearly from 0
            (Huang et al. 2016, arXiv 1603.09382); 0.1 in DeiT.
        project: channels that a 1x1 convolution makes of the image before it is cut into patches; 0: none.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    min_size = 1

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
        dtype: str = "float32",
    ) -> None:
        precision = jnp.dtype(dtype)
        self.project = Conv(channels, project, 1, bias=True, dtype=dtype, rngs=rngs) if project else None
        self.patch_embed = PatchEmbed(project or channels, width, patch, precision, rngs)
        self.grid = (-(-image_size[0] // patch), -(-image_size[1] // patch))
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.pos_embed = nnx.Param(_normal(rngs.params(), (1, 1 + self.grid[0] * self.grid[1], width)))
        self.rate = dropout
        rates = np.linspace(0, stochastic_depth, depth).tolist()
        self.blocks = nnx.List([Block(width, heads, dropout, rate, precision, rngs) for rate in rates])
        self.norm = LayerNorm(width, rngs, dtype)
        self.num_features = width

    def maps(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None, layers: tuple[int, ...] | None = None
    ) -> jax.Array:
        """The tokens [N,1+h*w,D] after the last normalisation, the class token first.

        Args:
            images: [N,H,W,C] of the size the net was built for.
            train: dropout and stochastic depth act.
            rngs: `dropout` for them.
            layers: numbers of blocks, from 0 or back from -1: the tokens after each, not normalised, instead: [L,N,1+h*w,D].
        """
        x = self.patch_embed(images if self.project is None else self.project(images))
        cls_token, positions = self.cls_token[...].astype(x.dtype), self.pos_embed[...].astype(x.dtype)
        x = jnp.concatenate([jnp.tile(cls_token, (len(x), 1, 1)), x], axis=1) + positions
        x = dropout(x, self.rate, train=train, rngs=rngs)
        outputs = []
        for block in self.blocks:
            x = block(x, train=train, rngs=rngs)
            outputs.append(x)
        if layers is not None:
            return jnp.stack([outputs[i] for i in layers]).astype(jnp.float32)
        return self.norm(x).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D], the class token."""
        return self.maps(images, train=train, rngs=rngs)[:, 0]
