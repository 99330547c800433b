"""AI Multimedia Lab's Siamese network on subtask 2, the best published run.

Published: run 1396 accuracy 0.9904 (Andrei et al., CLEF 2025 working notes).
System: as subtask1/aimm_siamese, pairs of one real and one synthetic image, positive where the subset is the same. Readout: the
smallest mean distance to a subset's real images (paper: `mean`), or the distance to their centroid (their code: `centroid`).

    python -m fingerprint_jax.main --config=configs/subtask2/aimm_siamese.py --config.data_dir=$HOME/data --workdir=runs/b
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Trained on four fifths of the labelled synthetic images; the last fifth is the split `heldout`."""
    c = base.gradient("subtask2")
    c.num_steps, c.eval_every, c.checkpoint_every = 3000, 500, 500
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.data.streams = ConfigDict({"real": 32, "generated": 32})
    c.data.cache = "device"
    c.objective = ConfigDict({"name": "contrastive", "margin": 1.0, "pairs": "sampled", "num_pairs": 32, "readout": "mean", "k": 5})
    c.gallery = ConfigDict({"real": ("train_real",)})
    c.best = "max:accuracy"
    return base.finish(c, variant)
