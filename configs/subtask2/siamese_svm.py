"""The Siamese embedding, reduced by PCA, given to a linear SVM: the classical method on another run's features.

python -m fingerprint_jax.main --config=configs/subtask2/siamese_svm.py --config.data_dir=$HOME/data --workdir=runs/s
... --config.features.run=runs/b      uses the network of a finished run
"""

from ml_collections import ConfigDict

from configs import base
from configs.subtask2 import aimm_siamese
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """PCA to 32 dimensions, linear SVM with C = 1 on the labelled synthetic images."""
    c = base.classical(aimm_siamese.get_config())
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.gallery = ConfigDict({"labelled": ("train_generated",)})
    c.pca = 32
    return base.finish(c, variant)
