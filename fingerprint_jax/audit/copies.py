"""Copies of real images among the synthetic ones, beside how close the synthetic ones are to images known not to be used."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import false_discovery_control

from fingerprint_jax.runtime.progress import progress

SHIFT = 2  # pixels, down and across: what is taken for the same place
LEAST_SIDE = 2 * SHIFT + 2
SHIFTS = [(down, across) for down in range(-SHIFT, SHIFT + 1) for across in range(-SHIFT, SHIFT + 1)]
BLOCK = 1024  # images of a side compared at once, fewer where they are large ...
ELEMENTS = 2**24  # ... for so many pixels of a side on the device


@dataclasses.dataclass(frozen=True)
class Copies:
    """What is known of N real images, r reference images of K groups and the synthetic images nearest to them."""

    distance: np.ndarray  # [N] float64 to the nearest synthetic image, 0..2, see `nearest`
    match: np.ndarray  # [N] its position among the synthetic images
    p: np.ndarray  # [N] conformal p-value
    flagged: np.ndarray  # [N] bool: found at the false discovery rate that was asked for
    closer: np.ndarray  # [N] bool: closer to its match than any reference image to another; this is no p-value
    reference_distance: np.ndarray  # [r] ascending, to the nearest synthetic image
    reference: np.ndarray  # [r] positions of the reference images in that order
    reference_match: np.ndarray  # [r] and of their nearest synthetic images
    closest_reference_pair: float  # least distance of a reference image to one of another group
    smallest_p: float  # 1 / (1 + K), whatever the distance
    fewest: int  # real images that have to be flagged together at the smallest p, 1..N; N + 1: nothing can be flagged


def find(
    real: np.ndarray, reference: np.ndarray, generated: np.ndarray, *, reference_groups: np.ndarray | None = None, fdr: float = 0.05
) -> Copies:
    """Real images that are nearer to the synthetic images than images known not to be used.

    Flagged are those that Benjamini & Hochberg's procedure finds by their p-values (`conformal_p`). They all rest on one reference;
    it holds the false discovery rate with such ones too (Bates et al. 2023, Annals of Statistics 51:149, of conformal p-values one
    image a group; of groups it rests on the same positive dependence, and on simulations). A rate: where some are
    copies, one in twenty of those flagged may be none.

    Args:
        real: uint8 [N,H,W], N >= 1.
        reference: uint8 [r,H,W], real images known not to be used.
        generated: uint8 [M,H,W], M >= 1.
        reference_groups: [r] patients, one or more images each; None: each image is a group.
        fdr: false discovery rate, 0 to 1.

    Raises ValueError for images of different or too small sizes, or a reference of fewer than two groups.
    """
    names = np.arange(len(reference)) if reference_groups is None else reference_groups
    _, group = np.unique(names, return_inverse=True)
    if not group.any():
        raise ValueError(f"reference: {len(reference)} images of {len(np.unique(group))} patients, at least 2 are needed")
    distance, match = nearest(np.concatenate([real, reference]), generated)
    closest = float(nearest(reference, reference, group, group)[0].min())
    n, order = len(real), np.argsort(distance[len(real) :], kind="stable")
    known = distance[n:][order]
    p = conformal_p(distance[:n], known, group[order])
    smallest = 1 / (2 + int(group.max()))
    enough = np.flatnonzero(smallest * (n / np.arange(1, n + 1)) <= fdr)
    return Copies(
        distance=distance[:n],
        match=match[:n],
        p=p,
        flagged=false_discovery_control(p) <= fdr,
        closer=distance[:n] < closest,
        reference_distance=known,
        reference=order,
        reference_match=match[n:][order],
        closest_reference_pair=closest,
        smallest_p=smallest,
        fewest=int(enough[0]) + 1 if len(enough) else n + 1,
    )


def conformal_p(distance: np.ndarray, known: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """p-values [N] of distances [N], given those of r reference images [r] of K groups [r].

    p = (1 + the reference images as near) / (1 + r), which is right where an image that was not copied is exchangeable with them.
    Images of one patient are not so many independent ones: each group counts once, by the share of its images that are as near, and
    p = (1 + the sum of shares) / (1 + K), the same where each image is a group (Lee, Barber & Willett 2023, "Distribution-free
    inference with hierarchical data").
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(known, kind="stable")
    as_near = np.cumsum(np.concatenate([[0], 1 / size[group][order]]))
    count = np.searchsorted(known[order], distance, side="right")
    return np.minimum((1 + as_near[count]) / (1 + len(size)), 1)  # thirds add up to a little more


def nearest(
    query: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray | None = None, gallery_groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest image of a gallery wherever it lies within two pixels: uint8 [M,H,W], uint8 [N,H,W] -> distances, positions [M].

    An image without its border of two pixels is compared with all parts of that size of the other. Both have mean 0 and norm 1, so
    that brightness and contrast do not count; the distance is Euclidean, sqrt(2 - 2 correlation): 0 of a copy, sqrt(2) of images
    that have nothing in common, and of constant ones. Pairs of the same group (int [M], [N]) are left out; an image that has no
    pair then has the distance infinity.

    The nearest is chosen in float32, by correlations that are right to some 1e-6; its distance is exact.
    """
    for images in (query, gallery):
        if images.shape[1:] != query.shape[1:] or min(images.shape[1:]) < LEAST_SIDE:
            sizes = [f"{x.shape[2]}x{x.shape[1]}" for x in (query, gallery)]
            raise ValueError(f"images of {' and '.join(sizes)} pixels: use one size, of at least {LEAST_SIDE} pixels a side")
    if query_groups is None or gallery_groups is None:
        query_groups, gallery_groups = np.full(len(query), -1), np.full(len(gallery), -2)
    longest = max(1, min(BLOCK, ELEMENTS // (query.shape[1] * query.shape[2])))
    parts = _blocks(len(gallery), longest)
    distances, positions = np.full(len(query), np.inf), np.full(len(query), -1)
    with progress("comparing", len(query)) as advance:
        for rows in _blocks(len(query), longest):
            asked = jax.device_put((query[rows], np.int32(query_groups[rows])))
            found = [_best(asked, jax.device_put((gallery[part], np.int32(gallery_groups[part])))) for part in parts]
            correlation, place, shift = (np.stack(values) for values in zip(*jax.device_get(found), strict=True))
            for column, i in enumerate(rows):
                block = correlation[:, column].argmax()
                if correlation[block, column] > -np.inf:
                    positions[i] = parts[block][place[block, column]]
                    distances[i] = _distance(query[i], gallery[positions[i]], SHIFTS[shift[block, column]])
            for _ in rows:
                advance()
    return distances, positions


def _blocks(count: int, longest: int) -> np.ndarray:
    """Rows 0..count-1 in blocks of one size, [blocks,size]: the last one begins earlier, as a row seen twice changes no minimum."""
    size = -(-count // -(-count // longest))
    starts = np.minimum(np.arange(0, count, size), count - size)
    return starts[:, None] + np.arange(size)


@jax.jit
def _best(asked: tuple[jax.Array, jax.Array], others: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    """Highest correlation of each query with an image of a block, at any shift, its place in the block and the shift: each [Q]."""
    (query, query_groups), (gallery, gallery_groups) = asked, others
    _, height, width = query.shape
    same = query_groups[:, None] == gallery_groups[None, :]

    def part(images: jax.Array, down: jax.Array | int, across: jax.Array | int) -> jax.Array:
        """The part at a shift, mean 0 and norm 1: -> [N,D]."""
        size = len(images), height - 2 * SHIFT, width - 2 * SHIFT
        pixels = jax.lax.dynamic_slice(images, (0, SHIFT + down, SHIFT + across), size).reshape(size[0], -1)
        x = pixels.astype(jnp.float32)
        x -= x.mean(axis=1, keepdims=True)
        varies = pixels.max(axis=1, keepdims=True) > pixels.min(axis=1, keepdims=True)  # else there is only rounding
        return jnp.where(varies, x / jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True)), 0)

    own = part(query, 0, 0)

    def step(best: tuple[jax.Array, ...], shift: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[tuple[jax.Array, ...], None]:
        number, (down, across) = shift
        correlation = jnp.matmul(own, part(gallery, down, across).T, precision=jax.lax.Precision.HIGHEST)
        correlation = jnp.where(same, -jnp.inf, correlation)
        place = correlation.argmax(axis=1)
        found = correlation.max(axis=1), place.astype(jnp.int32), jnp.full(len(place), number)
        return tuple(jnp.where(found[0] > best[0], new, old) for new, old in zip(found, best, strict=True)), None

    zeros = jnp.zeros(len(query), jnp.int32)
    start = jnp.full(len(query), -jnp.inf), zeros, zeros
    best, _ = jax.lax.scan(step, start, (jnp.arange(len(SHIFTS)), tuple(jnp.array(SHIFTS).T)))
    return best


def _distance(query: np.ndarray, other: np.ndarray, shift: tuple[int, int]) -> float:
    """Distance of two images [H,W] at a shift, without the rounding of a matrix product."""
    height, width = query.shape
    units = []
    for image, (down, across) in ((query, (0, 0)), (other, shift)):
        x = image[SHIFT + down : height - SHIFT + down, SHIFT + across : width - SHIFT + across].astype(np.float64)
        norm = np.linalg.norm(x - x.mean()) if np.ptp(x) else 0.0
        units.append((x - x.mean()) / norm if norm else None)
    return float(np.sqrt(2) if units[0] is None or units[1] is None else np.linalg.norm(units[0] - units[1]))
