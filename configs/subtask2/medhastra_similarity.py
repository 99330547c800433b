"""Medhastra's similarity on subtask 2: a synthetic image is of the subset whose real images its features resemble most.

Published: with run 1287, no figure of its own. System: the 512-d features of subtask2/medhastra_resnet18, which is trained on the
*real* images, and their cosine similarity; how it is pooled was not published, here the mean over the real images of a subset.
At 64 px `--config.member.backbone.stem=native` keeps the finest pixels, see there.

    python -m fingerprint_jax.main --config=configs/subtask2/medhastra_similarity.py --config.data_dir=$HOME/data --workdir=runs/n
    ... --config.features.run=runs/m      uses the network of a finished run of subtask2/medhastra_resnet18
"""

from ml_collections import ConfigDict

from configs import base
from configs.subtask2 import medhastra_resnet18
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """The real images are the gallery, a synthetic query is never among them."""
    c = base.classical(medhastra_resnet18.get_config())
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.gallery = ConfigDict({"labelled": ("train_real",)})
    c.estimator.name, c.estimator.measure, c.estimator.readout = "similarity", "cosine", "mean"
    return base.finish(c, variant)
