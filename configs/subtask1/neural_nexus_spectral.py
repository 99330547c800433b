"""Neural Nexus: spectral clustering of deep features.

Published: run 1880 kappa 0.072. System: features of an autoencoder, spectral clustering; how a cluster was labelled was not
published: here as in subtask1/challengers_cluster. Here the features are those of a frozen ResNet50.

ResNet50's weights come from the hub, for which `--config.member.member.backbone.weights=` may name a file.

    python -m fingerprint_jax.main --config=configs/subtask1/neural_nexus_spectral.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = ""):
    """Every labelled image is scored by clusters whose labels it had no part in."""
    m = base.classical(base.frozen("subtask1", "resnet50", "hf://timm/resnet50.tv_in1k", "imagenet"))
    m.gallery = ConfigDict({"labelled": ("train_real",), "generated": ("train_generated", "test_generated")})
    m.pca = 50
    m.estimator.name = "spectral"
    return base.finish(base.cross_fitted(m), variant)
