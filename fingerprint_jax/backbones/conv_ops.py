"""Convolutions, with what XLA:CPU is slow at computed otherwise where a program is compiled for a CPU.

On any other device they are XLA's own. Which of the two it is follows from the platform that a program is compiled for, when it is
lowered, and never from the devices of the process. Maps are [N,H,W,C]; kernels have their dtype, and so has the result.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Pad = tuple[tuple[int, int], ...]  # zeros before and after the rows, and the columns
Gradients = tuple[jax.Array, jax.Array]  # of map and kernel

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Operation(NamedTuple):
    """A convolution in two ways, `cpu` and `plain`, of (map, kernel, *options); gradients of (map, kernel, gradient, *options).

    The options are hashable, and either way is linear in map and kernel.
    """

    cpu: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    cpu_gradients: Callable[..., Gradients]
    plain_gradients: Callable[..., Gradients]


def conv(x: jax.Array, kernel: jax.Array, stride: int, pad: Pad) -> jax.Array:
    """Convolution by a kernel [k,k,C,D] -> [N,h,w,D]."""
    k, channels = kernel.shape[1:3]
    height, width = ((size + sum(zeros) - k) // stride + 1 for size, zeros in zip(x.shape[1:3], pad, strict=True))
    if k == 1 or (height <= 2 and width <= 2):
        return _computed(PRODUCT, (stride, pad), x, kernel)
    if k == 3 and channels >= 16 and height >= 14:
        return _computed(WIDE, (stride, pad), x, kernel)
    return _conv(x, kernel, stride, pad)


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, pad: Pad) -> jax.Array:
    """Convolution of every channel by itself, by a kernel [k,k,1,C] -> [N,h,w,C]."""
    return _computed(DEPTHWISE, (stride, pad), x, kernel)


def patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution by a kernel [k,k,C,D] of stride k, without padding; k divides the sides: [N,H,W,C] -> [N,H/k,W/k,D]."""
    return _computed(PATCHES, (), x, kernel)


def transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution of stride 2 by a kernel [4,4,C,D] -> [N,2H,2W,D].

    That of PyTorch with padding 1: y[2i + k - 1] is the sum of x[i] kernel[k].
    """
    return _computed(TRANSPOSED, (), x, kernel)


# The choice is hidden from differentiation, which would differentiate a conditional with all its branches.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _computed(operation: Operation, options: tuple, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if operation.cpu is operation.plain:
        return operation.plain(x, kernel, *options)
    return jax.lax.platform_dependent(x, kernel, cpu=_with(operation.cpu, options), default=_with(operation.plain, options))


def _forward(operation: Operation, options: tuple, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Gradients]:
    return _computed(operation, options, x, kernel), (x, kernel)


def _backward(operation: Operation, options: tuple, saved: Gradients, gradient: jax.Array) -> Gradients:
    cpu, plain = (_with(function, options) for function in (operation.cpu_gradients, operation.plain_gradients))
    return jax.lax.platform_dependent(*saved, gradient, cpu=cpu, default=plain)


_computed.defvjp(_forward, _backward)


@functools.cache  # JAX traces the same function of the same shapes once
def _with(function: Callable, options: tuple) -> Callable:
    return lambda *arrays: function(*arrays, *options)


def _transposes(function: Callable[..., jax.Array]) -> Callable[..., Gradients]:
    def gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array, *options: int | Pad) -> Gradients:
        (of_x,) = jax.linear_transpose(lambda x: function(x, kernel, *options), x)(gradient)
        (of_kernel,) = jax.linear_transpose(lambda kernel: function(x, kernel, *options), kernel)(gradient)
        return of_x, of_kernel

    return gradients


def _padded(x: jax.Array, pad: Pad, between: int = 0) -> jax.Array:
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, between) for low, high in pad), (0, 0, 0)])


def _taps(x: jax.Array, k: int, stride: int) -> list[jax.Array]:
    """What each of the k x k kernel positions sees of the padded map [N,H,W,C], row by row."""
    n, height, width, channels = x.shape
    return [
        jax.lax.slice(x, (0, i, j, 0), (n, height - k + 1 + i, width - k + 1 + j, channels), (1, stride, stride, 1))
        for i in range(k)
        for j in range(k)
    ]


def _conv(x: jax.Array, kernel: jax.Array, stride: int, pad: Pad) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=_LAYOUT)


def _product(x: jax.Array, kernel: jax.Array, stride: int, pad: Pad) -> jax.Array:
    """One matrix product with the patches; flat, since the gradient of one with more axes takes up to three times as long.

    XLA:CPU is slow where a convolution ends in a map of 2x2 or less (10 times for 4x4 -> 2x2, 20 times for 2x2 -> 2x2), and in the
    gradients of a 1x1 one (3.6 to 6 times for 64 -> 256 channels at 56x56).
    """
    k, channels = kernel.shape[1:3]
    if k == 1:
        patches = x[:, ::stride, ::stride]
        shape = patches.shape[:3]
    else:
        x = _padded(x, pad)
        shape = (len(x), *((size - k) // stride + 1 for size in x.shape[1:3]))
        rows, columns = (range(0, size * stride, stride) for size in shape[1:])
        patches = jnp.stack([x[:, i : i + k, j : j + k] for i in rows for j in columns], axis=1)
    return (patches.reshape(-1, k * k * channels) @ kernel.reshape(k * k * channels, -1)).reshape(*shape, -1)


def _of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product: patches that do not overlap are a change of shape.

    On a GPU XLA gives all that follows, the tokens of a ViT, the order of this change, with the images last.
    """
    (n, height, width, channels), k = x.shape, len(kernel)
    patches = x.reshape(n, height // k, k, width // k, k, channels).swapaxes(2, 3).reshape(n, -1, k * k * channels)
    return (patches @ kernel.reshape(k * k * channels, -1)).reshape(n, height // k, width // k, -1)


def _strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _conv(x, kernel, len(kernel), ((0, 0), (0, 0)))


def _wide_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int, pad: Pad) -> Gradients:
    """That of the kernel as nine matrix products.

    With it both gradients take 0.3 to 1.0 of the time of XLA:CPU's, at maps from 14x14 on; below those are as fast, and
    with one input channel faster.
    """
    (of_x,) = jax.linear_transpose(lambda x: _conv(x, kernel, stride, pad), x)(gradient)
    flat = gradient.reshape(-1, gradient.shape[-1])
    taps = _taps(_padded(x, pad), len(kernel), stride)
    return of_x, jnp.stack([tap.reshape(-1, x.shape[-1]).T @ flat for tap in taps]).reshape(kernel.shape)


def _grouped(x: jax.Array, kernel: jax.Array, stride: int, pad: Pad) -> jax.Array:
    groups = x.shape[-1]
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=_LAYOUT, feature_group_count=groups)


def _shifted(x: jax.Array, kernel: jax.Array, stride: int, pad: Pad) -> jax.Array:
    """k^2 shifted products.

    On XLA:CPU the grouped convolution takes 30 to 80 times as long forward and 10 to 50 times with its gradients, measured at the
    shapes of EfficientNet-B0.
    """
    taps, weights = _taps(_padded(x, pad), len(kernel), stride), kernel.reshape(-1, 1, 1, 1, x.shape[-1])
    return sum((tap * weight for tap, weight in zip(taps[1:], weights[1:], strict=True)), taps[0] * weights[0])


def _shifted_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int, pad: Pad) -> Gradients:
    # That of the map is a depthwise convolution itself; the transposed slices that XLA derives take up to three times as long.
    k, height, width, padded = len(kernel), *x.shape[1:3], _padded(x, pad)
    sizes = zip(padded.shape[1:3], gradient.shape[1:3], strict=True)
    edges = tuple((k - 1, size - (out - 1) * stride - 1) for size, out in sizes)
    (top, _), (left, _) = pad
    of_x = _shifted(_padded(gradient, edges, stride - 1), kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))
    if k < 7:
        sums = jnp.stack([(tap * gradient).sum((0, 1, 2), dtype=jnp.float32) for tap in _taps(padded, k, stride)])
    else:
        sums = _row_sums(padded, gradient, k, stride)
    return of_x[:, top : top + height, left : left + width], sums.reshape(kernel.shape).astype(kernel.dtype)


def _row_sums(padded: jax.Array, gradient: jax.Array, k: int, stride: int) -> jax.Array:
    """The gradient of a large kernel, a row of it at a time: XLA:CPU takes several times as long to compile all its sums."""
    _, height, width, _ = gradient.shape

    def row(i: jax.Array) -> jax.Array:
        seen = jax.lax.dynamic_slice_in_dim(padded, i, (height - 1) * stride + 1, axis=1)[:, ::stride]
        taps = [seen[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(k)]
        return jnp.stack([(tap * gradient).sum((0, 1, 2), dtype=jnp.float32) for tap in taps])

    return jax.lax.map(row, jnp.arange(k))


def _dilated(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_LAYOUT
    )


def _phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A place of the output sees 2x2 places of the input: all four phases of it are one matrix product with the patches of 2x2.

    With its gradients the convolution takes ten to twenty times as long on XLA:CPU.
    """
    n, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # With one row and column more than needed on every side: at 2i + r it sees x[i] by kernel[r] and x[i - 1] by kernel[2 + r].
    patches = [x[:, 1 - q : 2 - q + height, 1 - s : 2 - s + width] for q in (0, 1) for s in (0, 1)]
    kernel = kernel.reshape(2, 2, 2, 2, channels, -1).transpose(0, 2, 4, 1, 3, 5)
    y = jnp.concatenate(patches, axis=-1).reshape(-1, 4 * channels) @ kernel.reshape(4 * channels, -1)
    y = y.reshape(n, height + 1, width + 1, 2, 2, -1).swapaxes(2, 3)
    return y.reshape(n, 2 * height + 2, 2 * width + 2, -1)[:, 1:-1, 1:-1]


PRODUCT = Operation(_product, _conv, _transposes(_product), _transposes(_conv))
WIDE = Operation(_conv, _conv, _wide_gradients, _transposes(_conv))
DEPTHWISE = Operation(_shifted, _grouped, _shifted_gradients, _transposes(_grouped))
PATCHES = Operation(_of_patches, _strided, _transposes(_of_patches), _transposes(_strided))
TRANSPOSED = Operation(_phases, _dilated, _transposes(_phases), _transposes(_dilated))
