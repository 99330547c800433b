"""Ours on subtask 2: a network of three branches at native resolution, image, high-pass residual and spectrum, and cross-entropy.

The residual is where generators differ (subtask2/residual_svm finds it without a network); here its statistics are learned. Weights
are averaged over the last steps (EMA). docs/subtask2.md says what is still missing.

    python -m fingerprint_jax.main --config=configs/subtask2/fingerprint_net.py --config.data_dir=$HOME/data --workdir=runs/n
"""

from configs import base


def get_config(variant: str = ""):
    """Trained on four fifths of the labelled synthetic images; the last fifth is the split `heldout`."""
    c = base.gradient("subtask2")
    c.num_steps, c.eval_every, c.checkpoint_every = 3000, 250, 250
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.data.cache = "device"
    c.data.normalize = "none"  # the network takes grey levels
    c.backbone.name = "fingerprint_net"
    c.augment.flip = 0.5
    c.optimizer.learning_rate = 3e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.weight_decay = 1e-2
    c.optimizer.ema_decay = 0.99
    c.best = "max:accuracy"
    return base.finish(c, variant)
