"""Ours: four scores without labels, weighted by what each was worth on generators whose training images are known.

The weights were learned on benchmarks of our own (docs/generators.md, *Weights of attacks*): other generators, of other images. No
label of the images that are asked about is read but those of the threshold, so that the AUC has an exact p.

Scores are brought to mean 0 and deviation 1 among the images of the split asked about: the score of an image depends on the others
(transductive). It needs a split `reference` (pack --reference_dir), which the official data lack. With `:official` after the file
the images asked about, `test_real`, are the reference.

    python -m fingerprint_jax.main --config=configs/subtask1/shadow.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from configs.subtask1 import mosaic
from fingerprint_jax import Config

# {score: its weight}, as `launch.benchmark` gave them: three generators of 32 px, each trained on 100 radiographs for 700 steps.
WEIGHTS = {"local_match": 0.625, "mosaic": 0.708, "gan_leaks": 0.328, "domias": 0.026}


def get_config(variant: str = "") -> Config:
    """Each score is a child; a field of `member` is that of all."""
    own = variant if variant == "official" else ""
    c = base.cross_fitted(mosaic.get_config(own).member)
    c.ensemble.combine = "weighted"
    alone = {"gallery": {"rivals": ()}}
    pixels = alone | {"features": {"name": "pixels", "size": 0}}
    c.ensemble.variants = ConfigDict(
        {
            "local_match": {"estimator": {"name": "local_match"}} | alone,
            "mosaic": {},
            "gan_leaks": {"estimator": {"name": "gan_leaks"}} | pixels,
            "domias": {"estimator": {"name": "domias"}} | pixels,
        }
    )
    c.ensemble.coefficients = tuple(WEIGHTS[name] for name in c.ensemble.variants)
    return base.finish(c, variant, own=("official",))
