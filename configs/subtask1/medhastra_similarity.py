"""MedHastra: cosine similarity of ResNet50 features, and a logistic regression on it.

Published: run 1288 kappa 0.016. System: 2,048 features, the cosine of every synthetic image to the real pool, threshold at mean +
k standard deviations; and a logistic regression on similarity features, `--config.member.estimator.name=similarity_logistic` with
`--config.member.gallery.labelled="('train_real',)"`. k was not published.

ResNet50's weights come from the hub, for which `--config.member.member.backbone.weights=` may name a file.

    python -m fingerprint_jax.main --config=configs/subtask1/medhastra_similarity.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """The largest similarity to a synthetic image; labels are read by the regression alone."""
    m = base.classical(base.frozen("subtask1", "resnet50", "hf://timm/resnet50.tv_in1k", "imagenet"))
    m.gallery = ConfigDict({"labelled": (), "generated": ("train_generated", "test_generated")})
    m.estimator.name, m.estimator.measure = "similarity", "cosine"
    c = base.cross_fitted(m)
    c.decision.name, c.decision.known = "mean_plus_std", ""
    c.decision.params.k = 1.0
    return base.finish(c, variant)
