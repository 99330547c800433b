"""Ours on subtask 2: five of subtask2/fingerprint_net, one a fold, averaged in logits.

A labelled synthetic image is scored by the network that did not see it, so that `heldout` is all of them; any other image has the
mean of the five networks' logits.

    python -m fingerprint_jax.main --config=configs/subtask2/fingerprint_net_folds.py --config.data_dir=$HOME/data --workdir=runs/n5
"""

from configs import base
from configs.subtask2 import fingerprint_net
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Each child holds out one of the folds."""
    c = base.ensemble(fingerprint_net.get_config())
    c.data.folds, c.data.fold, c.data.valid = 5, -1, 0.1
    c.ensemble.combine = "logits"
    return base.finish(c, variant)
