"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929; ViT-Ti from arXiv 2012.12877), as timm builds it.

That of DINOv2 (Oquab et al. 2023, arXiv 2304.07193) has patches of 14 pixels, LayerScale, and in the reg4 variants four registers
(Darcet et al. 2023, arXiv 2309.16588). Its weights are read under timm's names, or in the layout of transformers' `Dinov2Model`.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones import conv_ops, initializers
from fingerprint_jax.backbones.layers import Conv, Linear, drop_path, dropout, recomputed

_small = {"width": 384, "depth": 12, "heads": 6}
_base = {"width": 768, "depth": 12, "heads": 12}
_tiny = {"width": 16, "depth": 2, "heads": 2}
_dinov2 = {"patch": 14, "layer_scale": 1e-5}

VARIANTS = {
    "vit_tiny_patch16": {"width": 192, "depth": 12, "heads": 3, "patch": 16},
    "vit_small_patch16": _small | {"patch": 16},
    "vit_base_patch16": _base | {"patch": 16},
    "vit_small_patch14_dinov2": _small | _dinov2,
    "vit_base_patch14_dinov2": _base | _dinov2,
    "vit_small_patch14_reg4_dinov2": _small | _dinov2 | {"registers": 4},
    "vit_base_patch14_reg4_dinov2": _base | _dinov2 | {"registers": 4},
    "vit_tiny": _tiny | {"patch": 8},
    "vit_dinov2_tiny": _tiny | _dinov2,
    "vit_reg4_dinov2_tiny": _tiny | _dinov2 | {"registers": 4},
}

TIMM = [
    (r"^patch_embed", "patch_embed/proj"),
    (r"/(ls\d)/scale$", r"/\1/gamma"),
    (r"/mlp/gate/", "/mlp/fc1_g/"),
    (r"/mlp/value/", "/mlp/fc1_x/"),
]

# The names of transformers' `Dinov2Model` and `Dinov2WithRegistersModel` -> timm's, but for what `translated` joins and splits.
TRANSFORMERS = [
    (r"^dinov2(_with_registers)?\.", ""),  # before a classifier
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
]

_normal = initializers.normal(0.02)


def resample_positions(positions: np.ndarray, grid: tuple[int, int], before: int = 1) -> np.ndarray:
    """Position embedding of a square grid for another one: [1,before+S*S,D] -> [1,before+h*w,D].

    Bicubic with antialias, as timm's `resample_abs_pos_embed`. Those before the grid stay, the class token's or none.
    """
    _, tokens, width = positions.shape
    side = round(max(tokens - before, 0) ** 0.5)
    if (side, side) == grid or side**2 != tokens - before:  # of a grid that is not square its sides cannot be known
        return positions
    square = positions[:, before:].reshape(1, side, side, width)
    resampled = jax.image.resize(square, (1, *grid, width), "cubic", antialias=True)
    return np.concatenate([positions[:, :before], np.asarray(resampled).reshape(1, -1, width)], axis=1)


def adapt(name: str, value: np.ndarray, net: "Backbone") -> np.ndarray:
    """A tensor of published weights, under our name, as `net` takes it."""
    if name != "pos_embed" or value.ndim != 3:
        return value
    return resample_positions(value, net.grid, 1 if net.reg_token is None else 0)


def translated(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A file's tensors under timm's names, where they are in the layout of transformers' `Dinov2Model`; else as they are.

    Queries, keys and values become one tensor, the two halves of SwiGLU's first one two. The position of the class token is added
    to it where there are registers, as timm does. What does not fit together keeps its name, for `pretrained.load` to refuse.
    """
    if not any(name.endswith("encoder.layer.0.layer_scale1.lambda1") for name in tensors):
        return tensors
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    found.pop("embeddings.mask_token", None)  # of the training without labels
    for name in [name for name in found if ".attn.query." in name]:
        names = [name.replace("query", part) for part in ("query", "key", "value")]
        if len({found[part].shape if part in found else () for part in names}) == 1 and found[name].ndim:
            found[name.replace("query", "qkv")] = np.concatenate([found.pop(part) for part in names])
    for name in [name for name in found if ".mlp.weights_in." in name and found[name].ndim]:
        value = found.pop(name)
        for part, half in zip(("fc1_g", "fc1_x"), (value[: len(value) // 2], value[len(value) // 2 :]), strict=True):
            found[name.replace("weights_in", part)] = half
    token, positions = found.get("cls_token"), found.get("pos_embed")
    if "reg_token" in found and token is not None and positions is not None and positions.ndim == 3:
        if token.shape == positions[:, :1].shape:
            found |= {"cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}
    return found


class LayerNorm(nnx.LayerNorm):
    """Over the last axis in float32; the result has the dtype of the input.

    Of bfloat16 the variance is that of one pass, the mean of the squares less the square of the mean.
    """

    def __init__(self, width: int, rngs: nnx.Rngs, dtype: np.dtype | str = "float32", epsilon: float = 1e-6) -> None:
        fast = jnp.dtype(dtype) == jnp.bfloat16
        super().__init__(width, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=fast, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape."""
        return super().__call__(x).astype(x.dtype)


class LayerScale(nnx.Module):
    """A learned factor for each feature (Touvron et al. 2021, arXiv 2103.17239): [..,D] -> [..,D]."""

    def __init__(self, width: int, value: float) -> None:
        self.scale = nnx.Param(jnp.full(width, value))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape."""
        return x * self.scale[...].astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


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

    def __init__(self, width: int, heads: int, dtype: np.dtype, rngs: nnx.Rngs, *, bias: bool = True) -> None:
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias, dtype=dtype, kernel_init=_normal, rngs=rngs)
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


class SwiGlu(nnx.Module):
    """Two dense layers, the first times the SiLU of a third, its gate (Shazeer 2020, arXiv 2002.05202): [N,T,D] -> [N,T,D]."""

    def __init__(self, width: int, hidden: int, rate: float, dtype: np.dtype, rngs: nnx.Rngs) -> None:
        self.gate = Linear(width, hidden, dtype=dtype, kernel_init=_normal, rngs=rngs)
        self.value = Linear(width, hidden, dtype=dtype, kernel_init=_normal, rngs=rngs)
        self.fc2 = Linear(hidden, width, dtype=dtype, kernel_init=_normal, rngs=rngs)
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """Each token by itself."""
        return self.fc2(dropout(nnx.silu(self.gate(x)) * self.value(x), self.rate, train=train, rngs=rngs))


class Block(nnx.Module):
    """Attention and a perceptron, each after normalisation and added to its input: [N,T,D] -> [N,T,D].

    Args:
        norm: makes a normalisation.
        attn: makes the attention.
        mlp: makes the perceptron.
        scale: makes what scales each before it is added; None: it is added as it is.
        dropout_rate: of either.
        path_rate: of the stochastic depth.
    """

    def __init__(
        self, norm: Callable, attn: Callable, mlp: Callable, scale: Callable | None, dropout_rate: float, path_rate: float
    ) -> None:
        self.norm1, self.attn = norm(), attn()
        self.norm2, self.mlp = norm(), mlp()
        self.ls1, self.ls2 = (scale(), scale()) if scale else (None, None)
        self.dropout_rate, self.path_rate = dropout_rate, path_rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """The tokens after the block."""

        def drop(branch: jax.Array, scale: LayerScale | None) -> jax.Array:
            branch = dropout(branch, self.dropout_rate, train=train, rngs=rngs)
            branch = branch if scale is None else scale(branch)
            return drop_path(branch, self.path_rate, train=train, rngs=rngs)

        x = x + drop(self.attn(self.norm1(x)), self.ls1)
        return x + drop(self.mlp(self.norm2(x), train=train, rngs=rngs), self.ls2)


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
        layer_scale: what the factors of `LayerScale` begin with; 0: there are none.
        registers: learned tokens after the class token, none of which has a position, nor has the class token then.
        swiglu: the perceptrons are `SwiGlu`, of DINOv2's width, two thirds of the 4 D rounded up to a multiple of 8.
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
        layer_scale: float = 0.0,
        registers: int = 0,
        swiglu: bool = False,
        dtype: str = "float32",
    ) -> None:
        precision = jnp.dtype(dtype)
        self._embed(width, patch, channels, image_size, project, dtype, rngs)
        places = self.grid[0] * self.grid[1] + (0 if registers else 1)
        self.pos_embed = nnx.Param(_normal(rngs.params(), (1, places, width)))
        self.reg_token = nnx.Param(_normal(rngs.params(), (1, registers, width))) if registers else None
        norm = functools.partial(LayerNorm, width, rngs, dtype)
        attn = functools.partial(Attention, width, heads, precision, rngs)
        mlp = functools.partial(Mlp, width, dropout, precision, rngs)
        if swiglu:
            mlp = functools.partial(SwiGlu, width, -(-(4 * width * 2 // 3) // 8) * 8, dropout, precision, rngs)
        scale = functools.partial(LayerScale, width, layer_scale) if layer_scale else None
        self._stack(width, depth, dropout, stochastic_depth, norm, attn, mlp, scale)

    def _embed(
        self, width: int, patch: int, channels: int, image_size: tuple[int, int], project: int, dtype: str, rngs: nnx.Rngs
    ) -> None:
        """What makes tokens of an image, but for positions and registers."""
        self.project = Conv(channels, project, 1, bias=True, dtype=dtype, rngs=rngs) if project else None
        self.patch_embed = PatchEmbed(project or channels, width, patch, jnp.dtype(dtype), rngs)
        self.grid = (-(-image_size[0] // patch), -(-image_size[1] // patch))
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))

    def _stack(
        self,
        width: int,
        depth: int,
        dropout: float,
        stochastic_depth: float,
        norm: Callable,
        attn: Callable,
        mlp: Callable,
        scale: Callable | None,
    ) -> None:
        """The blocks, of what a `Block` is made of, and the last normalisation."""
        self.rate, self.num_features = dropout, width
        rates = np.linspace(0, stochastic_depth, depth).tolist()
        self.blocks = nnx.List([Block(norm, attn, mlp, scale, dropout, rate) for rate in rates])
        self.norm = norm()

    def maps(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None, layers: tuple[int, ...] | None = None
    ) -> jax.Array:
        """The tokens [N,1+R+h*w,D] after the last normalisation: the class token, R registers, the patches.

        Args:
            images: [N,H,W,C] of the size the net was built for.
            train: dropout and stochastic depth act.
            rngs: `dropout` for them.
            layers: numbers of blocks, from 0 or back from -1: the tokens after each, not normalised, instead: [L,N,1+R+h*w,D].
        """
        x = self._placed(self.patch_embed(images if self.project is None else self.project(images)))
        x = dropout(x, self.rate, train=train, rngs=rngs)
        outputs = []
        for block in self.blocks:
            x = block(x, train=train, rngs=rngs)
            outputs.append(x)
        if layers is not None:
            return jnp.stack([outputs[i] for i in layers]).astype(jnp.float32)
        return self.norm(x).astype(jnp.float32)

    def _placed(self, x: jax.Array) -> jax.Array:
        """All tokens of the patches [N,h*w,D], with their positions."""
        positions = self.pos_embed[...].astype(x.dtype)
        return self._joined(x) + positions if self.reg_token is None else self._joined(x + positions)

    def _joined(self, x: jax.Array) -> jax.Array:
        """Class token, registers and patches [N,h*w,D]: [N,1+R+h*w,D]."""
        first = [self.cls_token] if self.reg_token is None else [self.cls_token, self.reg_token]
        return jnp.concatenate([*(jnp.tile(token[...].astype(x.dtype), (len(x), 1, 1)) for token in first), x], axis=1)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D], the class token."""
        return self.maps(images, train=train, rngs=rngs)[:, 0]
