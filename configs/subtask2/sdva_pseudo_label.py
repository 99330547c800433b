"""SDVA's pseudo-labels on subtask 2: 26 EfficientNets vote on the test images, which then join the training, round after round.

Published: run 1782 accuracy 0.988; run 1883 of the team is not described. System: 26 EfficientNets B0 to B2 of various
hyper-parameters, six classes as in subtask2/sdva_efficientnet; the test images that the ensemble has labelled join the training
images, rounds repeat, and a sequestered part of the training images watches for overfitting: where its accuracy falls, the rounds
stop and the round before is the result. Not published: which hyper-parameters (here the size, the learning rate and the shift of
the augmentation), how the 26 are combined (here by vote), which images join (here those that nine tenths of the votes agree on, at
most 1,000 a class), the number of rounds, the sequestered share.

78 trainings of subtask2/sdva_efficientnet. The result looks at the test images and says so: transductive.

    python -m fingerprint_jax.main --config=configs/subtask2/sdva_pseudo_label.py --config.data_dir=$HOME/data --workdir=runs/p
"""

import itertools

from ml_collections import ConfigDict

from configs import base
from configs.subtask2 import sdva_efficientnet
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Rounds and members share the held-out fold, the validation and the sequestered images."""
    member = base.ensemble(sdva_efficientnet.get_config())
    # The names sort so that members of one compiled step, which differ in the learning rate alone, are trained in a row.
    grid = list(itertools.product(("b0", "b1", "b2"), (0, 2, 4), (5e-5, 1e-4, 2e-4)))
    for size, shift, rate in grid[:26]:
        fields = {
            "backbone": {"name": f"efficientnet_{size}"},
            "augment": {"shift": shift},
            "optimizer": {"learning_rate": rate},
        }
        member.ensemble.variants[f"{size}_shift{shift}_{rate:.0e}"] = ConfigDict(fields)
    member.ensemble.combine = "vote"
    c = base.pseudo_label(member)
    c.data.folds, c.data.fold, c.data.valid, c.data.sequester = 5, 0, 0.1, 0.1
    c.pseudo.cap = 1000
    return base.finish(c, variant)
