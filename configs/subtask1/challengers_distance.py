"""Challengers: the distance to the nearest centroid of the synthetic images.

Published: run 1776 kappa -0.176 (and run 1777, same figures). System: deep features or LBP histograms; clusters of the synthetic
images; label by the distance to the nearest centroid. The number of clusters was not published. Deep features:
`--config.member.features.name=network`.

    python -m fingerprint_jax.main --config=configs/subtask1/challengers_distance.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold."""
    m = base.classical(base.frozen("subtask1"), "lbp")
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    m.estimator.name = "nearest_centroid_of_generated"
    return base.finish(base.cross_fitted(m), variant)
