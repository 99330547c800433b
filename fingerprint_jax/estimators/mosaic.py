"""Which real images do the patches of the synthetic ones name? No label of a synthetic image is read, and nothing is trained.

What a convolutional diffusion model makes is a mosaic of patches of its training images, each near its own place (Kamb & Ganguli
2025, arXiv 2412.20292). Here the mosaic is taken apart: a patch casts one vote, which real images share by how near they come.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from fingerprint_jax.estimators import Features, Gallery, classes, columns, patches, stream

GAIN = 0.1  # added to votes, in shares of what an image has where all are alike: few votes then say little
FEW = 64  # sets that are compared with are filled up to a multiple of it
KEPT = 2**26  # distances of patches that wait for their sum


def mosaic(
    query: Features,
    gallery: Gallery,
    *,
    seed: int,
    patch: int = 16,
    stride: int = 8,
    radius: int = 1,
    width: float = 0.1,
) -> np.ndarray:
    """How much more the synthetic images vote for an image than real images do that were not used: float32 [M,1].

    A patch q votes among all real images x at hand: those that are asked about, those of the stream `rivals`, and half of the
    reference. Its vote for x is w_x(q) = exp(-d²(q, x) / 2σ²) over the sum of the same for all of them, where d² is the mean square
    difference to the nearest patch of an image near the same place (`patches.each_row`). The score is
    log(v_generated + g) - log(v_reference + g): v are the mean votes of the patches of the synthetic images, and of the other half
    of the reference, g is `GAIN` times what each had were all images alike. The halves change sides, and the two scores are
    averaged. An image never votes for itself.

    The images that are asked about compete for votes: a score depends on the others (transductive). No label is read.

    Args:
        query: values [M,S,S] in 0..1, of one frame.
        gallery: streams `generated` and `reference`, and `rivals` where there are any, values [N,S,S].
        seed: draws the halves.
        patch: side in pixels.
        stride: pixels from a patch to the next.
        radius: patches of real images are shifted by up to so many pixels along each axis.
        width: σ, a root mean square difference of patches of deviation 1.

    Raises:
        ValueError: a patch larger than the images, values that are not square images, a stream that is missing, no synthetic
            image, or fewer than 4 of the reference.
    """
    _check(gallery, patch, stride, radius, width, shape=query.values.shape[1:])
    generated, grid = stream(gallery, "generated"), (patch, stride, radius, width)
    rivals, halves, sides = electorate(query, gallery, seed)
    synthetic, found = mean_votes(query, generated, rivals, sides, *grid), []
    for side, asking, voted in zip(sides, halves[::-1], synthetic, strict=True):
        (real,) = mean_votes(query, asking, rivals, [side], *grid)
        found.append(log_ratio(voted, real, len(query.index) + len(rivals.index) + len(side.index)))
    return np.mean(found, axis=0).astype(np.float32)[:, None]


def mosaic_sets(
    query: Features,
    gallery: Gallery,
    *,
    seed: int,
    patch: int = 16,
    stride: int = 8,
    radius: int = 1,
    width: float = 0.1,
) -> np.ndarray:
    """Which set of real images the patches of a synthetic image vote for: float32 [M,K].

    A patch q of the query votes among all labelled images x by exp(-d²(q, x) / 2σ²), as in `mosaic`; the score of a class is the
    mean over its images of these votes, divided by the sum of that over the classes, averaged over the patches. Nothing is learned
    from synthetic images, so that nothing of a generator but what it shows has a part.

    Args:
        query: values [M,S,S] in 0..1, of one frame.
        gallery: stream `labelled`, real images of each class, values [N,S,S].
        seed: of nothing.
        patch: side in pixels.
        stride: pixels from a patch to the next.
        radius: patches of real images are shifted by up to so many pixels along each axis.
        width: σ, a root mean square difference of patches of deviation 1.

    Raises:
        ValueError: a patch larger than the images, values that are not square images, fewer than two classes.
    """
    labelled, found = stream(gallery, "labelled"), classes(gallery)
    patches.check("mosaic_sets", query.values.shape[1:], patch)
    members = labelled.labels[None] == found[:, None]
    out = np.empty((len(query.index), len(found)), np.float32)
    for rows, images in patches.blocks(query.values):
        logs = _near(images, query.index[rows], labelled, members, patch, stride, radius, width)
        logs = logs - np.log(members.sum(axis=1))
        out[rows] = softmax(logs, axis=2).mean(axis=1)
    return columns(out)


def electorate(query: Features, gallery: Gallery, seed: int) -> tuple[Features, list[Features], list[Features]]:
    """The rivals, the halves of the reference, and of each half who gets votes beside the query and the rivals: each image once."""
    reference = stream(gallery, "reference")
    rivals = _new(gallery["rivals"], query.index) if "rivals" in gallery else reference.take(np.array([], int))
    order, known = np.random.default_rng(seed).permutation(len(reference.index)), np.concatenate([query.index, rivals.index])
    halves = [reference.take(half) for half in np.array_split(order, 2)]
    return rivals, halves, [_new(half, known) for half in halves]


def votes(
    query: Features, asking: Features, rivals: Features, sides: list[Features], patch: int, stride: int, radius: int, width: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What images vote for each of the query, among it, the rivals and each of the sides: rows [B] of `asking`, means [S,B,M].

    The distances of a block to all of the query are kept until it is known how they share: `KEPT` numbers at most, or 16 images.
    """
    places = len(range(0, query.values.shape[1] - patch + 1, stride)) ** 2
    most = max(16, KEPT // (places * max(len(query.index), patches.BLOCK)) // 16 * 16)
    grid = patch, stride, radius, width
    for rows, images in patches.blocks(asking.values, FEW, most):
        index, kept, own = asking.index[rows], [], -np.inf
        for others, candidates in patches.blocks(query.values):
            there = np.arange(len(others)) < len(np.unique(others))  # the last block repeats its first images
            apart = (query.index[others][:, None] != index) & there[:, None]
            weights, logs = _weights(images, candidates, jax.device_put(apart), *grid)
            own = np.logaddexp(own, jax.device_get(logs))
            kept.append(weights)
        beside = [_near(images, index, side, np.ones((1, len(side.index)), bool), *grid)[..., 0] for side in (rivals, *sides)]
        among = np.stack([np.logaddexp(np.logaddexp(own, beside[0]), side) for side in beside[1:]])
        among = jax.device_put(among.astype(np.float32))
        found = np.concatenate([jax.device_get(_shares(weights, among)) for weights in kept], axis=2)
        new = len(np.unique(rows))
        yield rows[:new], found[:, :new, : len(query.index)]


def mean_votes(query: Features, asking: Features, rivals: Features, sides: list[Features], *grid: Any) -> np.ndarray:
    """What images vote for each of the query in the mean, as `votes`: float64 [S,M]. An image has no vote for itself."""
    total = sum(found.sum(axis=1, dtype=np.float64) for _, found in votes(query, asking, rivals, sides, *grid))
    itself = (asking.index[:, None] == query.index).sum(axis=0)
    return total / np.maximum(len(asking.index) - itself, 1)


def log_ratio(synthetic: np.ndarray, real: np.ndarray, among: int) -> np.ndarray:
    """The score of one side: of mean votes [M] of synthetic and of real images, among so many."""
    return np.log(synthetic + GAIN / among) - np.log(real + GAIN / among)


def _near(
    images: jax.Array, index: np.ndarray, others: Features, members: np.ndarray, patch: int, stride: int, radius: int, width: float
) -> np.ndarray:
    """log of the sum over the images of each class, `members` [C,N], of exp(-d²/2σ²), for each patch of a block: [B,K,C]."""
    found = np.full((1, 1, len(members)), -np.inf, np.float32)
    for rows, block in patches.blocks(others.values, FEW):
        there = (np.arange(len(rows)) < len(np.unique(rows))) & members[:, rows]
        apart = (index[:, None] != others.index[rows])[None] & there[:, None]
        logs = _logs(images, block, jax.device_put(apart), patch, stride, radius, width)
        found = np.logaddexp(found, jax.device_get(logs))
    return found


def _new(other: Features, known: np.ndarray) -> Features:
    """Those whose numbers are not known yet: images of another data set, whose numbers are -1, stand alone."""
    return other.take(~np.isin(other.index, known))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _logs(query: jax.Array, others: jax.Array, members: jax.Array, patch: int, stride: int, radius: int, width: float) -> jax.Array:
    """As `_near`, of one block of others [N,S,S] of which `members` [C,B,N] count."""

    def read(squared: jax.Array) -> jax.Array:
        logs = -squared / (2 * width**2)
        return jnp.stack([jax.nn.logsumexp(jnp.where(each[None], logs, -jnp.inf), axis=2) for each in members], axis=-1)

    found = patches.each_row(query, others, read, patch, stride, radius)  # [rows,columns,B,C]
    return jnp.moveaxis(found, 2, 0).reshape(len(query), -1, len(members))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _weights(
    asking: jax.Array, among: jax.Array, apart: jax.Array, patch: int, stride: int, radius: int, width: float
) -> tuple[jax.Array, jax.Array]:
    """-d²/2σ² of each patch of a block [B,S,S] and each image [N,S,S], -inf where these are not `apart` [N,B]: [N,B,K].

    And the log of the sum over the images of their exponentials: [B,K].
    """
    pairs = patches.each_row(asking, among, lambda squared: -squared / (2 * width**2), patch, stride, radius)
    pairs = jnp.transpose(pairs, (3, 2, 0, 1)).reshape(len(among), len(asking), -1)
    weights = jnp.where(apart[:, :, None], pairs, -jnp.inf)
    return weights, jax.nn.logsumexp(weights, axis=0)


@jax.jit
def _shares(weights: jax.Array, among: jax.Array) -> jax.Array:
    """The mean vote of a block for each image: weights [N,B,K], the logs of the sums over all that share one [S,B,K] -> [S,B,N]."""
    return jnp.stack([jnp.exp(jnp.minimum(weights - each[None], 0)).mean(axis=2).T for each in among])


def _check(gallery: Gallery, patch: int, stride: int, radius: int, width: float, shape: tuple[int, ...] | None = None) -> None:
    generated, reference = stream(gallery, "generated"), stream(gallery, "reference")
    patches.check("mosaic", generated.values.shape[1:] if shape is None else shape, patch)
    if len(reference.index) < 4:
        raise ValueError(f"gallery.reference has {len(reference.index)} images: mosaic needs at least 4")


def _check_sets(gallery: Gallery, patch: int, stride: int, radius: int, width: float) -> None:
    classes(gallery)
    patches.check("mosaic_sets", stream(gallery, "labelled").values.shape[1:], patch)


CHECKS = {"mosaic": _check, "mosaic_sets": _check_sets}
ESTIMATORS = {"mosaic": mosaic, "mosaic_sets": mosaic_sets}
TRANSDUCTIVE = {"mosaic": "the images that are asked about compete for the votes of the synthetic ones"}
