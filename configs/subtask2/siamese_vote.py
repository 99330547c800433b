"""Three Siamese networks of different seeds vote; ties go to the higher mean score.

python -m fingerprint_jax.main --config=configs/subtask2/siamese_vote.py --config.data_dir=$HOME/data --workdir=runs/v
... --config.ensemble.runs="('runs/a','runs/b')"      combines finished runs
"""

from configs import base
from configs.subtask2 import aimm_siamese
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Members share the held-out fold, so that the vote can be scored on it."""
    c = base.ensemble(aimm_siamese.get_config())
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.ensemble.seeds = 3
    c.ensemble.combine = "vote"
    return base.finish(c, variant)
