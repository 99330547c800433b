"""Ways to get from a run to a table of predictions. The file name is the registry; each file has

FIELDS                {field: type} that a config of it has, beside those of run.FIELDS; of a section `dict`
check(run)            raises ValueError where it, or a child, cannot be fitted, as far as config and data tell; writes nothing.
                      `checks.check` calls it, for children too
fit(run)              called again it continues, or returns when done
predict(run, split)   -> Predictions
state(run)            -> JSON: what `predict` would use (a step, the states of children)
reads(config, split)  whether a run of this config learns from, compares with or chooses by rows of a split, `valid` included
"""

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from fingerprint_jax import Config, names

if TYPE_CHECKING:
    from fingerprint_jax.run import Run


def get(name: str) -> ModuleType:
    """The module of a method; raises ValueError with the known names."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    names.check("method", name, known)
    return importlib.import_module(f"{__name__}.{name}")


def gallery_reads(config: Config, split: str) -> bool:
    """Whether `config.gallery` lists a split, or some of its rows as `split:label`."""
    return any(entry.partition(":")[0] == split for entries in config.gallery.values() for entry in entries)


def reads_synthetic(config: Config) -> bool:
    """Whether anything of a synthetic image is in the scores of a run of this config, as far as its method can say."""
    return any(get(config.method).reads(config, split) for split in ("train_generated", "test_generated"))


def seen(run: "Run", source: "Run") -> int:
    """Images that a run holds out and another one of its task does not: trained on them, it makes figures look better.

    Where that was started with other data they are compared pixel by pixel, which does not see other images of the same patients.

    Raises ValueError where those are gone, or of another size.
    """
    held, target = np.isin(run.parts, (2, 3)), run.target
    if not held.any():
        return 0
    if source.same_target and source.source.fingerprints[target] == run.source.fingerprints[target]:
        return int((held & ~np.isin(source.parts, (2, 3))).sum())
    read = source.started_with(run.source.image_shape)
    if read is None:
        raise ValueError(
            f"{source.workdir} was started with another {target} than that of {run.config.data_dir}, which is gone or of another"
            " size: whether it has images that this run holds out is not known; train it on these data"
        )
    return int(np.isin(run.source.digests(run.source.rows(target).index[held]), read).sum())
