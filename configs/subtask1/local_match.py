"""Ours: is an image's local anatomy nearer to the synthetic images than to real ones that were not used?

Images are registered by the body's box; each patch of an image is looked for near the same place in the synthetic images and in
the reference. What was free was decided on phantoms (docs/subtask1.md); no label of a real image chose it.

No label is read but those of the threshold, so that the AUC has an exact p. Without a split `reference` (data that are not packed
with --reference_dir): `--config.member.gallery.reference="('train_real:0',)"`, the images not used of the other folds; then
labels are read, and there is no p.

    python -m fingerprint_jax.main --config=configs/subtask1/local_match.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = ""):
    """Label-free scores; the folds are those of the threshold."""
    m = base.featured("subtask1", "registered", size=64)
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated"), "reference": ("reference",)})
    m.estimator.name = "local_match"
    return base.finish(base.cross_fitted(m), variant)
