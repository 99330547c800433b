"""Exact nearest neighbours, as matrix products on the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

SURPLUS = 8  # candidates more than asked for: their distances are taken again without a matrix product's rounding
QUERIES = 1024  # handled at once
ELEMENTS = 2**26  # numbers of a block on the device


def nearest(
    query: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    query_index: np.ndarray | None = None,
    gallery_index: np.ndarray | None = None,
    block: int = 16384,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of the gallery to each query.

    The candidates, some more than k, come from a table of squared distances in float32 with the origin amid the gallery; their
    distances are then taken from the differences, so that those of near-duplicates do not cancel. On rows of unit length
    these are the k of the highest inner product.

    Args:
        query: [M,D].
        gallery: [N,D].
        k: 1 to N.
        query_index: [M] record numbers, and ...
        gallery_index: ... [N]: pairs of the same number are left out.
        block: rows of the gallery handled at once, fewer where they are long.

    Returns:
        Euclidean distances float32 [M,k], ascending, and positions in the gallery int64 [M,k]; inf and -1 where no more are left.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k={k}: the gallery has {len(gallery)} rows, use 1 to as many")
    if query_index is None or gallery_index is None:
        query_index, gallery_index = np.full(len(query), -1), np.full(len(gallery), -2)
    distances, positions = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int64)
    longest = max(1, ELEMENTS // max(1, query.shape[1]))
    others, size = (gallery, gallery_index), -(-len(gallery) // -(-len(gallery) // min(block, longest)))  # blocks of one size
    centre = gallery.mean(axis=0, keepdims=True)
    for rows in np.array_split(np.arange(len(query)), -(-len(query) // min(QUERIES, longest))):
        found = _candidates((query[rows], query_index[rows]), others, centre, min(k + SURPLUS, len(gallery)), size)
        distances[rows], positions[rows] = _ordered(query[rows], gallery, found, k)
    return distances, positions


def _candidates(
    asked: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray], centre: np.ndarray, count: int, size: int
) -> np.ndarray:
    """Positions [M,count] of the nearest rows of the gallery by the table of squared distances; -1 where no more are left."""
    asked, (gallery, gallery_index) = jax.device_put((np.float32(asked[0] - centre), np.int32(asked[1]))), others
    centre, shape = jax.device_put(np.float32(centre)), (len(asked[0]), count)
    best = jax.device_put((np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int32)))
    for first in range(0, len(gallery), size):
        # The last block begins earlier, so that all have one shape; what stood in the block before counts no more.
        start = min(first, len(gallery) - size)
        part = slice(start, start + size)
        index = np.where(np.arange(start, start + size) < first, -3, gallery_index[part])
        block = (np.asarray(gallery[part], np.float32), np.int32(index), np.int32(start))
        best = _merge(best, asked, jax.device_put(block), centre)
    return np.asarray(jax.device_get(best[1]))


@functools.partial(jax.jit, donate_argnums=0)
def _merge(
    best: tuple[jax.Array, jax.Array],
    asked: tuple[jax.Array, jax.Array],
    block: tuple[jax.Array, jax.Array, jax.Array],
    centre: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    (query, query_index), (gallery, index, start) = asked, block
    gallery = gallery - centre
    # The squared distance less the query's own norm, which moves no order.
    square = jnp.sum(gallery**2, axis=1)[None, :] - 2 * jnp.matmul(query, gallery.T, precision=jax.lax.Precision.HIGHEST)
    left_out = (query_index[:, None] == index[None, :]) | (index == -3)[None, :]
    low, place = jax.lax.top_k(jnp.where(left_out, -jnp.inf, -square), min(best[0].shape[1], len(gallery)))
    place = jnp.where(low == -jnp.inf, -1, place + start)
    low, order = jax.lax.top_k(jnp.concatenate([-best[0], low], axis=1), best[0].shape[1])
    return -low, jnp.take_along_axis(jnp.concatenate([best[1], place], axis=1), order, axis=1)


def _ordered(query: np.ndarray, gallery: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of some candidates, by their differences."""
    distances = np.empty(found.shape, np.float32)
    size = max(1, ELEMENTS // 4 // (found.shape[1] * query.shape[1]))
    for first in range(0, len(query), size):
        rows = slice(first, first + size)
        difference = gallery[found[rows]] - query[rows, None]
        distances[rows] = np.sqrt(np.einsum("mkd,mkd->mk", difference, difference))
    distances[found < 0] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(found, order, axis=1)
