"""Attribution on the built-in phantom data: which of five subsets trained the generator?

    make demo

About two minutes on two CPU cores.
"""

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Softmax classifier on the labelled synthetic images."""
    c = base.gradient("subtask2")
    c.num_steps, c.eval_every, c.checkpoint_every = 400, 100, 100
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.data.cache = "device"
    c.augment.flip = 0.5
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "cosine"
    c.best = "max:accuracy"
    return base.finish(c, variant)
