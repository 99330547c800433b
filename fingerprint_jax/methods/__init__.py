"""Ways to get from a run to a table of predictions. The file name is the registry; each file has

fit(run)              called again it continues, or returns when done
predict(run, split)   -> Predictions
state(run)            -> JSON: what `predict` would use (a step, the states of children)
"""

import importlib
import pkgutil
from types import ModuleType


def get(name: str) -> ModuleType:
    """The module of a method; raises ValueError with the known names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise ValueError(f"method={name!r} is unknown: use one of {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{name}")
