"""GAN-Leaks: how much nearer an image is to the synthetic images than to real ones that were not used.

Chen, Yu, Zhang & Fritz 2020 (CCS); what stands in for their calibration is said in estimators/membership.py.
`--config.member.estimator.calibrated=False` is the raw distance.

No label is read but those of the threshold, so that the AUC has an exact p. Without a split `reference` (data that are not packed
with --reference_dir): `--config.member.gallery.reference="('test_real',)"`, the images asked about. Half of them were used, but
each by itself, and an image is not compared with itself.

Of other features: `--config.member.features.name=texture`, or `network`: EfficientNet-Lite0 with its ImageNet weights, or with
`--config.member.features.run=runs/x` the network of a finished run that no labelled real image has trained.

    python -m fingerprint_jax.main --config=configs/subtask1/gan_leaks.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold."""
    m = base.classical(base.frozen("subtask1"), "pixels")
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated"), "reference": ("reference",)})
    m.estimator.name = "gan_leaks"
    return base.finish(base.cross_fitted(m), variant)
