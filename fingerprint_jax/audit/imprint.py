"""The detection limit: how small a leak the panel would have found.

Reference patients are held out and an image of some of them is imprinted on the synthetic set, in rising number and strength, and
the panel is asked which of the held-out ones "were used". No generator is trained and the synthetic set is searched once. An
imprint stands for a named kind of leak; other kinds are not covered. What is left of the reference is smaller than in the audit
itself, and so may be the images asked about: both usually make the limit larger.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from fingerprint_jax.audit import panel
from fingerprint_jax.audit.copies import SHIFT
from fingerprint_jax.audit.patients import DEFAULT, Patients
from fingerprint_jax.estimators import mosaic, search, unlabelled
from fingerprint_jax.estimators.local_match import log_ratio, pair_distances, part_distances, parts, weights
from fingerprint_jax.estimators.membership import subset_weights
from fingerprint_jax.features.register import body_box
from fingerprint_jax.runtime.progress import progress
from fingerprint_jax.stats import bootstrap, metrics
from fingerprint_jax.stats.permutation import auc_of, permutation_p

# A kind of imprint and its strength: the share of the image in a blend.
KINDS: tuple[tuple[str, float | None], ...] = (
    ("verbatim", None),
    ("shifted", None),
    ("blend", 0.75),
    ("blend", 0.5),
    ("blend", 0.25),
    ("patch", None),
)
RATES = (0.02, 0.05, 0.1, 0.2, 0.5)
POWER = 0.8  # from which on a leak counts as found
NULL_REPEATS = 100  # without imprints
PERMUTATIONS = 199  # a repeat
LEAST = 20  # images in either role
MOST = 1000  # images held out: all pairs of them are compared
_GRID = tuple(panel.OPTIONS["local_match"][name] for name in ("patch", "stride", "radius"))
_VOTES = tuple(panel.OPTIONS["mosaic"][name] for name in ("patch", "stride", "radius", "width"))


class TooFew(ValueError):
    """There are not enough reference images to hold any out."""


@dataclasses.dataclass(frozen=True)
class Near:
    """How near each of M held-out images is to each of N imprints, as the three attacks see it."""

    pixels: np.ndarray  # [M,N] distances
    patches: np.ndarray  # [N,M,K] squared distances of each patch
    votes: np.ndarray  # [2,N,M] votes, with either half of the reference


class Background:
    """What the panel knows of held-out images before anything is imprinted, and its scores after it."""

    def __init__(self, pool: np.ndarray, generated: np.ndarray, reference: np.ndarray, most: int, seed: int = 0) -> None:
        """Compares images uint8 [*,H,W] of the pool with the two sets, to which up to `most` imprints will come.

        `seed` is that of the panel: without imprints the scores are its own, of these sets in this order.
        """
        views, views_g, views_r = map(panel.views, (pool, generated, reference))
        self._pixels, self.generated = views.pixels, len(generated)
        self._sizes = len(generated), len(reference)
        # The nearest ones as far as they have a weight: with fewer than `most` imprints, or as many.
        counts = [max(len(w) for w in both) for both in zip(*map(self._weights, (0, most)), strict=True)]
        (self._near, positions), (self._far, _) = (
            search.nearest(views.pixels, x, min(len(x), count))
            for x, count in zip((views_g.pixels, views_r.pixels), counts, strict=True)
        )
        self.nearest = positions[:, 0]  # of the synthetic images, to each of the pool
        rng, size = np.random.default_rng(seed), min(self._sizes)
        of_reference, self._parts = parts(rng, len(reference), size), parts(rng, len(generated), size)
        self._query, self._patch_weights = unlabelled(views.square, 0), weights(views.square, *_GRID[:2])
        known, far = unlabelled(views_g.square, len(pool)), unlabelled(views_r.square, len(pool) + len(generated))
        self._reference_patches, self._generated_patches = (
            part_distances(self._query, x, found, *_GRID) for x, found in ((far, of_reference), (known, self._parts))
        )
        self._rivals, halves, self._sides = mosaic.electorate(self._query, {"reference": far}, seed)
        self._voted = mosaic.mean_votes(self._query, known, self._rivals, self._sides, *_VOTES)
        self._real_voted = [
            mosaic.mean_votes(self._query, half, self._rivals, [side], *_VOTES)[0]
            for half, side in zip(halves[::-1], self._sides, strict=True)
        ]

    def near(self, images: np.ndarray) -> Near:
        """Distances to imprints, uint8 [N,H,W]."""
        pixels, square, _ = panel.views(images)
        found, positions = search.nearest(self._pixels, pixels, len(pixels))
        distances = np.empty_like(found)
        np.put_along_axis(distances, positions, found, axis=1)
        asking = unlabelled(square, len(self._pixels) + sum(self._sizes))
        found = mosaic.votes(self._query, asking, self._rivals, self._sides, *_VOTES)
        votes = np.concatenate([part for _, part in found], axis=1)
        return Near(distances, pair_distances(self._query.values, square, *_GRID), votes)

    def scores(self, near: Near | None, chosen: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The panel's scores float64 [M,4] with some imprints among the synthetic images, which are not searched again.

        Args:
            near: of all the imprints; None where none is chosen.
            chosen: positions [m] of those that are among the synthetic images.
            places: [m] in 0..G-1: an imprint is in the parts of `local_match` in which the synthetic image at this place is.
        """
        columns = self._gan_leaks(near, chosen), self._local_match(near, chosen, places), self._mosaic(near, chosen)
        return panel.with_both(np.column_stack(columns))

    def relative(self, near: Near) -> float:
        """How far an imprint of a held-out image is from it, as a share of how far the nearest synthetic image is; the median."""
        return float(np.median(np.diag(near.pixels) / np.maximum(self._near[:, 0], 1e-9)))

    def _weights(self, imprints: int) -> list[np.ndarray]:
        sizes = self._sizes[0] + imprints, self._sizes[1]
        return [subset_weights(size, min(sizes), 1) for size in sizes]

    def _gan_leaks(self, near: Near | None, chosen: np.ndarray) -> np.ndarray:
        distances = self._near if near is None else np.sort(np.concatenate([self._near, near.pixels[:, chosen]], axis=1), axis=1)
        of_generated, of_reference = self._weights(len(chosen))
        nearest, far = distances[:, : len(of_generated)] @ of_generated, self._far[:, : len(of_reference)] @ of_reference
        return far.astype(np.float32) - nearest.astype(np.float32)

    def _local_match(self, near: Near | None, chosen: np.ndarray, places: np.ndarray) -> np.ndarray:
        found = self._generated_patches
        if near is not None:
            nearest = [near.patches[chosen[np.isin(places, part)]].min(axis=0, initial=np.inf) for part in self._parts]
            found = np.minimum(found, nearest)
        return log_ratio(self._patch_weights, self._reference_patches, found, panel.OPTIONS["local_match"]["top"])

    def _mosaic(self, near: Near | None, chosen: np.ndarray) -> np.ndarray:
        total = self._voted * self.generated
        if near is not None:
            total = total + near.votes[:, chosen].sum(axis=1, dtype=np.float64)
        voted = total / (self.generated + len(chosen))
        found = [
            mosaic.log_ratio(synthetic, real, len(self._pixels) + len(side.index))
            for synthetic, real, side in zip(voted, self._real_voted, self._sides, strict=True)
        ]
        return np.mean(found, axis=0).astype(np.float32)


def imprints(kind: str, strength: float | None, pool: np.ndarray, nearest: np.ndarray, seed: int) -> np.ndarray:
    """An imprint of each held-out image, of uint8 [M,H,W] and their nearest synthetic images: uint8 [M,H,W].

    verbatim is the image; shifted, moved by up to `SHIFT` pixels along both axes, its edge repeated; blend, its share `strength`
    over the nearest synthetic image; patch, the middle of its body, half the box's height and width, pasted into that image.
    """
    if kind == "verbatim":
        return pool
    if strength is not None:
        return np.rint(strength * pool + (1 - strength) * nearest).astype(np.uint8)
    out = nearest.copy()
    if kind == "shifted":
        moves = [(y, x) for y in range(-SHIFT, SHIFT + 1) for x in range(-SHIFT, SHIFT + 1) if (y, x) != (0, 0)]
        drawn = np.random.default_rng(seed).integers(len(moves), size=len(pool))
        for i, (image, move) in enumerate(zip(pool, drawn, strict=True)):
            rows, columns = (np.clip(np.arange(n) - d, 0, n - 1) for n, d in zip(image.shape, moves[move], strict=True))
            out[i] = image[np.ix_(rows, columns)]
        return out
    for i, image in enumerate(pool):
        top, bottom, left, right = body_box(image)
        middle = np.s_[(3 * top + bottom) // 4 : (top + 3 * bottom) // 4, (3 * left + right) // 4 : (left + 3 * right) // 4]
        out[i][middle] = image[middle]
    return out


def limit(
    reference: np.ndarray,
    reference_groups: np.ndarray,
    generated: np.ndarray,
    n_used: int,
    n_not_used: int,
    *,
    seed: int = 0,
    rates: Sequence[float] = RATES,
    repeats: int = 20,
    null_repeats: int = NULL_REPEATS,
    permutations: int = PERMUTATIONS,
    alpha: float = 0.05,
    score: str = DEFAULT,
    done: dict | None = None,
    save: Callable[[str, dict], None] | None = None,
) -> dict:
    """Power of the panel at each kind and rate of imprints, and the smallest rate that it finds.

    Whole groups (patients) of the reference are held out: as many as the audit asks about, if at least as many images stay in the
    reference, of at most `MOST` images. In a repeat some of them, drawn in the audit's proportion, play used, and an imprint of one
    image of some of these is among the synthetic ones. It is detected where the family-wise p of the largest AUC is at most alpha.

    Args:
        reference: uint8 [R,H,W].
        reference_groups: str [R].
        generated: uint8 [G,H,W].
        n_used, n_not_used: patients that the audit asks about.
        seed: of the panel, and of all that is drawn.
        rates: imprinted shares of the patients that play used, ascending, in 0..1; those that are as many patients as a lower one
            are left out.
        repeats: a kind and rate.
        null_repeats: without imprints, once for all kinds.
        permutations: a repeat.
        alpha: of the p.
        score: of a patient, of `patients.SCORES`.
        done: points that an earlier call with the same arguments gave to `save`; they are not computed again.
        save: called with the key of a point and the point.

    Returns:
        pool, used, not_used, reference: images held out, of these in either role (in the mean, where groups differ), and left.
        null: {detected, repeats, power, interval} without imprints, where the power is the share of false alarms.
        used_patients: groups that play used.
        kinds: [{kind, strength, points: [{rate, images, patients, distance, detected, repeats, power, interval}], smallest}].
            `images`, one of each of so many `patients`, are imprinted; `interval` is that of Clopper & Pearson 1934, 95%.
            `distance` is `Background.relative` of the kind. `smallest` is {rate, one_in, interval} of the smallest rate whose power
            is at least `POWER` there and at all higher rates, or None: one in so many used patients, and the smallest rates whose
            upper and (there and at all higher rates) lower bound reach it, None where none does.

    Raises TooFew for too few images or groups, ValueError for too few permutations and for rates out of order.
    """
    order = panel.canonical(reference)
    reference, generated = reference[order], generated[panel.canonical(generated)]
    group = bootstrap.as_they_come(np.asarray(reference_groups)[order])
    held = _held_out(group, min(len(reference) // 2, MOST), n_used + n_not_used, seed)
    pool, left, group = reference[held], reference[~held], group[held]
    share = n_used / max(1, n_used + n_not_used)
    used = round(len(pool) * share)
    if min(used, len(pool) - used) < LEAST:
        raise TooFew(
            f"reference: of {len(reference)} images {used} could play used and {len(pool) - used} not used, in the proportion of"
            f" the {n_used} and {n_not_used} patients or images asked about: the detection limit needs {LEAST} of each, and as many"
            " that stay"
        )
    patients = len(np.unique(group))
    _check(patients, rates, permutations, alpha)
    # So many groups, not images: then the labels of groups can be exchanged, as the permutations do.
    used_patients = int(np.clip(round(share * patients), 1, patients - 1))

    points, background = dict(done or {}), None
    # Of few patients the lowest rates are the same number: the first of them stands for it.
    rate_of = {max(1, round(rate * used_patients)): rate for rate in reversed(rates)}
    counts, rates = zip(*sorted(rate_of.items()), strict=True)
    plan = [(None, {"null": 0}, null_repeats)]
    plan += [(kind, {_key(*kind, rate): count for rate, count in zip(rates, counts, strict=True)}, repeats) for kind in KINDS]
    total = sum(many * len(sizes.keys() - points.keys()) for _, sizes, many in plan)
    with progress("detection limit", total, "repeats") as advance:
        for number, (kind, sizes, many) in enumerate(plan):
            missing = [key for key in sizes if key not in points]
            if not missing:
                continue
            background = background or Background(pool, generated, left, max(counts), seed)
            near = background.near(imprints(*kind, pool, generated[background.nearest], seed)) if kind else None
            of_kind = {"distance": background.relative(near)} if near else {}
            for key in missing:
                detected = 0
                for repeat in range(many):
                    # The rates of a kind share their draws, and a lower one's imprints are among a higher one's.
                    rng = np.random.default_rng([seed, number, repeat])
                    detected += _p(background, near, group, used_patients, sizes[key], rng, permutations, score) <= alpha
                    advance()
                points[key] = _point(detected, many) | {"patients": float(sizes[key])} | of_kind
                if save:
                    save(key, points[key])
    kinds = []
    for kind, strength in KINDS:
        found = [
            {"rate": rate, "images": count} | points[_key(kind, strength, rate)] for rate, count in zip(rates, counts, strict=True)
        ]
        kinds.append({"kind": kind, "strength": strength, "points": found, "smallest": _smallest(found, used_patients)})
    sizes = {"pool": len(pool), "used": used, "not_used": len(pool) - used, "reference": len(left)}
    sizes["used_patients"] = used_patients
    return sizes | {"null": points["null"], "kinds": kinds}


def _held_out(group: np.ndarray, images: int, patients: int, seed: int) -> np.ndarray:
    """Which rows are held out [N]: at most so many whole groups, in random order as long as their images fit."""
    sizes = np.bincount(group)
    held = np.zeros(len(sizes), bool)
    for number in np.random.default_rng([seed, 0]).permutation(len(sizes)):
        held[number] = held.sum() < patients and sizes[held].sum() + sizes[number] <= images
    return held[group]


def _p(
    background: Background,
    near: Near | None,
    group: np.ndarray,
    patients: int,
    size: int,
    rng: np.random.Generator,
    permutations: int,
    score: str,
) -> float:
    """The family-wise p with imprints of an image each of `size` of the groups that play used, which are so many `patients`."""
    labels = np.isin(group, rng.permutation(np.unique(group))[:patients]).astype(int)
    of_permutations = int(rng.integers(2**31))
    order = rng.permutation(np.flatnonzero(labels))
    first = np.unique(group[order], return_index=True)[1]
    chosen = order[np.sort(first)[:size]]
    places = rng.integers(background.generated, size=len(chosen))
    asked = Patients.of(labels, group)
    scores = asked.scores(background.scores(near, chosen, places), score)
    return permutation_p(auc_of(scores), asked.labels, asked.groups, permutations, of_permutations)["family_wise"]


def _key(kind: str, strength: float | None, rate: float) -> str:
    return f"{kind}{'' if strength is None else f' {strength:g}'}, rate {rate:g}"


def _point(detected: int, repeats: int) -> dict:
    interval = metrics.clopper_pearson(detected, repeats)
    return {"detected": detected, "repeats": repeats, "power": detected / repeats, "interval": interval}


def _smallest(points: list[dict], patients: int) -> dict | None:
    """The smallest rate that is found there and at all higher ones; see `limit`."""

    def lasting(values: list[float]) -> int:
        below = [i for i, value in enumerate(values) if value < POWER]
        return below[-1] + 1 if below else 0

    found = lasting([point["power"] for point in points])
    if found == len(points):
        return None
    low = next(point["rate"] for point in points if point["interval"][1] >= POWER)
    sure = lasting([point["interval"][0] for point in points])
    high = points[sure]["rate"] if sure < len(points) else None
    return {"rate": points[found]["rate"], "one_in": round(patients / points[found]["images"]), "interval": [low, high]}


def _check(groups: int, rates: Sequence[float], permutations: int, alpha: float) -> None:
    if groups < 2:
        raise TooFew(f"reference_groups: {groups} group is held out, use at least 2, of which one can play used")
    if list(rates) != sorted(set(rates)) or not rates or not 0 < rates[0] <= rates[-1] <= 1:
        raise ValueError(f"rates={list(rates)}: use ascending shares above 0 and up to 1")
    if 1 > alpha * (1 + permutations):
        raise ValueError(
            f"permutations={permutations}: their smallest p is above alpha={alpha}, use at least {int(np.ceil(1 / alpha)) - 1}"
        )
