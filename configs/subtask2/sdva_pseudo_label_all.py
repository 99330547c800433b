"""SDVA's pseudo-labels on everything: EfficientNet-B1s, no sequestered and no validation images, all rounds run.

Published: run 1871 accuracy 0.988. System: an ensemble of EfficientNet-B1 trained on all labelled images and the pseudo-labelled
test images, without a sequestered part. Not published: the size of the ensemble (here five seeds), how it is combined (here the
mean of the probabilities), which images join (here those of a probability of 0.9), the number of rounds, the checkpoint (here the
last, since no image is left to choose it by).

15 trainings of subtask2/sdva_efficientnet. A fifth of the labelled images is held out, so that there is a figure; for a submission
`--config.data.folds=0` trains on them too. The result looks at the test images and says so: transductive.

    python -m fingerprint_jax.main --config=configs/subtask2/sdva_pseudo_label_all.py --config.data_dir=$HOME/data --workdir=runs/pa
"""

from configs import base
from configs.subtask2 import sdva_efficientnet
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Everything but the held-out fifth is trained on."""
    member = base.ensemble(sdva_efficientnet.get_config())
    member.ensemble.seeds = 5
    member.member.best = ""
    c = base.pseudo_label(member)
    c.data.folds, c.data.fold = 5, 0
    return base.finish(c, variant)
