"""Ours: do the patches of the synthetic images name this image more often than those of real ones that were not used do?

`local_match` asks from the real image: is its anatomy near in the synthetic set? Here each synthetic patch asks: which real image
am I of? It votes among all real images at hand, half of the reference included; the other half votes as the synthetic images do.
The images that are asked about compete for votes, so that a score depends on the others (transductive). Images are compared as
they lie, not registered: a generator puts a patch where it has seen it. The width of a vote was decided on phantoms, that images
are not registered on a generator of our own (docs/subtask1.md).

No label is read but those of the threshold, so that the AUC has an exact p. It needs a split `reference` (pack --reference_dir),
which the official data lack. With `:official` after the file the images asked about, `test_real`, are the reference.

    python -m fingerprint_jax.main --config=configs/subtask1/mosaic.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold. `official`: without reference images."""
    m = base.featured("subtask1", "images", size=64)
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    m.gallery.reference = ("test_real",) if variant == "official" else ("reference",)
    m.gallery.rivals = ("test_real",)
    m.estimator.name = "mosaic"
    return base.finish(base.cross_fitted(m), variant, own=("official",))
