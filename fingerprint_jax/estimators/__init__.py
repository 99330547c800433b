"""Estimators: `f(query, gallery, *, seed, **options)` -> float32 [M,K], higher is likelier.

`query` are the M rows asked about, whose labels are never read; a row's score depends on that row alone, unless `TRANSDUCTIVE` says
more. `gallery` are the streams
that the config's `gallery` lists: `labelled` (rows with labels to learn from, and the only labels that are read), `generated` (the
generator's images) and `reference` (real images known not to be used). K are the classes of `labelled`, in their order; two
give one column, class 1 against class 0, and so do estimators that read no labels.

A query is never compared with itself: rows of the gallery with its `index` are left out. A model that was fitted to it has seen it
all the same, which is for the caller to avoid.

Each file has `ESTIMATORS = {name: function}`, and together they are the registry of `config.estimator.name`, which may also be
`package.module:function`. It may have
`CHECKS = {name: f(gallery, **options)}`: what raises ValueError where the estimator could not be fitted to such a gallery, without
a look at the values, so that it is known before anything is trained; and `TRANSDUCTIVE = {name: why}` of those whose scores
depend on the other rows asked about.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fingerprint_jax.runtime import names, plugins


@dataclasses.dataclass(frozen=True)
class Features:
    """What an estimator sees of N images."""

    values: np.ndarray  # [N, ...] float32: one vector, or one map or image, a row
    labels: np.ndarray  # [N] int, -1 where unknown
    index: np.ndarray  # [N] record numbers, unique over all splits of a data set: the same number is the same image

    def take(self, rows: np.ndarray) -> "Features":
        """Those of an index array or a boolean mask."""
        return Features(self.values[rows], self.labels[rows], self.index[rows])


Gallery = Mapping[str, Features]


def unlabelled(values: np.ndarray, first: int) -> Features:
    """Rows [N, ...] without labels, with record numbers from `first` on."""
    return Features(values, np.full(len(values), -1), first + np.arange(len(values)))


def registry(name: str = "ESTIMATORS") -> dict[str, Callable]:
    """All estimators by name, or their `CHECKS`."""
    known = {}
    for info in pkgutil.iter_modules(__path__):
        known |= getattr(importlib.import_module(f"{__name__}.{info.name}"), name, {})
    return known


def get(name: str, **options: Any) -> Callable[..., np.ndarray]:
    """An estimator with its options set; those that are None keep the estimator's own default.

    Raises ValueError with the known names, or options.
    """
    accepted = defaults(name)
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        names.check_option("estimator", option, name, accepted)
    return functools.partial(_function(name), **options)


def _function(name: str) -> Callable[..., np.ndarray]:
    if plugins.dotted(name):
        return plugins.find("estimator.name", name)
    known = registry()
    names.check("estimator.name", name, sorted(known))
    return known[name]


def defaults(name: str) -> dict[str, Any]:
    """The options of an estimator with its own values; raises ValueError with the known names."""
    found = inspect.signature(_function(name)).parameters.values()
    return {p.name: p.default for p in found if p.name not in ("query", "gallery", "seed")}


def in_use(num_classes: int, name: str, **options: Any) -> dict[str, tuple[Any, bool]]:
    """{option: (value, whether that is the default)} of what an estimator reads; None stands for the default."""
    from fingerprint_jax.estimators import cluster, similarity

    own = defaults(name)
    if name == "similarity":  # the options of its measure
        of_ssim = inspect.signature(similarity.ssim).parameters if (options.get("measure") or own["measure"]) == "ssim" else {}
        own = {option: of_ssim[option].default if option in of_ssim else value for option, value in own.items()}
    if own.get("clusters") == 0:
        own["clusters"] = cluster.default(num_classes)
    found = {option: (options.get(option), False) for option in own}
    unset = {option for option, (value, _) in found.items() if value is None or (option == "clusters" and not value)}
    found |= {option: (own[option], True) for option in unset}
    return {option: each for option, each in found.items() if each[0] is not None}


def check(gallery: Gallery, name: str, **options: Any) -> None:
    """Raises ValueError where an estimator with these options cannot be fitted to a gallery of these sizes, shapes and labels."""
    accepted = defaults(name)
    get(name, **options)
    options = accepted | {option: value for option, value in options.items() if value is not None}
    if checked := registry("CHECKS").get(name):
        checked(gallery, **options)


def stream(gallery: Gallery, name: str) -> Features:
    """A stream of the gallery; raises ValueError where it is missing or empty."""
    if name not in gallery or not len(gallery[name].index):
        use = "learns from it" if name == "labelled" else "compares with it"
        raise ValueError(f"gallery.{name} is missing: the estimator {use}, list its splits in config.gallery.{name}")
    return gallery[name]


def classes(gallery: Gallery) -> np.ndarray:
    """The labels that occur in the stream `labelled` [K], increasing; raises ValueError where some are unknown, or K is below 2."""
    labelled = stream(gallery, "labelled")
    found = np.unique(labelled.labels)
    if len(found) < 2 or found[0] < 0:
        what = f"{(labelled.labels < 0).sum()} images of unknown label" if found[0] < 0 else f"images of class {found[0]} alone"
        raise ValueError(f"gallery.labelled has {what}: the estimator learns from the labels of two classes or more")
    return found


def flat(features: Features) -> np.ndarray:
    """The values as vectors: [N, ...] -> [N,D]."""
    return features.values.reshape(len(features.values), -1)


def columns(scores: np.ndarray) -> np.ndarray:
    """Scores of each class [M,K] as an estimator gives them: of two, one column, class 1 minus class 0."""
    return np.asarray(scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores, np.float32)


def at_least(option: str, value: float, least: float, most: float, of: str = "") -> None:
    """Raises ValueError that names `estimator.<option>` where its value is outside least..most; `of`: what there are so many of."""
    if not least <= value <= most:
        raise ValueError(f"estimator.{option}={value}: use {least} to {most}" + (f", the number of {of}" if of else ""))
