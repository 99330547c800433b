"""Challengers: a classifier of used against not used real images, cross-fitted; it never reads a synthetic image.

Published: run 1811 kappa 0.012. System: ResNet50V2, fine-tuned from ImageNet weights with a head of its own. Head, learning rate,
batch, steps and augmentation were not published. What it finds is a difference between the two sets of real images, whatever the
generator did with them.

The weights come from the hub, for which `--config.member.backbone.weights=` may name a file; empty, they are drawn from the seed.

    python -m fingerprint_jax.main --config=configs/subtask1/challengers_resnet50v2.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Five fold children; every labelled image is scored by the child that did not see it."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 500, 100, 100
    m.data.streams = ConfigDict({"real": 32})
    m.data.cache = "device"
    m.data.normalize = "symmetric"  # as these weights were trained
    m.backbone.name, m.backbone.weights = "resnet50v2", "hf://timm/resnetv2_50.a1h_in1k"
    m.objective.hidden, m.objective.dropout = 256, 0.5
    return base.finish(base.cross_fitted(m), variant)
