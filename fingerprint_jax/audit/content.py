"""The content-only panel: can used images be told from the others by what has nothing to do with the generator?

An attack that finds no more than this has found a difference of content, of scanners or of files, and not that images were used.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fingerprint_jax import features
from fingerprint_jax.features.register import body_box

FOLDS = 5
QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
GRID = 8  # side of the blocks of a JPEG, in pixels


def facts(images: np.ndarray, files: dict[str, list]) -> dict[str, np.ndarray]:
    """Sets of facts about images and their files, {set: float64 [N,D]}.

    files: size, mode and metadata of the file. names: the place of its name among those of all. intensity: moments, quantiles and
    entropy of the grey levels, area and box of the body. texture: local binary patterns, wavelet energies, spectrum, components,
    and edges on the grid of a JPEG.

    Args:
        images: uint8 [N,H,W].
        files: `bytes`, `mode`, `metadata` (bytes) and `name` [N].
    """
    mode = np.array(files["mode"])
    modes = [mode == name for name in np.unique(mode)]
    whole = images[..., None]
    texture = [features.get(name)(whole) for name in ("lbp", "wavelet", "radial_spectrum", "otsu")]
    return {
        "files": np.stack([np.log(files["bytes"]), np.log1p(files["metadata"]), *modes], axis=1).astype(np.float64),
        "names": np.unique(files["name"], return_inverse=True)[1].astype(np.float64)[:, None],
        "intensity": np.concatenate([features.get("moments")(whole), _levels(images), _body(images)], axis=1).astype(np.float64),
        "texture": np.concatenate([*texture, _blockiness(images)], axis=1).astype(np.float64),
    }


def scores(facts: dict[str, np.ndarray], labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """What each set of facts [N,D] says of the labels: {set: logits float64 [N]}, by cross-fitting.

    A logistic regression on standardised facts (L2 penalty, C = 1) for each of five folds, stratified and of whole groups; the
    logit of an image is that of the one that did not see it. A set in which all images are alike gives zeros.
    """
    found = {}
    for name, values in facts.items():
        found[name] = np.zeros(len(labels))
        values = values[:, values.min(axis=0) < values.max(axis=0)]
        if not values.shape[1]:
            continue
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for seen, held in folds.split(values, labels, groups):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(values[seen], labels[seen])
            found[name][held] = model.decision_function(values[held])
    return found


def _levels(images: np.ndarray) -> np.ndarray:
    """Quantiles and entropy (bits) of the grey levels: [N,10]."""
    flat = images.reshape(len(images), -1)
    counts = np.stack([np.bincount(image, minlength=256) for image in flat]) / flat.shape[1]
    entropy = -(counts * np.log2(np.where(counts > 0, counts, 1))).sum(axis=1)
    return np.column_stack([np.quantile(flat, QUANTILES, axis=1).T, entropy])


def _body(images: np.ndarray) -> np.ndarray:
    """Height, width and area of the body's box, as shares of the image: [N,3]."""
    _, height, width = images.shape
    boxes = np.array([body_box(image) for image in images], np.float64)
    high, wide = (boxes[:, 1] - boxes[:, 0]) / height, (boxes[:, 3] - boxes[:, 2]) / width
    return np.stack([high, wide, high * wide], axis=1)


def _blockiness(images: np.ndarray) -> np.ndarray:
    """Mean step from pixel to pixel across the grid of a JPEG, less that elsewhere, down and across: [N,2], grey levels."""
    found = []
    for axis in (1, 2):
        steps = np.abs(np.diff(images.astype(np.float32), axis=axis)).mean(axis=3 - axis)
        grid = np.arange(steps.shape[1]) % GRID == GRID - 1
        found.append(steps[:, grid].mean(axis=1) - steps[:, ~grid].mean(axis=1) if grid.any() else np.zeros(len(images)))
    return np.stack(found, axis=1)
