"""Estimators: `f(x [N,D], y [N], query [M,D], *, seed, **options)` -> float32 [M,K], higher is likelier.

K are the classes of y, in their order; two give one column, class 1 against class 0. Each file has `ESTIMATORS = {name: function}`,
and together they are the registry of `config.estimator.name`.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable

import numpy as np


def get(name: str, **options) -> Callable[..., np.ndarray]:
    """An estimator with its options set; those that are None keep the estimator's own default.

    Raises ValueError with the known names, or options.
    """
    known = {}
    for info in pkgutil.iter_modules(__path__):
        known |= getattr(importlib.import_module(f"{__name__}.{info.name}"), "ESTIMATORS", {})
    if name not in known:
        raise ValueError(f"estimator.name={name!r} is unknown: use one of {', '.join(sorted(known))}")
    accepted = set(inspect.signature(known[name]).parameters) - {"x", "y", "query", "seed"}
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if option not in accepted:
            raise ValueError(f"estimator.{option} is no option of {name}: use {', '.join(sorted(accepted)) or 'none'}")
    return functools.partial(known[name], **options)


def columns(scores: np.ndarray) -> np.ndarray:
    """Scores of each class [M,K] as an estimator gives them: of two, one column, class 1 minus class 0."""
    return np.asarray(scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores, np.float32)
