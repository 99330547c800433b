"""Squared distances of local anatomy: a patch of an image to the nearest one near the same place of another image."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 0.04  # deviation of a patch, of grey levels in 0..1, below which it counts less: air, and noise alone
BLOCK = 256  # images of a side compared at once


def blocks(images: np.ndarray, few: int = 0, most: int = BLOCK) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Row numbers [BLOCK] and their images. The last block repeats some of its own.

    Always as many rows, so that one compilation does and a row's rounding does not depend on the others. Where it may, `few` has
    the blocks of a small set end at a multiple of it. No block has more than `most`.
    """
    size = min(BLOCK, most)
    size = max(1, min(size, -(-len(images) // few) * few)) if few else size
    for start in range(0, len(images), size):
        rows = np.resize(np.arange(start, min(start + size, len(images))), size)
        yield rows, jax.device_put(images[rows])


def even(part: np.ndarray) -> np.ndarray:
    """Blocks of one size of some numbers, the first of which are repeated at the end, which changes no minimum: [blocks,width]."""
    count = -(-len(part) // BLOCK)
    return np.resize(part, (count, -(-len(part) // count)))


def each_row(
    query: jax.Array, others: jax.Array, read: Callable[[jax.Array], jax.Array], patch: int, stride: int, radius: int
) -> jax.Array:
    """What is read from the squared distances [columns,B,N] of a row's patches to the nearest within `radius`: [rows, ...].

    Patches of [B,S,S] stand every `stride` pixels, those of [N,S,S] are shifted by up to `radius` along each axis. A patch is
    brought to mean 0 and deviation 1, that of one with a deviation below `FLOOR` to less; the distance is the mean square
    difference. One row of patches and one shift at a time: [columns,B,N] is the largest array.
    """
    last = query.shape[1] - patch
    places = jnp.arange(0, last + 1, stride)
    shifts = jnp.arange(-radius, radius + 1)
    shifts = jnp.stack(jnp.meshgrid(shifts, shifts), axis=-1).reshape(-1, 2)

    def patches(images: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
        """Normalised patches at one height: [N,S,S], (), [C] -> [C,N,D]."""
        rows = jax.lax.dynamic_slice_in_dim(images, y, patch, axis=1)
        found = rows[:, :, x[:, None] + jnp.arange(patch)[None]]
        found = jnp.moveaxis(found, 2, 0).reshape(len(x), len(images), patch**2)
        found -= found.mean(axis=2, keepdims=True)
        return found / (patch * jnp.maximum(jnp.sqrt(jnp.mean(found**2, axis=2, keepdims=True)), FLOOR))

    def row(y: jax.Array) -> jax.Array:
        own = patches(query, y, places)

        def shifted(nearest: jax.Array, shift: jax.Array) -> tuple[jax.Array, None]:
            # What would leave the frame stays at its edge.
            theirs = patches(others, jnp.clip(y + shift[0], 0, last), jnp.clip(places + shift[1], 0, last))
            products = jnp.einsum("cbd,cnd->cbn", own, theirs, precision="highest")
            return jnp.minimum(nearest, jnp.sum(theirs**2, axis=2)[:, None, :] - 2 * products), None

        nearest, _ = jax.lax.scan(shifted, jnp.full((*own.shape[:2], len(others)), jnp.inf), shifts)
        return read(nearest + jnp.sum(own**2, axis=2)[:, :, None])

    return jax.lax.map(row, places)


def check(name: str, shape: tuple[int, ...], patch: int) -> None:
    """Raises ValueError where images of a shape are not square, or smaller than a patch; `name` is that of the estimator."""
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"features of shape {shape}: {name} needs square images, as features.name='registered' gives")
    if patch > shape[0]:
        raise ValueError(f"estimator.patch={patch}: use 2 to {shape[0]}, the side of the images")
