"""Which real images do the patches of the synthetic ones name? No label of a synthetic image is read, and nothing is trained.

What a convolutional diffusion model makes is a mosaic of patches of its training images, each near its own place (Kamb & Ganguli
2025, arXiv 2412.20292). Here the mosaic is taken apart: a patch casts one vote, which real images share by how near they come.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from fingerprint_jax.estimators import Features, Gallery, classes, columns, patches, stream

GAIN = 0.1  # added to votes, in shares of what an image has where all are alike: few votes then say little
FEW = 64  # sets that are compared with are filled up to a multiple of it


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
    generated, reference = stream(gallery, "generated"), stream(gallery, "reference")
    grid = patch, stride, radius
    sides, found = np.array_split(np.random.default_rng(seed).permutation(len(reference.index)), 2), []
    for half, asking in (sides, sides[::-1]):
        among = _joined(query, *([gallery["rivals"]] if "rivals" in gallery else []), reference.take(half))
        least = GAIN / len(among.index)
        synthetic = votes(query, generated, among, *grid, width)
        real = votes(query, reference.take(asking), among, *grid, width)
        found.append(np.log(synthetic + least) - np.log(real + least))
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


def votes(query: Features, asking: Features, among: Features, patch: int, stride: int, radius: int, width: float) -> np.ndarray:
    """The mean vote for each image [M] of the patches of others [N,S,S], `among` which images it is one: float64 [M]."""
    total, count = np.zeros(len(query.index)), np.zeros(len(query.index))
    grid = patch, stride, radius, width
    everyone = np.ones((1, len(among.index)), bool)
    for rows, images in patches.blocks(asking.values, FEW):
        there = np.arange(len(rows)) < len(np.unique(rows))  # the last block repeats its first images
        logs = jax.device_put(_near(images, asking.index[rows], among, everyone, *grid)[..., 0])
        for others, candidates in patches.blocks(query.values):
            apart = (asking.index[rows][:, None] != query.index[others]) & there[:, None]
            new = len(np.unique(others))
            total[others[:new]] += jax.device_get(_votes(images, logs, candidates, jax.device_put(apart), *grid))[:new]
            count[others[:new]] += apart.sum(axis=0)[:new]
    places = len(range(0, query.values.shape[1] - patch + 1, stride)) ** 2
    return total / np.maximum(count * places, 1)


def _near(
    images: jax.Array, index: np.ndarray, others: Features, members: np.ndarray, patch: int, stride: int, radius: int, width: float
) -> np.ndarray:
    """log of the sum over the images of each class, `members` [C,N], of exp(-d²/2σ²), for each patch of a block: [B,K,C]."""
    found = None
    for rows, block in patches.blocks(others.values, FEW):
        there = (np.arange(len(rows)) < len(np.unique(rows))) & members[:, rows]
        apart = (index[:, None] != others.index[rows])[None] & there[:, None]
        logs = _logs(images, block, jax.device_put(apart), patch, stride, radius, width)
        found = logs if found is None else jnp.logaddexp(found, logs)
    return jax.device_get(found)


def _joined(first: Features, *others: Features) -> Features:
    """All images, each once: those of another data set, whose numbers are -1, stand alone."""
    parts = [first]
    for other in others:
        known = np.concatenate([part.index for part in parts])
        parts.append(other.take(~np.isin(other.index, known)))
    values, labels, index = zip(*((part.values, part.labels, part.index) for part in parts), strict=True)
    return Features(np.concatenate(values), np.concatenate(labels), np.concatenate(index))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _logs(query: jax.Array, others: jax.Array, members: jax.Array, patch: int, stride: int, radius: int, width: float) -> jax.Array:
    """As `_near`, of one block of others [N,S,S] of which `members` [C,B,N] count."""

    def read(squared: jax.Array) -> jax.Array:
        logs = -squared / (2 * width**2)
        return jnp.stack([jax.nn.logsumexp(jnp.where(each[None], logs, -jnp.inf), axis=2) for each in members], axis=-1)

    found = patches.each_row(query, others, read, patch, stride, radius)  # [rows,columns,B,C]
    return jnp.moveaxis(found, 2, 0).reshape(len(query), -1, len(members))


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _votes(
    asking: jax.Array, among: jax.Array, query: jax.Array, apart: jax.Array, patch: int, stride: int, radius: int, width: float
) -> jax.Array:
    """Sum over the patches of a block [B,S,S] of their votes for each image [N,S,S]: [N].

    `among` [B,K] are the logs of the sums over all images that they vote among. Pairs that are not `apart` [B,N] have no vote.
    """
    squared = patches.each_row(asking, query, lambda pairs: pairs, patch, stride, radius)  # [rows,columns,B,N]
    squared = jnp.moveaxis(squared.reshape(-1, *squared.shape[2:]), 1, 0)
    share = jnp.exp(jnp.minimum(-squared / (2 * width**2) - among[..., None], 0))
    return jnp.sum(jnp.where(apart[:, None], share, 0), axis=(0, 1))


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
