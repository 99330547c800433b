"""Estimators: `f(query, gallery, *, seed, **options)` -> float32 [M,K], higher is likelier.

K are the classes of the labelled rows, in their order; two give one column, class 1 against class 0. Each file has
`ESTIMATORS = {name: function}`, and together they are the registry of `config.estimator.name`.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of some images. An estimator never reads the labels of a query, and compares no image with itself."""

    values: np.ndarray  # [N, ...] float32: a vector, or a map, a row
    labels: np.ndarray  # [N] int, -1 where unknown
    index: np.ndarray  # [N] record numbers; the same number is the same image, -1 is none of the data set

    def __len__(self) -> int:
        return len(self.values)


# What a config's `gallery` holds: `labelled` to learn from, `generated`, and `reference`, real images known not to be used.
Gallery = dict[str, Features]


def stream(gallery: Gallery, name: str) -> Features:
    """A stream of the gallery; raises ValueError where the config has none."""
    if name not in gallery:
        raise ValueError(f"gallery.{name} is missing, this estimator needs it: name its splits in the config")
    return gallery[name]


def get(name: str, **options) -> Callable[..., np.ndarray]:
    """An estimator with its options set; those that are None keep the estimator's own default.

    Raises ValueError with the known names, or options.
    """
    known = {}
    for info in pkgutil.iter_modules(__path__):
        known |= getattr(importlib.import_module(f"{__name__}.{info.name}"), "ESTIMATORS", {})
    if name not in known:
        raise ValueError(f"estimator.name={name!r} is unknown: use one of {', '.join(sorted(known))}")
    accepted = set(inspect.signature(known[name]).parameters) - {"query", "gallery", "seed"}
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if option not in accepted:
            raise ValueError(f"estimator.{option} is no option of {name}: use {', '.join(sorted(accepted)) or 'none'}")
    return functools.partial(known[name], **options)


def columns(scores: np.ndarray) -> np.ndarray:
    """Scores of each class [M,K] as an estimator gives them: of two, one column, class 1 minus class 0."""
    return np.asarray(scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores, np.float32)
