"""Controls that see what the attacks see: content that bends, has holes or comes in clusters is no evidence.

A generator of another content than the reference draws the attacks to the images of that content, whether these trained it or not.
The attacks are estimates of densities, so the controls are, too. They stand in for the generator's knowledge of single images by
what knows the content alone:

coarse: the distance to a fifth of the synthetic images less that to a fifth of the reference. A kept image shows in the few
    synthetic images nearest to it, a difference of content in all of them. It reads no label.
reference, reference_local: the attacks' distances to the reference alone, of whole images and of local anatomy. Where relatives of
    the images not used stand in the reference the used ones are further from it, whatever the generator kept.
kernel: a classifier with a Gaussian kernel of used against not used images, cross-fitted.
likeness: a classifier with a Gaussian kernel of synthetic against reference images, asked of the real ones. It reads no label.
alone: the attacks themselves with the used images of other folds as synthetic ones, and the not used ones as the reference.

`likeness` also says which reference images look like the synthetic ones: these stand in for them in the panel (stages.replaced).
"""

import numpy as np
from sklearn.model_selection import KFold
from sklearn.svm import SVC

from fingerprint_jax import estimators
from fingerprint_jax.audit import content, panel
from fingerprint_jax.estimators import local_match

KINDS = ("coarse", "reference", "reference_local", "kernel", "likeness")
SHARE = 0.2  # of the smaller set, whose mean distance is `coarse`
MOST = 1000  # synthetic, and reference images that a classifier learns from


def sight(images: np.ndarray, views: panel.Views) -> np.ndarray:
    """What classifiers see of all images that are compared: uint8 [N,H,W], and their views -> float64 [N,58]; no label has a part.

    Intensity, grain and layout of content.py, each column standardised and each of the three with the same weight.
    """
    blocks = [images[first : first + content.BLOCK] for first in range(0, len(images), content.BLOCK)]
    parts = [np.concatenate([measure(block) for block in blocks]) for measure in (content.intensity, content.grain)]
    out = []
    for part in (*parts, content.layout(images, views)):
        centred = part - part.mean(axis=0)
        deviation = centred.std(axis=0)
        out.append(centred / np.where(deviation > 0, deviation, 1) / np.sqrt(part.shape[1]))
    return np.concatenate(out, axis=1)


def coarse(real: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`gan_leaks` among grey levels [N,D], [G,D] and [R,D] with a fifth of the smaller set as neighbours: float64 [N]."""
    first, streams = 0, []
    for values in (real, generated, reference):
        streams.append(estimators.unlabelled(values, first))
        first += len(values)
    query, *gallery = streams
    near = estimators.get("gan_leaks", k=max(1, round(SHARE * min(len(generated), len(reference)))), calibrated=True)
    return near(query, dict(zip(("generated", "reference"), gallery, strict=True)), seed=0)[:, 0].astype(np.float64)


def apart(real: panel.Views, reference: panel.Views) -> dict[str, np.ndarray]:
    """How far real images are from the nearest of the reference, as attacks see it: {reference, reference_local: float64 [N]}."""
    views = ((real.pixels, reference.pixels), (real.square, reference.square))
    (pixels, known), (square, far) = ((estimators.unlabelled(a, 0), estimators.unlabelled(b, len(a))) for a, b in views)
    near = estimators.get("gan_leaks", k=1, calibrated=False)(pixels, {"generated": known}, seed=0)[:, 0]
    options = panel.OPTIONS["local_match"]
    grid = options["patch"], options["stride"], options["radius"]
    local = local_match.part_distances(square, far, [np.arange(len(reference.square))], *grid)
    weight = local_match.weights(real.square, *grid[:2])
    beyond = local_match.log_ratio(weight, local, np.ones_like(local), options["top"])
    return {"reference": -near.astype(np.float64), "reference_local": beyond.astype(np.float64)}


def kernel(seen: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """How much images [N,D] look like used ones (labels 1), to classifiers that saw neither them nor their groups: float64 [N]."""
    out = np.empty(len(labels))
    for train, held in content.folds(seen, labels, groups, seed):
        out[held] = _classifier().fit(seen[train], labels[train]).decision_function(seen[held])
    return out


def likeness(real: np.ndarray, generated: np.ndarray, reference: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How much images look like synthetic ones and not like the reference, all as `sight` sees them: real [N], reference [R].

    Of five classifiers, each without a fold of the reference, a real image has the mean and one of the reference that which did not
    see it. They learn from at most `MOST` images of either side.
    """
    rng = np.random.default_rng(seed)
    generated = generated[rng.permutation(len(generated))[:MOST]]
    of_real, of_reference = np.zeros(len(real)), np.empty(len(reference))
    for train, held in KFold(content.FOLDS, shuffle=True, random_state=seed).split(reference):
        known = reference[rng.permutation(train)[:MOST]]
        x, labels = np.concatenate([generated, known]), np.repeat([1, 0], [len(generated), len(known)])
        model = _classifier().fit(x, labels)
        of_real += model.decision_function(real) / content.FOLDS
        of_reference[held] = model.decision_function(reference[held])
    return of_real, of_reference


def alone(views: panel.Views, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The panel's scores of real images that no generator has part in: float64 [N,4].

    Each fold is compared with the used images of the others as the synthetic ones, and with their not used ones as the reference.

    Args:
        views: of the real images, in the order of `panel.canonical`.
        labels: int [N], 1 used.
        groups: [N].
        seed: of the panel and of the folds.
    """

    out = np.empty((len(labels), len(panel.METHODS)))
    for train, held in content.folds(views.pixels, labels, groups, seed):
        train, held = np.sort(train), np.sort(held)
        used, others = train[labels[train] == 1], train[labels[train] == 0]
        of_held, of_used, of_others = (panel.some(views, rows) for rows in (held, used, others))
        out[held] = panel.compare(of_held, of_used, of_others, seed)
    return out


def most_alike(likeness: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Half of the groups, rounded down, those of the highest mean likeness: bool [N] of their images."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(-np.bincount(group, weights=likeness) / sizes, kind="stable")
    return np.isin(group, order[: len(sizes) // 2])


def _classifier() -> SVC:
    return SVC(C=1.0, class_weight="balanced")
