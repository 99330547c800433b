"""The fixed panel of the audit: attacks that read no label and need no training.

Nothing in it is chosen by the data. Images are compared with two sets of images: neither names nor the order of files enter.
"""

import hashlib

import numpy as np
from scipy.stats import rankdata

from fingerprint_jax import estimators, features

METHODS = ("gan_leaks", "domias", "local_match", "rank_average")
OPTIONS = {
    "gan_leaks": {"k": 1, "calibrated": True},
    "domias": {"components": 16},
    "local_match": {"patch": 16, "stride": 8, "radius": 1, "top": 0.25},
}
SIDE = 64  # of the images that are compared, in pixels
_BLOCK = 256  # images handled at once

Views = tuple[np.ndarray, np.ndarray]  # of N images: grey levels [N,D], and registered ones [N,S,S]


def scores(real: np.ndarray, generated: np.ndarray, reference: np.ndarray, seed: int = 0) -> np.ndarray:
    """Scores of real images by each of `METHODS`, higher is likelier used: float64 [N,4].

    `gan_leaks` (calibrated) and `domias` see pixels, `local_match` images registered by the body's box. `rank_average` is the mean
    of the ranks that an image has by the three among all N, ties averaged: it depends on which other images are asked about.

    Every image counts as another one: a copy of a real image in a set is found there. In the reference it speaks against use.

    Args:
        real: uint8 [N,H,W], the images asked about.
        generated: uint8 [G,H,W], G >= 2.
        reference: uint8 [R,H,W], real images that were not used, R >= 2.
        seed: of a randomised PCA, and of the parts that `local_match` cuts the larger set into.
    """
    order = canonical(real)
    found = np.empty((len(real), len(METHODS)))
    found[order] = compare(views(real[order]), views(generated[canonical(generated)]), views(reference[canonical(reference)]), seed)
    return found


def compare(real: Views, generated: Views, reference: Views, seed: int) -> np.ndarray:
    """`scores` of images as `views` gives them, each set in its `canonical` order: float64 [N,4]."""
    streams, first = [], 0
    for side in (real, generated, reference):
        streams.append([estimators.unlabelled(values, first) for values in side])
        first += len(side[0])
    (pixels, registered), galleries = streams[0], zip(*streams[1:], strict=True)
    by_pixels, by_registered = ({"generated": g, "reference": r} for g, r in galleries)
    found = np.empty((len(real[0]), len(OPTIONS)))
    for column, (name, options) in enumerate(OPTIONS.items()):
        query, gallery = (registered, by_registered) if name == "local_match" else (pixels, by_pixels)
        found[:, column] = estimators.get(name, **options)(query, gallery, seed=seed)[:, 0]
    return with_average(found)


def some(views: Views, rows: np.ndarray) -> Views:
    """The views of some of the images."""
    return views[0][rows], views[1][rows]


def joined(*parts: Views) -> Views:
    """The views of several sets of images as those of one."""
    pixels, registered = zip(*parts, strict=True)
    return np.concatenate(pixels), np.concatenate(registered)


def with_average(found: np.ndarray) -> np.ndarray:
    """The scores of the three methods, and their rank average behind them: [N,3] -> float64 [N,4]."""
    return np.column_stack([found, rankdata(found, axis=0).mean(axis=1)])


def canonical(images: np.ndarray) -> np.ndarray:
    """The order [N] of images by a digest of their pixels: what is drawn by position then depends on no order of files."""
    return np.array(sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).digest()), np.int64)


def frame(height: int, width: int) -> tuple[int, int]:
    """Height and width in which the pixels of images of this size are compared."""
    side = min(SIDE, height, width)
    return (side, side) if height * width > SIDE**2 else (height, width)


def views(images: np.ndarray) -> Views:
    """What the attacks see of images uint8 [N,H,W]: grey levels float32 [N,D], and registered ones float32 [N,64,64], in 0..1.

    Larger images than 64 px are averaged down to it before their pixels are compared: 7,000 of 256 px would be 1.8 GB of numbers,
    and distances of whole images lie in the coarse structure anyway.
    """
    height, width = images.shape[1:]
    size = 0 if frame(height, width) == (height, width) else frame(height, width)[0]
    pixels, registered = features.get("pixels", size=size), features.get("registered", size=SIDE)
    blocks = [images[i : i + _BLOCK, :, :, None] for i in range(0, len(images), _BLOCK)]
    return np.concatenate([pixels(block) for block in blocks]), np.concatenate([registered(block) for block in blocks])
