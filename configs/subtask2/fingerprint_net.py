"""Ours on subtask 2: a network of three branches at native resolution, image, high-pass residual and spectrum.

The residual is where generators differ (subtask2/residual_svm finds it without a network); here its statistics are learned, by the
cross-entropy and the supervised contrastive loss of Khosla et al. 2020. Weights are averaged over the last steps (EMA), predictions
over the image, its mirror and shifts by a pixel. subtask2/fingerprint_net_folds averages five of them.

    python -m fingerprint_jax.main --config=configs/subtask2/fingerprint_net.py --config.data_dir=$HOME/data --workdir=runs/n
"""

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Trained on four fifths of the labelled synthetic images; the last fifth is the split `heldout`."""
    c = base.gradient("subtask2")
    c.num_steps, c.eval_every, c.checkpoint_every = 3000, 250, 250
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.data.cache = "device"
    c.data.normalize = "none"  # the network takes grey levels
    c.backbone.name = "fingerprint_net"
    c.augment.flip = 0.5
    c.views.flip, c.views.shift = True, 1
    c.objective.contrast = 0.5
    c.optimizer.learning_rate = 3e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.weight_decay = 1e-2
    c.optimizer.ema_decay = 0.99
    c.best = "max:accuracy"
    return base.finish(c, variant)
