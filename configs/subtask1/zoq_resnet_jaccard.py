"""ZOQ: Jaccard similarity of binarised ResNet50 features to the synthetic images, after a filter.

Published: run 1427 kappa -0.016 (runs 1330, 1356, 1794: not described). System: a filter, ResNet50, features binarised, Jaccard,
a threshold. What they were binarised at was not published: here the median over the synthetic images.

ResNet50's weights come from the hub, for which `--config.member.member.backbone.weights=` may name a file.

    python -m fingerprint_jax.main --config=configs/subtask1/zoq_resnet_jaccard.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold."""
    m = base.classical(base.frozen("subtask1", "resnet50", "hf://timm/resnet50.tv_in1k", "imagenet"))
    m.features.enhance = "gaussian"
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    m.estimator.name, m.estimator.measure = "similarity", "jaccard"
    return base.finish(base.cross_fitted(m), variant)
