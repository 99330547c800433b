"""Ours: is an image's local anatomy nearer to the synthetic images than to real ones that were not used?

Each patch of an image is looked for near the same place in the synthetic images and in the reference. Images are compared as they
lie: a generator puts a patch where it has seen it. Patch, stride, radius and share were decided on phantoms, that images are not
registered by the body's box on generators of our own (docs/subtask1.md); no label of `chest64` chose them.

No label is read but those of the threshold, so that the AUC has an exact p. It needs a split `reference` (pack --reference_dir),
which the official data lack. With `:official` after the file the images asked about, `test_real`, are the reference: half of them
were used, but each by itself, and an image is not compared with itself. Its score then depends on the others (transductive).

    python -m fingerprint_jax.main --config=configs/subtask1/local_match.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold. `official`: without reference images."""
    m = base.featured("subtask1", "images", size=64)
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    m.gallery.reference = ("test_real",) if variant == "official" else ("reference",)
    m.estimator.name = "local_match"
    return base.finish(base.cross_fitted(m), variant, own=("official",))
