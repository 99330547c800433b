"""Monte Carlo: the share of synthetic images within epsilon of an image.

Hilprecht, Haerterich & Bernau 2019 (PoPETs); whose median distance epsilon is, is said in estimators/membership.py.

No label is read but those of the threshold, so that the AUC has an exact p. Without a split `reference` (data that are not packed
with --reference_dir): `--config.member.gallery.reference="('test_real',)"`, the images asked about. Half of them were used, but
each by itself, and an image is not compared with itself.

Of other features: `--config.member.features.name=texture`, or `network`: EfficientNet-Lite0 with its ImageNet weights, or with
`--config.member.features.run=runs/x` the network of a finished run that no labelled real image has trained.

    python -m fingerprint_jax.main --config=configs/subtask1/monte_carlo.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold."""
    m = base.classical(base.frozen("subtask1"), "pixels")
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated"), "reference": ("reference",)})
    m.estimator.name = "monte_carlo"
    return base.finish(base.cross_fitted(m), variant)
