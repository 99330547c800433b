"""AI Multimedia Lab's Siamese network on subtask 1, cross-fitted.

Published: run 1696 kappa 0.036, run 1492 kappa -0.044 (Andrei et al., CLEF 2025 working notes).
System: twin conv 16-32-64-128, dense 256, L2 normalisation; contrastive loss, margin 1 on the Euclidean distance; pairs synthetic
with used (positive) and with not used (negative), half each; Adam 1e-4, batch 32; 50 epochs of 5,000 synthetic images, which is
7,800 steps: here 1,000, since 160 labelled images are seen 200 times over by then. How a pair's distance becomes an image's score
was not published: `objective.readout` is mean, min or knn. Their code trains on 0..255 and infers on /255: `data.normalize`.

    python -m fingerprint_jax.main --config=configs/subtask1/aimm_siamese.py --config.data_dir=$HOME/data --workdir=runs/a
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Five fold children; every labelled image is scored by the child that did not see it."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 1000, 250, 250
    m.data.streams = ConfigDict({"real": 32, "generated": 32})
    m.data.cache = "device"
    m.objective = ConfigDict(
        {
            "name": "contrastive",
            "margin": 1.0,
            "pairs": "sampled",  # sampled: as published, drawn half positive | all: every real x synthetic pair
            "num_pairs": 32,  # pairs a step where they are sampled
            "readout": "mean",  # mean | min | knn distance to the synthetic images
            "k": 5,  # neighbours of knn
        }
    )
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    return base.finish(base.cross_fitted(m), variant)
