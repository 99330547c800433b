"""ZOQ: structural similarity to the synthetic images, after a filter.

Published: run 1355 kappa -0.032. System: a filter (none, Gaussian, Laplacian, Hessian, bilateral), similarity by SSIM, a
threshold. Of which maps the SSIM is was not published; here of the filtered images, at every eighth window. The grid of filters
and measures is launch/ablations/zoq.py.

    python -m fingerprint_jax.main --config=configs/subtask1/zoq_cnn_ssim.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold."""
    m = base.featured("subtask1", "images")
    m.features.enhance = "gaussian"
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    m.estimator.name, m.estimator.measure = "similarity", "ssim"
    return base.finish(base.cross_fitted(m), variant)
