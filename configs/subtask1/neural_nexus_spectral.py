"""Neural Nexus: spectral clustering of the latents of an autoencoder.

Published: run 1880 kappa 0.072. System: features of an autoencoder of the synthetic images, spectral clustering. Which of their two
autoencoders and how a cluster was labelled were not published: here that of subtask1/neural_nexus_vit_autoencoder, whose docstring
says what it needs, and labels as in subtask1/challengers_cluster.

    python -m fingerprint_jax.main --config=configs/subtask1/neural_nexus_spectral.py --config.data_dir=$HOME/data --workdir=runs/m

Of the ResNet autoencoder: `--config.member.features.run=` with the child `encoder` of a run of subtask1/neural_nexus_texture.
"""

from ml_collections import ConfigDict

from configs import base
from configs.subtask1 import neural_nexus_vit_autoencoder
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Every labelled image is scored by clusters whose labels it had no part in."""
    m = base.classical(neural_nexus_vit_autoencoder.member())
    m.gallery = ConfigDict({"labelled": ("train_real",), "generated": ("train_generated", "test_generated")})
    m.pca = 50
    m.estimator.name = "spectral"
    return base.finish(base.cross_fitted(m), variant)
