"""Medhastra's ResNet-18 on subtask 2: trained on the real images, applied to the synthetic ones.

Published: run 1287 accuracy 0.9484. System: ResNet-18, five classes, trained on the *real* images of the subsets, validated on
synthetic ones, predicts synthetic images by softmax; the similarity by its 512-d features is subtask2/medhastra_similarity. The
ImageNet weights that a user may add are `--config.backbone.weights=hf://timm/resnet18.tv_in1k --config.data.normalize=imagenet`.
At 64 px the published stem leaves maps of 2x2; `--config.backbone.stem=native`, one convolution of stride 1, leaves 8x8.

    python -m fingerprint_jax.main --config=configs/subtask2/medhastra_resnet18.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Learning rate, batch and augmentation were not published."""
    c = base.gradient("subtask2")
    c.num_steps, c.eval_every, c.checkpoint_every = 600, 100, 100
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.data.streams = ConfigDict({"real": 32})
    c.data.cache = "device"
    c.backbone.name, c.backbone.stem = "resnet18", "imagenet"
    c.augment.flip = 0.5
    c.optimizer.learning_rate = 3e-4
    c.optimizer.schedule = "cosine"
    c.optimizer.weight_decay = 1e-4
    c.best = "max:accuracy"
    return base.finish(c, variant)
