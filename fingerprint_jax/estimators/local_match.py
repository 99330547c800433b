"""Is an image's local anatomy closer to the synthetic images than to other real ones? No label is read.

A generator that recombines local anatomy leaves an image's parts in many synthetic images, and the whole in none.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fingerprint_jax.estimators import Features, Gallery, patches, stream

EPSILON = 1e-4  # added to squared distances: above what rounding leaves of a verbatim copy


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
    `patches.FLOOR` counts (s / FLOOR)^2. An image is never compared with itself.

    The defaults did best, of a small grid, on phantoms with images registered to 64 px; no label of a real image chose them.

    Args:
        query: values [M,S,S] in 0..1, of one frame.
        gallery: streams `generated` and `reference`, values [N,S,S].
        seed: draws the parts.
        patch: side in pixels.
        stride: pixels from a patch to the next.
        radius: patches of the gallery are shifted by up to so many pixels along each axis.
        top: share of the patches, those of the highest log ratios, whose mean is the score; 1: all.

    Raises:
        ValueError: a patch larger than the images, values that are not square images, a stream that is missing or has fewer than 2
            images.
    """
    _check({"query": query, **gallery}, patch, stride, radius, top)
    streams = [stream(gallery, name) for name in ("reference", "generated")]
    size, rng = min(len(known.values) for known in streams), np.random.default_rng(seed)
    reference, generated = (
        part_distances(query, known, parts(rng, len(known.values), size), patch, stride, radius) for known in streams
    )
    return log_ratio(weights(query.values, patch, stride), reference, generated, top)[:, None]


def parts(rng: np.random.Generator, count: int, size: int) -> list[np.ndarray]:
    """Random sets of `size` of the numbers below `count` that together hold them all."""
    order = rng.permutation(count)
    return [order[min(i, count - size) :][:size] for i in range(0, count, size)]


def part_distances(query: Features, known: Features, found: list[np.ndarray], patch: int, stride: int, radius: int) -> np.ndarray:
    """Squared distance of each patch to the nearest of some images of a stream, for each of their parts: [parts,M,K]."""

    def nearest(images: jax.Array, index: np.ndarray, part: np.ndarray) -> np.ndarray:
        near = [
            _nearest(images, jax.device_put(known.values[others]), jax.device_put(index[:, None] == known.index[others]), *grid)
            for others in patches.even(part)
        ]
        return np.minimum.reduce(jax.device_get(near))

    grid = patch, stride, radius
    blocks = [[nearest(images, query.index[rows], part) for part in found] for rows, images in patches.blocks(query.values)]
    return np.concatenate(blocks, axis=1)[:, : len(query.values)]


def pair_distances(query: np.ndarray, others: np.ndarray, patch: int, stride: int, radius: int, few: int = 0) -> np.ndarray:
    """Squared distance of each patch to the nearest one of each image by itself: [M,S,S], [N,S,S] -> [N,M,K].

    `few` as in `patches.blocks`: of a handful of queries no more are compared.
    """
    pairs = [
        np.concatenate(
            [_pairs(images, jax.device_put(others[block]), patch, stride, radius) for block in patches.even(np.arange(len(others)))]
        )
        for _, images in patches.blocks(query, few)
    ]
    return np.concatenate(pairs, axis=1)[: len(others), : len(query)]


def log_ratio(weight: np.ndarray, reference: np.ndarray, generated: np.ndarray, top: float) -> np.ndarray:
    """The score [M] from what each patch counts [M,K] and its squared distances [parts,M,K] to both sets."""
    ratio = ratios(weight, reference, generated)
    count = max(1, round(top * ratio.shape[1]))
    return np.sort(ratio, axis=1)[:, -count:].mean(axis=1)


def ratios(weight: np.ndarray, reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Of each patch the log ratio of its distances [parts,M,K] to both sets, as far as it counts [M,K]: [M,K]."""
    far, near = (np.mean(0.5 * np.log(np.maximum(squared, 0) + EPSILON), axis=0) for squared in (reference, generated))
    return weight * (far - near)


def weights(images: np.ndarray, patch: int, stride: int) -> np.ndarray:
    """What each patch counts, 0..1: [M,S,S] -> [M,K]."""
    out = []
    for start in range(0, len(images), patches.BLOCK):
        block = images[start : start + patches.BLOCK]
        windows = np.lib.stride_tricks.sliding_window_view(block, (patch, patch), axis=(1, 2))[:, ::stride, ::stride]
        out.append(np.minimum(windows.var(axis=(3, 4)) / patches.FLOOR**2, 1).reshape(len(block), -1))
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _nearest(query: jax.Array, others: jax.Array, same: jax.Array, patch: int, stride: int, radius: int) -> jax.Array:
    """Squared distance of each patch to the nearest one of any image: [B,S,S], [N,S,S], pairs left out [B,N] -> [B,K]."""
    least = patches.each_row(query, others, lambda pairs: jnp.where(same[None], jnp.inf, pairs).min(axis=2), patch, stride, radius)
    return jnp.moveaxis(least, 2, 0).reshape(len(query), -1)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _pairs(query: jax.Array, others: jax.Array, patch: int, stride: int, radius: int) -> jax.Array:
    """Squared distance of each patch to the nearest one of each image: [B,S,S], [N,S,S] -> [N,B,K]."""
    pairs = patches.each_row(query, others, lambda pairs: pairs, patch, stride, radius)
    return jnp.transpose(pairs, (3, 2, 0, 1)).reshape(len(others), len(query), -1)


def _check(gallery: Gallery, patch: int, stride: int, radius: int, top: float) -> None:
    patches.check("local_match", gallery.get("query", stream(gallery, "generated")).values.shape[1:], patch)
    for name in ("generated", "reference"):
        if len(stream(gallery, name).values) < 2:
            raise ValueError(f"gallery.{name} has {len(gallery[name].values)} images: local_match needs at least 2")


CHECKS = {"local_match": _check}
ESTIMATORS = {"local_match": local_match}
