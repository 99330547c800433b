"""Challengers: clusters of ResNet50 features of real and synthetic images.

Published: run 1778 kappa -0.116, run 1779 kappa -0.032. System: ResNet50, PCA, then k-means, a Gaussian mixture, agglomerative
clustering or DBSCAN on real and synthetic images together; a cluster is used or not. How a cluster was labelled was not
published: here its score is the smoothed share of used among its labelled images of the other folds.
`--config.member.estimator.name=gmm`, `agglomerative`, `dbscan`.

ResNet50's weights come from the hub, for which `--config.member.member.backbone.weights=` may name a file.

    python -m fingerprint_jax.main --config=configs/subtask1/challengers_cluster.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Every labelled image is scored by clusters whose labels it had no part in."""
    m = base.classical(base.frozen("subtask1", "resnet50", "hf://timm/resnet50.tv_in1k", "imagenet"))
    m.gallery = ConfigDict({"labelled": ("train_real",), "generated": ("train_generated", "test_generated")})
    m.pca = 50
    m.estimator.name = "kmeans"
    return base.finish(base.cross_fitted(m), variant)
