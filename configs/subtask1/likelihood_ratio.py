"""Ours: does a denoiser of the synthetic images know an image better than a denoiser of real ones that were not used?

The same small network, trained twice from the same start; the score is the log of the ratio of their errors on the image, with the
same noise for all. Images are averaged to 32 pixels: the generator leaves anatomy, and single pixels are mostly noise. What was
free was decided on phantoms (docs/subtask1.md); no label of a real image chose it.

No label is read but those of the threshold, so that the AUC has an exact p, and one network does for all folds. It needs a split
`reference`, real images known not to be used: pack them with --reference_dir. Two players in one loss: without clipping.

    python -m fingerprint_jax.main --config=configs/subtask1/likelihood_ratio.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def seeds() -> Config:
    """The mean over three seeds."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 10_000, 2500, 2500
    m.data.streams = ConfigDict({"generated": 128, "reference": 128})
    m.data.cache, m.data.balanced = "device", False
    m.data.normalize = "symmetric"
    m.backbone.name = "mlp"
    m.optimizer.learning_rate = 1e-3
    m.optimizer.ema_decay = 0.999
    m.objective = ConfigDict(
        {
            "name": "likelihood_ratio",
            "size": 32,  # images are averaged to so many pixels a side
            "deviation": 0.5,  # of the normalised images, about
            "sigmas": (0.05, 0.8),  # deviation of the noise in training: between these, log-uniform
            "scored": (0.05, 0.1, 0.2),  # deviations at which the errors are compared
            "draws": 4,  # of noise, at each of them
            "noise_seed": 0,  # of these draws
        }
    )
    c = base.ensemble(m)
    c.ensemble.seeds = 3
    return c


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold."""
    c = seeds()
    c.data.folds = 5
    c.decision.name, c.decision.known = "learned_threshold", "heldout"
    return base.finish(c, variant)
