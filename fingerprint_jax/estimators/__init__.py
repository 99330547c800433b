"""Estimators: `f(query, gallery, *, seed, **options)` -> float32 [M,K], higher is likelier.

`query` are the M rows asked about, whose labels are never read; a row's score depends on that row alone. `gallery` are the streams
that the config's `gallery` lists: `labelled` (rows with labels to learn from, and the only labels that are read), `generated` (the
generator's images) and `reference` (real images known not to be used). K are the classes of `labelled`, in their order; two
give one column, class 1 against class 0, and so do estimators that read no labels.

A query is never compared with itself: rows of the gallery with its `index` are left out. A model that was fitted to it has seen it
all the same, which is for the caller to avoid.

Each file has `ESTIMATORS = {name: function}`, and together they are the registry of `config.estimator.name`.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Features:
    """What an estimator sees of N images."""

    values: np.ndarray  # [N, ...] float32: one vector, or one map or image, a row
    labels: np.ndarray  # [N] int, -1 where unknown
    index: np.ndarray  # [N] record numbers, unique over all splits of a data set: the same number is the same image


Gallery = Mapping[str, Features]


def unlabelled(values: np.ndarray, first: int) -> Features:
    """Rows [N, ...] without labels, with record numbers from `first` on."""
    return Features(values, np.full(len(values), -1), first + np.arange(len(values)))


def registry() -> dict[str, Callable[..., np.ndarray]]:
    """All estimators by name."""
    known = {}
    for info in pkgutil.iter_modules(__path__):
        known |= getattr(importlib.import_module(f"{__name__}.{info.name}"), "ESTIMATORS", {})
    return known


def get(name: str, **options) -> Callable[..., np.ndarray]:
    """An estimator with its options set; those that are None keep the estimator's own default.

    Raises ValueError with the known names, or options.
    """
    known = registry()
    if name not in known:
        raise ValueError(f"estimator.name={name!r} is unknown: use one of {', '.join(sorted(known))}")
    accepted = set(inspect.signature(known[name]).parameters) - {"query", "gallery", "seed"}
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if option not in accepted:
            raise ValueError(f"estimator.{option} is no option of {name}: use {', '.join(sorted(accepted)) or 'none'}")
    return functools.partial(known[name], **options)


def stream(gallery: Gallery, name: str) -> Features:
    """A stream of the gallery; raises ValueError where it is missing or empty."""
    if name not in gallery or not len(gallery[name].index):
        use = "learns from it" if name == "labelled" else "compares with it"
        raise ValueError(f"gallery.{name} is missing: the estimator {use}, list its splits in config.gallery.{name}")
    return gallery[name]


def flat(features: Features) -> np.ndarray:
    """The values as vectors: [N, ...] -> [N,D]."""
    return features.values.reshape(len(features.values), -1)


def columns(scores: np.ndarray) -> np.ndarray:
    """Scores of each class [M,K] as an estimator gives them: of two, one column, class 1 minus class 0."""
    return np.asarray(scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores, np.float32)


def at_least(option: str, value: float, least: float, most: float = np.inf) -> None:
    """Raises ValueError that names `estimator.<option>` where its value is outside least..most."""
    if not least <= value <= most:
        bound = f"at least {least}" if most == np.inf else f"{least} to {most}"
        raise ValueError(f"estimator.{option}={value}: use {bound}")
