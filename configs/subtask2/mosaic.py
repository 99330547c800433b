"""Ours on subtask 2: which set of real images do the patches of a synthetic image vote for? Nothing is trained.

The other systems learn from labelled synthetic images, and find the run of a generator (docs/subtask2.md). This one compares with
the real images alone, so that it can find the data. Images are compared as they lie; see subtask1/mosaic.

    python -m fingerprint_jax.main --config=configs/subtask2/mosaic.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """The real images of the five sets are the gallery; a fifth of the synthetic images is the split `heldout`, as elsewhere."""
    c = base.featured("subtask2", "images", size=64)
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.gallery = ConfigDict({"labelled": ("train_real",)})
    c.estimator.name = "mosaic_sets"
    return base.finish(c, variant)
