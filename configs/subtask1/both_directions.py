"""Ours: from the real image to the synthetic ones, and back: the ranks of `local_match` and `mosaic` averaged, nothing fitted.

A rank is that among the images of the split asked about: the score of an image depends on the others (transductive). Reads no label
but those of the threshold, as its parts; it needs a split `reference` as they do, and goes by `:official` as they do.

    python -m fingerprint_jax.main --config=configs/subtask1/both_directions.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from configs.subtask1 import mosaic
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Each direction is a child; a field of `member` is that of both."""
    own = variant if variant == "official" else ""
    c = base.cross_fitted(mosaic.get_config(own).member)
    c.ensemble.combine = "rank"
    c.ensemble.variants = ConfigDict(
        {"local_match": {"estimator": {"name": "local_match"}, "gallery": {"rivals": ()}}, "mosaic": {}}
    )
    return base.finish(c, variant, own=("official",))
