"""Layers shared by the backbones."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax.backbones import conv_ops, initializers
from fingerprint_jax.runtime import names


class Keys:
    """Stands in for an `nnx.Rngs` while a net is built: the same keys of `params`, counted in Python.

    nnx counts in an array, and each count of a traced one searches all that was traced before, which is quadratic in depth.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self._stream, self._used = rngs.params, 0
        self._key, self._start = self._stream.key[...], self._stream.count[...]

    def params(self) -> jax.Array:
        """The next key."""
        self._used += 1
        return jax.random.fold_in(self._key, self._start + (self._used - 1))

    def close(self) -> None:
        """Moves the count of the `nnx.Rngs` past the keys given out."""
        self._stream.count[...] = self._start + self._used


_place: contextvars.ContextVar[Any] = contextvars.ContextVar("place", default=None)


@contextlib.contextmanager
def placed(place: jax.Array | np.ndarray | None) -> Generator[None]:
    """Within it the rows of a batch count as if they were in other places; None: in their own.

    What depends on the place of an image is then that of its place in the batch as it was drawn, whatever devices it is split over:
    the draws of dropout, and the groups of `BatchNorm`.

    Args:
        place: of each row, int [N], a permutation.
    """
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def places(count: int) -> jax.Array | np.ndarray:
    """The place of each of `count` rows, see `placed`."""
    place = _place.get()
    return np.arange(count, dtype=np.int32) if place is None else place


def _padding(size: int, kernel_size: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after an axis: k//2 on both sides as PyTorch, TensorFlow's SAME (the odd one after), or none."""
    if padding == "same":
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        return total // 2, total - total // 2
    return (kernel_size // 2, kernel_size // 2) if padding == "torch" else (0, 0)


class Conv(nnx.Conv):
    """k x k convolution, without bias unless asked for.

    Padded with k//2 zeros on every side as in PyTorch, k odd; `padding='same'` pads as TensorFlow does, which differs where stride
    is 2, `valid` not at all. Initialised as He et al. 2015 (arXiv 1502.01852): normal with variance 2 / (k^2 * features).
    """

    def __init__(
        self,
        channels: int,
        features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        bias: bool = False,
        padding: str = "torch",
        kernel_init: nnx.Initializer = initializers.he_normal,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            channels,
            features,
            (kernel_size, kernel_size),
            strides=(stride, stride),  # nothing reads it here, but a stride of 1 would be untrue
            use_bias=bias,
            dtype=jnp.dtype(dtype),
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.size, self.stride, self.padding = kernel_size, stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,h,w,D]; h and w are H/stride and W/stride rounded up, `valid` (H-k)/stride+1 rounded down."""
        pad = tuple(_padding(size, self.size, self.stride, self.padding) for size in x.shape[1:3])
        x = conv_ops.conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, pad)
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)[None, None, None]


class Linear(nnx.Linear):
    """A linear layer whose kernel is drawn by `initializers`: LeCun's, unless another is given."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        dtype: Any = None,
        kernel_init: nnx.Initializer = initializers.lecun_normal,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(inputs, outputs, use_bias=bias, dtype=dtype, kernel_init=kernel_init, rngs=rngs)


class DepthwiseConv(nnx.Module):
    """k x k convolution of every channel by itself, k odd, without bias unless asked for; padded as `Conv`.

    Initialised normal with variance 2 / k^2.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        bias: bool = False,
        padding: str = "torch",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        init = initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, 1, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels)) if bias else None
        self.size, self.stride, self.padding, self.dtype = kernel_size, stride, padding, jnp.dtype(dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,ceil(H/stride),ceil(W/stride),C]."""
        pad = tuple(_padding(size, self.size, self.stride, self.padding) for size in x.shape[1:3])
        x = conv_ops.depthwise(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, pad)
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)[None, None, None]


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation over (N, H, W) in float32; the result has the dtype of the input.

    In jit over a sharded batch the statistics are those of the global batch. The decay 0.9 is PyTorch's momentum 0.1; the
    running variance is the biased one, PyTorch's is n/(n-1) times that.

    Attributes, set by `backbones.build` from its options `norm` and `norm_groups`:
        frozen: training, too, uses the running statistics, and they stay.
        groups: training cuts the batch into this many contiguous parts (see `placed`), each normalised by its own statistics; the
            running ones move to the mean over the parts.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> None:
        super().__init__(features, momentum=0.9, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)
        self.frozen, self.groups = False, 1

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Same shape; `train` takes the batch's statistics and moves the running ones, else the running ones are used.

        Raises:
            ValueError: `groups` does not divide the batch.
        """
        if not train or self.frozen:
            return super().__call__(x, use_running_average=True).astype(x.dtype)
        if len(x) % self.groups:
            raise ValueError(f"backbone.norm_groups={self.groups} does not divide the batch of {len(x)} images")
        values, rows, maps = x.astype(jnp.float32), (1,) * (x.ndim - 1), tuple(range(1, x.ndim - 1))

        def mean_of(values: jax.Array) -> jax.Array:
            """[N,..,C] -> [groups,C]."""
            if self.groups == 1:
                return values.mean((0, *maps))[None]
            # Of a group's images some may be on other devices: only means of each are exchanged.
            total = jnp.matmul(self._members(len(x)).T, values.mean(maps), precision=jax.lax.Precision.HIGHEST)
            return total * (self.groups / len(x))

        def of_rows(statistic: jax.Array) -> jax.Array:
            """[groups,C] -> what each image is normalised by."""
            if self.groups == 1:
                return statistic.reshape(*rows, -1)
            found = jnp.matmul(self._members(len(x)), statistic, precision=jax.lax.Precision.HIGHEST)
            return found.reshape(len(x), *rows[1:], -1)

        mean = mean_of(values)
        var = jnp.maximum(mean_of(jnp.square(values)) - jnp.square(mean), 0)
        for running, new in ((self.mean, mean), (self.var, var)):
            new = jax.lax.stop_gradient(new.mean(0))
            # Not running[...] = value, which searches all that was traced before: quadratic in the depth of the net.
            running.set_value(self.momentum * running[...] + (1 - self.momentum) * new)
        scale, bias = (v[...].reshape(*rows, -1) for v in (self.scale, self.bias))  # pyright: ignore[reportOptionalSubscript]
        return ((values - of_rows(mean)) * (jax.lax.rsqrt(of_rows(var) + self.epsilon) * scale) + bias).astype(x.dtype)

    def _members(self, count: int) -> jax.Array:
        """Which group each row is of: [count,groups], 1 or 0."""
        return jax.nn.one_hot(places(count) // (count // self.groups), self.groups)


def dropout(x: jax.Array, rate: float, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Dropout (Srivastava et al. 2014): in training sets a share `rate` of the values to zero and scales the others up.

    Raises ValueError where it needs a key and `rngs` is None.
    """
    return _drop(x, rate, x.shape, train, rngs)


def drop_path(x: jax.Array, rate: float, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): `dropout` of the whole branch `x` [N,...] of an image."""
    return _drop(x, rate, (len(x),) + (1,) * (x.ndim - 1), train, rngs)


def _drop(x: jax.Array, rate: float, shape: tuple, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    if not train or not rate:
        return x
    if rngs is None:
        raise ValueError("dropout in training takes its key from `rngs`: pass rngs=nnx.Rngs(dropout=key)")
    keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, shape)
    if _place.get() is not None:
        keep = keep[_place.get()]
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Each channel of each image [N,H,W,C] to mean 0 and variance 1, in float32; no parameters, as PyTorch's InstanceNorm2d."""
    values = x.astype(jnp.float32)
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=(1, 2), keepdims=True) + epsilon)).astype(x.dtype)


def recomputed(function: Callable[..., jax.Array], x: jax.Array, *others: jax.Array) -> jax.Array:
    """An elementwise function of x and of small arrays. In bfloat16 its gradient computes it again from these and keeps no more.

    Else XLA stores what is dear to compute, such as an exponential, and reads it again: on accelerators, which bfloat16 is for,
    memory is what a step waits for. A CPU computes more slowly than it reads.
    """
    return _recomputed(function, x, *others) if x.dtype == jnp.bfloat16 else function(x, *others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    return function(*arrays)


def _keeps_arrays(function: Callable[..., jax.Array], *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return function(*arrays), arrays


def _computes_again(
    function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    # The barrier keeps XLA from finding that the forward pass has computed the same.
    return jax.vjp(function, *jax.lax.optimization_barrier(arrays))[1](gradient)


_recomputed.defvjp(_keeps_arrays, _computes_again)


def stopped(module: nnx.Module) -> nnx.Module:
    """A copy that gives the same values, and whose weights get no gradient; what it assigns to its state is lost."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.lax.stop_gradient(state), copy=True)


def max_pool2(x: jax.Array) -> jax.Array:
    """2x2 max-pool with stride 2, no padding: [N,H,W,C] -> [N,H//2,W//2,C].

    As a maximum over a reshaped array: the gradient of XLA's window reduction is a scatter, which is slow on CPU, and which
    `xla_gpu_deterministic_ops` refuses.
    """
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def doubled(x: jax.Array) -> jax.Array:
    """Every place four times: [N,H,W,C] -> [N,2H,2W,C]."""
    n, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return x.reshape(n, 2 * height, 2 * width, channels)


def record(net: nnx.Module, path: str) -> list[jax.Array]:
    """A list that the output of one layer of a network is appended to, whenever the layer is called: [N, ...].

    Args:
        net: changed in place, so a copy that nothing else uses.
        path: of attributes and positions, `stages/1/0`.

    Raises ValueError with the layers there are for a path that is none.
    """
    layers = {"/".join(map(str, place)): layer for place, layer in nnx.iter_modules(net) if place and callable(layer)}
    names.check("features.output", path, ["embedding", "logits", *sorted(layers)])
    layer, found = layers[path], []
    kind = type(layer)

    def call(self: nnx.Module, *arguments: Any, **options: Any) -> Any:
        output = kind.__call__(self, *arguments, **options)
        if isinstance(output, jax.Array):
            found.append(output)
        return output

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return found
