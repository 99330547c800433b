"""Is an image's local anatomy closer to the synthetic images than to other real ones? No label is read.

A generator that recombines local anatomy leaves an image's parts in many synthetic images, and the whole in none.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fingerprint_jax.estimators import Features, Gallery, stream

FLOOR = 0.04  # deviation of a patch, of grey levels in 0..1, below which it counts less: air, and noise alone
EPSILON = 1e-4  # added to squared distances: above what rounding leaves of a verbatim copy
BLOCK = 128  # images of a side compared at once


def local_match(
    query: Features,
    gallery: Gallery,
    *,
    seed: int,
    patch: int = 16,
    stride: int = 8,
    radius: int = 1,
    top: float = 0.25,
) -> np.ndarray:
    """Mean over an image's patches of log(d_reference / d_generated): float32 [M,1], 0 where neither set is closer.

    Patches are brought to mean 0 and deviation 1, and d is the root mean square difference from the nearest patch near the same
    place in any image of a set. For equal chances of a close one the larger set is cut at random into parts as large as the smaller
    (the last overlaps the one before), and log d is averaged over the parts. The log ratio of a patch whose deviation s is below
    `FLOOR` counts (s / FLOOR)^2. An image is never compared with itself.

    The defaults did best, of a small grid, on phantoms with images registered to 64 px; no label of a real image chose them.

    Args:
        query: values [M,S,S] in 0..1, registered.
        gallery: streams `generated` and `reference`, values [N,S,S].
        seed: draws the parts.
        patch: side in pixels.
        stride: pixels from a patch to the next.
        radius: patches of the gallery are shifted by up to so many pixels along each axis.
        top: share of the patches, those of the highest log ratios, whose mean is the score; 1: all.

    Raises:
        ValueError: options out of range, values that are not square images, a stream that is missing or has fewer than 2 images.
    """
    _check(query, gallery, patch, stride, radius, top)
    streams = [stream(gallery, name) for name in ("reference", "generated")]
    size, rng = min(len(known.values) for known in streams), np.random.default_rng(seed)
    parts = [_parts(rng, len(known.values), size) for known in streams]
    scores = np.empty((len(query.values), 1), np.float32)
    for start in range(0, len(scores), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(scores)))
        # Always as many rows, so that one compilation does and a row's rounding does not depend on the others.
        block = np.resize(rows, BLOCK)
        images, index = jax.device_put(query.values[block]), query.index[block]
        reference, generated = (
            np.mean([_log_distance(images, index, known, part, patch, stride, radius) for part in found], axis=0)
            for known, found in zip(streams, parts, strict=True)
        )
        ratio = (_weights(query.values[block], patch, stride) * (reference - generated))[: len(rows)]
        count = max(1, round(top * ratio.shape[1]))
        scores[rows, 0] = np.sort(ratio, axis=1)[:, -count:].mean(axis=1)
    return scores


def _parts(rng: np.random.Generator, count: int, size: int) -> list[np.ndarray]:
    """Random sets of `size` of the numbers below `count` that together hold them all."""
    order = rng.permutation(count)
    return [order[min(i, count - size) :][:size] for i in range(0, count, size)]


def _log_distance(images: jax.Array, index: np.ndarray, known: Features, part: np.ndarray, *grid: int) -> np.ndarray:
    """Log of each patch's distance to the nearest of some images of a stream: [B,S,S], [B], [size] -> [B,K]."""
    blocks = -(-len(part) // BLOCK)
    width = -(-len(part) // blocks)
    # A repeated image changes no minimum.
    found = [
        _nearest(images, jax.device_put(known.values[others]), jax.device_put(index[:, None] == known.index[others]), *grid)
        for others in np.resize(part, (blocks, width))
    ]
    squared = np.minimum.reduce(jax.device_get(found))
    return 0.5 * np.log(np.maximum(squared, 0) + EPSILON)


def _weights(images: np.ndarray, patch: int, stride: int) -> np.ndarray:
    """What each patch counts, 0..1: [B,S,S] -> [B,K]."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (patch, patch), axis=(1, 2))[:, ::stride, ::stride]
    return np.minimum(windows.var(axis=(3, 4)) / FLOOR**2, 1).reshape(len(images), -1)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _nearest(query: jax.Array, others: jax.Array, same: jax.Array, patch: int, stride: int, radius: int) -> jax.Array:
    """Squared distance of each patch to the nearest one within `radius`: [B,S,S], [N,S,S], pairs left out [B,N] -> [B,K].

    One row of patches and one shift at a time: [columns,B,N] is the largest array.
    """
    last = query.shape[1] - patch
    places = jnp.arange(0, last + 1, stride)
    shifts = jnp.arange(-radius, radius + 1)
    shifts = jnp.stack(jnp.meshgrid(shifts, shifts), axis=-1).reshape(-1, 2)

    def patches(images, y, x):
        """Normalised patches at one height: [N,S,S], (), [C] -> [C,N,D]."""
        rows = jax.lax.dynamic_slice_in_dim(images, y, patch, axis=1)
        found = rows[:, :, x[:, None] + jnp.arange(patch)[None]]
        found = jnp.moveaxis(found, 2, 0).reshape(len(x), len(images), patch**2)
        found -= found.mean(axis=2, keepdims=True)
        return found / (patch * jnp.maximum(jnp.sqrt(jnp.mean(found**2, axis=2, keepdims=True)), FLOOR))

    def row(y):
        own = patches(query, y, places)

        def shifted(nearest, shift):
            # What would leave the frame stays at its edge.
            theirs = patches(others, jnp.clip(y + shift[0], 0, last), jnp.clip(places + shift[1], 0, last))
            products = jnp.einsum("cbd,cnd->cbn", own, theirs, precision="highest")
            squared = jnp.sum(theirs**2, axis=2)[:, None, :] - 2 * products
            return jnp.minimum(nearest, jnp.where(same[None], jnp.inf, squared).min(axis=2)), None

        nearest, _ = jax.lax.scan(shifted, jnp.full(own.shape[:2], jnp.inf), shifts)
        return nearest + jnp.sum(own**2, axis=2)

    return jnp.moveaxis(jax.lax.map(row, places), 2, 0).reshape(len(query), -1)


def _check(query: Features, gallery: Gallery, patch: int, stride: int, radius: int, top: float) -> None:
    shape = query.values.shape[1:]
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"features of shape {shape}: local_match needs square images, as features.name='registered' gives")
    for name in ("generated", "reference"):
        if len(stream(gallery, name).values) < 2:
            raise ValueError(f"gallery.{name} has {len(gallery[name].values)} images: local_match needs at least 2")
    if not 2 <= patch <= shape[0]:
        raise ValueError(f"estimator.patch={patch}: use 2 to {shape[0]}, the side of the images")
    if stride < 1:
        raise ValueError(f"estimator.stride={stride}: use at least 1 pixel")
    if radius < 0:
        raise ValueError(f"estimator.radius={radius}: use 0 or more pixels")
    if not 0 < top <= 1:
        raise ValueError(f"estimator.top={top}: use a share above 0 and up to 1")


ESTIMATORS = {"local_match": local_match}
