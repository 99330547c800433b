"""SDVA's vote of EfficientNet-B0, B1 and B2 on subtask 2.

Published: run 1426 accuracy 0.9878. System: six classes as in subtask2/sdva_efficientnet; the members whose validation accuracy is
at least 0.98 vote, ties go to the higher mean probability; where none reaches it the run ends in a line that names the best, and
`--allow_change=ensemble.admit --config.ensemble.admit=0.9` goes on without training again. `--config.ensemble.combine=mean`
averages the probabilities instead.

    python -m fingerprint_jax.main --config=configs/subtask2/sdva_vote.py --config.data_dir=$HOME/data --workdir=runs/w
"""

from ml_collections import ConfigDict

from configs import base
from configs.subtask2 import sdva_efficientnet
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Members share the held-out fold and the validation images."""
    c = base.ensemble(sdva_efficientnet.get_config())
    c.data.folds, c.data.fold, c.data.valid = 5, 0, 0.1
    for size in ("b0", "b1", "b2"):
        c.ensemble.variants[size] = ConfigDict({"backbone": {"name": f"efficientnet_{size}"}})
    c.ensemble.admit = 0.98
    c.ensemble.combine = "vote"
    return base.finish(c, variant)
