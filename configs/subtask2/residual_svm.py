"""Ours on subtask 2: co-occurrences of the high-pass residual, given to an SVM. Seconds on a laptop, nothing trained by gradients.

A generator leaves its fingerprint in how neighbouring pixels differ, not in what it shows: six high-pass residuals, quantised
at three steps and truncated, and the joint frequencies of neighbouring ones (the rich models of steganalysis, see
features/residual.py), in an SVM with a Gaussian kernel. No published run of the task used them. docs/subtask2.md has its figures
beside theirs.

    python -m fingerprint_jax.main --config=configs/subtask2/residual_svm.py --config.data_dir=$HOME/data --workdir=runs/r
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Fitted to four fifths of the labelled synthetic images less the validation images; the last fifth is the split `heldout`."""
    # Quantised at steps of so many grey levels; residuals of more steps than `levels` count as so many.
    c = base.featured("subtask2", "residual", steps=(2.0, 4.0, 8.0), levels=3)
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    c.gallery = ConfigDict({"labelled": ("train_generated",)})
    c.estimator.name = "rbf_svm"
    return base.finish(c, variant)
