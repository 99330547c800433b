"""Copies among the synthetic images: which real images have one that is closer than chance allows.

The distance sees through shifts of up to `SHIFT` pixels, changes of brightness and contrast, and re-encoding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import false_discovery_control

SHIFT = 2  # pixels, up, down, left and right
BLOCK = 256  # images of a side compared at once
FLAT = 1e-3  # deviation of grey levels 0..255, below which an image is taken for constant


@dataclasses.dataclass(frozen=True)
class Copies:
    """Of N real images asked about, and R reference images that were not used."""

    distance: np.ndarray  # [N] to the nearest synthetic image, 0 (the same) to 2
    match: np.ndarray  # [N] int, its position
    p: np.ndarray  # [N] conformal p-value of not having been copied
    flagged: np.ndarray  # [N] bool, found at the false discovery rate
    closer: np.ndarray  # [N] bool, closer to its match than any two reference images of different groups are; no p-value
    reference_distance: np.ndarray  # [R] of the reference images to their nearest synthetic one
    reference_match: np.ndarray  # [R] int, its position
    closest_reference_pair: float  # distance of these two
    smallest_p: float  # 1 / (R + 1)
    fewest: int  # how many images have to be found together for the smallest p to be enough; N + 1: no number is


def find(
    real: np.ndarray, reference: np.ndarray, generated: np.ndarray, reference_groups: np.ndarray, *, fdr: float = 0.05
) -> Copies:
    """Copies of real images among the synthetic ones.

    p = (1 + #(reference images that are as close to a synthetic image)) / (1 + R), right where an image that was not used is like
    one of the reference (conformal p-values: Vovk, Gammerman & Shafer 2005; Bates et al. 2023, Annals of Statistics 51:149, which
    also has Benjamini & Hochberg's procedure on them).

    Args:
        real: uint8 [N,H,W].
        reference: uint8 [R,H,W].
        generated: uint8 [G,H,W].
        reference_groups: [R], patients.
        fdr: the false discovery rate.
    """
    distance, match = nearest(real, generated)
    own, own_match = nearest(reference, generated)
    _, group = np.unique(reference_groups, return_inverse=True)
    pair = float(nearest(reference, reference, group, group)[0].min())
    p = (1 + (own[None, :] <= distance[:, None]).sum(axis=1)) / (1 + len(own))
    smallest = 1 / (1 + len(own))
    return Copies(
        distance=distance,
        match=match,
        p=p,
        flagged=false_discovery_control(p) <= fdr if len(p) else np.zeros(0, bool),
        closer=distance < pair,
        reference_distance=own,
        reference_match=own_match,
        closest_reference_pair=pair,
        smallest_p=smallest,
        fewest=next((k for k in range(1, len(p) + 1) if smallest <= fdr * k / len(p)), len(p) + 1),
    )


def nearest(
    query: np.ndarray, others: np.ndarray, query_group: np.ndarray | None = None, group: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] and position [N] of the nearest other image, the own group left out: uint8 [N,H,W], [G,H,W].

    sqrt(2 - 2 r), r the largest correlation of the query without its border of `SHIFT` pixels with a window of that size in the
    other image, over all (2 SHIFT + 1)^2 windows; a constant window correlates with nothing. It is infinite where all are left out.
    """
    count, side = len(query), BLOCK
    best, position = np.full(count, -np.inf, np.float32), np.zeros(count, np.int64)
    marks = [np.full(len(x), -1 - i) if g is None else g for i, (x, g) in enumerate(((query, query_group), (others, group)))]
    for first in range(0, count, side):
        rows = np.resize(np.arange(first, min(first + side, count)), side)  # always as many, for one compilation
        left = jax.device_put(query[rows]), jax.device_put(marks[0][rows])
        for start in range(0, len(others), side):
            columns = np.resize(np.arange(start, min(start + side, len(others))), side)
            found = _correlations(*left, jax.device_put(others[columns]), jax.device_put(marks[1][columns]))
            value, where = (np.asarray(x)[: min(side, count - first)] for x in jax.device_get(found))
            at = slice(first, min(first + side, count))
            better = value > best[at]
            best[at] = np.where(better, value, best[at])
            position[at] = np.where(better, columns[where], position[at])
    return np.sqrt(np.maximum(2 - 2 * best.astype(np.float64), 0)), position


@jax.jit
def _correlations(query: jax.Array, query_mark: jax.Array, others: jax.Array, mark: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest correlation [B] of each query with the others, and its column [B]."""
    height, width = query.shape[1] - 2 * SHIFT, query.shape[2] - 2 * SHIFT

    def normal(images):
        x = images.reshape(len(images), -1).astype(jnp.float32)
        x -= x.mean(axis=1, keepdims=True)
        norm = jnp.linalg.norm(x, axis=1, keepdims=True)
        return jnp.where(norm > FLAT * np.sqrt(x.shape[1]), x / jnp.maximum(norm, 1e-30), 0)

    own = normal(query[:, SHIFT:-SHIFT, SHIFT:-SHIFT])

    def step(best, shift):
        window = jax.lax.dynamic_slice(others, (0, shift[0], shift[1]), (len(others), height, width))
        return jnp.maximum(best, jnp.matmul(own, normal(window).T, precision="highest")), None

    shifts = jnp.stack(jnp.meshgrid(jnp.arange(2 * SHIFT + 1), jnp.arange(2 * SHIFT + 1)), axis=-1).reshape(-1, 2)
    best, _ = jax.lax.scan(step, jnp.full((len(query), len(others)), -1.0), shifts)
    best = jnp.where(query_mark[:, None] == mark[None, :], -jnp.inf, best)
    return best.max(axis=1), best.argmax(axis=1)
