"""Neural Nexus: the reconstruction error and the latents of a ResNet autoencoder, and textures, given to a random forest.

Published: run 1881 kappa 0.032. System: autoencoder of the synthetic images (stride-2 convolutions 32/64/128/256 with residual
blocks, latent 512, mean absolute error, batch 32, 50 epochs of 5,000); 47 textures, of which a random forest of 200 trees picks the
best 20, and their Mahalanobis distance to the synthetic set; a random forest of 100 on the reconstruction error, the least cosine
distance of the latent to those of the synthetic images and that distance. Published at 128 px, here at the packed size.

    python -m fingerprint_jax.main --config=configs/subtask1/neural_nexus_texture.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def member() -> Config:
    """The autoencoder, label-free."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 7800, 1950, 1950
    m.data.streams = ConfigDict({"generated": 32})
    m.data.normalize = "symmetric"
    m.backbone.name = "strided_resnet"
    m.objective = ConfigDict(
        {
            "name": "autoencoder",
            "error": "mae",  # mse | mae
            "latent": 0,  # the backbone's own features, 512
            "widths": (256, 128, 64, 32, 16),  # of the decoder: the first map's, then of each step, which doubles it
        }
    )
    return m


def get_config(variant: str = "") -> Config:
    """Both forests see the labels of the other folds alone."""
    m = base.classical(member())
    m.features.output, m.features.beside = "error+embedding", "texture"
    m.gallery = ConfigDict({"labelled": ("train_real",), "generated": ("train_generated", "test_generated")})
    m.estimator.name = "texture_forest"
    return base.finish(base.cross_fitted(m), variant)
