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
    """What is known of N real images of P patients, r reference images of K and the synthetic images nearest to them."""

    distance: np.ndarray  # [N] float64 to the nearest synthetic image, 0..2, see `nearest`
    match: np.ndarray  # [N] its position among the synthetic images
    p: np.ndarray  # [N] p-value of its patient, were it the patient's nearest image
    flagged: np.ndarray  # [N] bool: as near as makes a finding of its patient at the false discovery rate that was asked for
    closer: np.ndarray  # [N] bool: closer to its match than any reference image to another; this is no p-value
    reference_distance: np.ndarray  # [r] ascending, to the nearest synthetic image
    reference: np.ndarray  # [r] positions of the reference images in that order
    reference_match: np.ndarray  # [r] and of their nearest synthetic images
    closest_reference_pair: float  # least distance of a reference image to one of another group
    smallest_p: float  # that a patient can have: the least number of parts / (1 + K)
    fewest: int  # patients that have to be found together at the smallest p, 1..P; P + 1: none can be found


def find(
    real: np.ndarray,
    reference: np.ndarray,
    generated: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    reference_groups: np.ndarray | None = None,
    fdr: float = 0.05,
) -> Copies:
    """Real images that are nearer to the synthetic images than images known not to be used.

    A patient has one p-value, that of the nearest of its images, and Benjamini & Hochberg's procedure finds patients by them. Of
    those found all images are flagged that would have made the same finding. The p-values all rest on one reference; the procedure
    holds the false discovery rate with such ones too (Bates et al. 2023, Annals of Statistics 51:149). A rate: where some are
    copies, one in twenty of the patients found may be none.

    The nearest of many images is nearer by chance. So the images of a patient are cut into parts of at most as many as the
    reference patient with the fewest has, and the smallest p of the parts is multiplied by their number (Bonferroni).

    Args:
        real: uint8 [N,H,W], N >= 1.
        reference: uint8 [r,H,W], real images known not to be used.
        generated: uint8 [M,H,W], M >= 1.
        groups: [N] patients of the real images; None: each image is one.
        reference_groups: [r] those of the reference; None likewise.
        fdr: false discovery rate, 0 to 1.

    Raises ValueError for images of different or too small sizes, or a reference of fewer than two groups.
    """
    _, patient, images = _grouped(len(real), groups)
    names, group, sizes = _grouped(len(reference), reference_groups)
    if len(names) < 2:
        raise ValueError(f"reference: {len(reference)} images of {len(names)} patients, at least 2 are needed")
    distance, match = nearest(np.concatenate([real, reference]), generated)
    closest = float(nearest(reference, reference, group, group)[0].min())
    n, order = len(real), np.argsort(distance[len(real) :], kind="stable")
    of_group = np.full(len(names), np.inf)
    np.minimum.at(of_group, group, distance[n:])
    parts = -(-images // sizes.min())
    p = np.minimum(parts[patient] * conformal_p(distance[:n], of_group), 1)
    of_patient = np.ones(len(images))
    np.minimum.at(of_patient, patient, p)
    found = false_discovery_control(of_patient) <= fdr
    smallest = 1 / (1 + len(names))
    ranks = np.arange(1, len(images) + 1)
    enough = np.flatnonzero(smallest * np.sort(parts) * (len(images) / ranks) <= fdr)
    return Copies(
        distance=distance[:n],
        match=match[:n],
        p=p,
        flagged=p <= of_patient[found].max(initial=0),
        closer=distance[:n] < closest,
        reference_distance=distance[n:][order],
        reference=order,
        reference_match=match[n:][order],
        closest_reference_pair=closest,
        smallest_p=float(min(parts.min() * smallest, 1)),
        fewest=int(enough[0]) + 1 if len(enough) else len(images) + 1,
    )


def _grouped(count: int, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The names [K] of groups, the position [N] of an image's group among them and how many images each has [K]."""
    return np.unique(np.arange(count) if groups is None else groups, return_inverse=True, return_counts=True)


def conformal_p(distance: np.ndarray, known: np.ndarray) -> np.ndarray:
    """p-values [N] of distances [N], given those of the nearest image of each of K reference patients [K].

    p = (1 + the reference patients as near) / (1 + K), which is right where a patient who was not copied is exchangeable with them.
    """
    return (1 + np.searchsorted(np.sort(known), distance, side="right")) / (1 + len(known))


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
