"""SDVA's EfficientNet-B1 on subtask 2: six classes, the real images and the five synthetic sets.

Published: run 1425 accuracy 0.9708. System: EfficientNet-B1, learning rate 1e-4, batch 32, the checkpoint that is best on
validation images; the sixth logit is dropped where a synthetic image is attributed. Steps, augmentation and the shares of the
classes in a batch were not published. ImageNet weights: `--config.backbone.weights=hf://timm/efficientnet_b1.ft_in1k`.

    python -m fingerprint_jax.main --config=configs/subtask2/sdva_efficientnet.py --config.data_dir=$HOME/data --workdir=runs/e
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Trained on four fifths of the labelled synthetic images and all real ones; the last fifth is the split `heldout`."""
    c = base.gradient("subtask2")
    c.num_steps, c.eval_every, c.checkpoint_every = 3000, 250, 250
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.data.streams = ConfigDict({"real": 8, "generated": 24})
    c.data.cache = "device"
    c.data.normalize = "imagenet"
    c.backbone.name = "efficientnet_b1"
    c.objective.real_class = True
    c.augment.flip = 0.5
    c.best = "max:accuracy"
    return base.finish(c, variant)
