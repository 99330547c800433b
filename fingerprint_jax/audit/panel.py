"""The fixed panel of the audit: attacks that read no label and need no training.

Nothing in it is chosen by the data. Images are compared with two sets of images: neither names nor the order of files enter.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.stats import rankdata

from fingerprint_jax import estimators, features

OPTIONS = {
    "gan_leaks": {"k": 1, "calibrated": True},
    "local_match": {"patch": 16, "stride": 8, "radius": 1, "top": 0.25},
    "mosaic": {"patch": 16, "stride": 8, "radius": 1, "width": 0.1},
}
METHODS = (*OPTIONS, "both_directions")
WORDS = {  # what each compares, for the page
    "gan_leaks": "whole images, how near the nearest synthetic and the nearest reference image is",
    "local_match": "from the real image, how near its patches come to those of both sets",
    "mosaic": "back, how often the patches of both sets name the real image among all that are asked about",
    "both_directions": "the mean of the ranks by local match and mosaic",
}
SIDE = 64  # of the images that are compared, in pixels
LEAST = 32  # of those whose patches are: smaller images are enlarged
_BLOCK = 256  # images handled at once


class Views(NamedTuple):
    """What is seen of N images, float32 in 0..1."""

    pixels: np.ndarray  # [N,D] grey levels
    square: np.ndarray  # [N,S,S]
    registered: np.ndarray  # [N,64,64] by the body's box


def scores(real: np.ndarray, generated: np.ndarray, reference: np.ndarray, seed: int = 0) -> np.ndarray:
    """Scores of real images by each of `METHODS`, higher is likelier used: float64 [N,4].

    `gan_leaks` (calibrated) sees pixels, `local_match` and `mosaic` patches of images as they lie. `both_directions` is the mean of
    the ranks that an image has by these two among all N, ties averaged. It depends on which other images are asked about, and so
    does `mosaic`.

    Every image counts as another one: a copy of a real image in a set is found there. In the reference it speaks against use.

    Args:
        real: uint8 [N,H,W], the images asked about.
        generated: uint8 [G,H,W], G >= 2.
        reference: uint8 [R,H,W], real images that were not used, R >= 2.
        seed: of the parts that `local_match` cuts the larger set into, and of the halves of the reference.
    """
    order = canonical(real)
    found = np.empty((len(real), len(METHODS)))
    found[order] = compare(views(real[order]), views(generated[canonical(generated)]), views(reference[canonical(reference)]), seed)
    return found


def compare(real: Views, generated: Views, reference: Views, seed: int) -> np.ndarray:
    """`scores` of images as `views` gives them, each set in its `canonical` order: float64 [N,4].

    Equal images are one candidate for the votes of `mosaic`, and have the same scores.
    """
    _, once, which = np.unique(real.pixels, axis=0, return_index=True, return_inverse=True)
    kept = np.sort(once)
    streams, first = [], 0
    for side in (some(real, kept), generated, reference):
        streams.append({"pixels": estimators.unlabelled(side.pixels, first), "square": estimators.unlabelled(side.square, first)})
        first += len(side.pixels)
    found = np.empty((len(kept), len(OPTIONS)))
    for column, (name, options) in enumerate(OPTIONS.items()):
        query, near, far = (side["pixels" if name == "gan_leaks" else "square"] for side in streams)
        found[:, column] = estimators.get(name, **options)(query, {"generated": near, "reference": far}, seed=seed)[:, 0]
    return with_both(found[np.searchsorted(kept, once[which])])


def some(views: Views, rows: np.ndarray) -> Views:
    """The views of some of the images."""
    return Views(*(view[rows] for view in views))


def joined(*parts: Views) -> Views:
    """The views of several sets of images as those of one."""
    return Views(*map(np.concatenate, zip(*parts, strict=True)))


def with_both(found: np.ndarray) -> np.ndarray:
    """The scores of the three methods, and the mean of the ranks by the two that see patches: [N,3] -> float64 [N,4]."""
    return np.column_stack([found, rankdata(found[:, 1:], axis=0).mean(axis=1)])


def canonical(images: np.ndarray) -> np.ndarray:
    """The order [N] of images by a digest of their pixels: what is drawn by position then depends on no order of files."""
    return np.array(sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).digest()), np.int64)


def frame(height: int, width: int) -> tuple[int, int]:
    """Height and width in which the pixels of images of this size are compared."""
    side = min(SIDE, height, width)
    return (side, side) if height * width > SIDE**2 else (height, width)


def views(images: np.ndarray) -> Views:
    """What is seen of images uint8 [N,H,W]: grey levels [N,D], square ones [N,S,S] and registered ones [N,64,64], float32 in 0..1.

    The attacks see the first two, controls of content the last one too. Larger images than 64 px are averaged down to it before
    anything is compared: 7,000 of 256 px would be 1.8 GB of numbers, and distances of whole images lie in the coarse structure
    anyway. S is the smaller side of what is left, at least `LEAST`.
    """
    height, width = frame(*images.shape[1:])
    pixels = features.get("pixels", size=0 if (height, width) == images.shape[1:] else height)
    registered, side = features.get("registered", size=SIDE), max(min(height, width), LEAST)
    parts: list[Views] = []
    for first in range(0, len(images), _BLOCK):
        block = images[first : first + _BLOCK, :, :, None]
        levels = pixels(block)
        square = levels.reshape(-1, height, width)
        if (height, width) != (side, side):
            sized = (Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR) for image in square)
            square = np.stack([np.asarray(image) for image in sized])
        parts.append(Views(levels, square, registered(block)))
    return joined(*parts)
