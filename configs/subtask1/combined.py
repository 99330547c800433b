"""Ours: the ranks of four label-free scores averaged, nothing fitted: local_match, likelihood_ratio, gan_leaks and domias.

A rank is that among the images of the split asked about: the score of an image depends on the others (transductive). Reads no label
but those of the threshold, as its parts; it needs a split `reference` as they do.

    python -m fingerprint_jax.main --config=configs/subtask1/combined.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from configs.subtask1 import domias, gan_leaks, likelihood_ratio, local_match
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Each part is a child, and the network of the likelihood ratio one for all folds."""
    c = base.ensemble(likelihood_ratio.seeds())
    c.data.folds = 5
    c.decision.name, c.decision.known = "learned_threshold", "heldout"
    c.ensemble.combine = "rank"
    c.ensemble.variants = ConfigDict(
        {
            "likelihood_ratio": {},
            "local_match": local_match.get_config().member,
            "gan_leaks": gan_leaks.get_config().member,
            "domias": domias.get_config().member,
        }
    )
    return base.finish(c, variant)
