"""Neural Nexus: a dual contrastive learning GAN between synthetic and real images, and where its discriminators look.

Published: nothing by name; runs 1872, 1877, 1879 and 1882 of the team are undescribed, kappa -0.028 to 0.028. System: two
generators, two discriminators, PatchNCE with temperature 0.05; weights 1 of the adversarial loss and 2 of PatchNCE; Adam 2e-4 with
betas 0.5 and 0.9; the overlap of the attention maps of the discriminators as the signal.

Not published: the networks, here those of CycleGAN as in the code of DCLGAN; number of patches and weight of the identity loss,
here those of that code; batch (1 there) and steps; what an attention map is, how the overlap is measured and which side of it is
"used" (see objectives/dclgan.py); the real images, here the split `reference`: pack them with --reference_dir. So no label is read
but those of the threshold, and one network does for all folds. With `:real` after the file the real images are the task's own, each
fold's those of the others, whose labels are not read. Two players in one loss: without clipping.

Translated images are shown in TensorBoard at every evaluation.

    python -m fingerprint_jax.main --config=configs/subtask1/neural_nexus_dclgan.py --config.data_dir=$HOME/data --workdir=runs/d
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """The folds are those of the threshold, and, of `real`, those of the images trained on."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 20_000, 2500, 2500
    m.data.streams = ConfigDict({"generated": 4, "real" if variant == "real" else "reference": 4})
    m.data.cache, m.data.balanced = "device", False
    m.data.normalize = "symmetric"
    m.backbone.name = "cyclegan_resnet"
    m.optimizer.update(learning_rate=2e-4, beta1=0.5, beta2=0.9)
    m.objective = ConfigDict(
        {
            "name": "dclgan",
            "adversarial_weight": 1.0,  # of the generators' loss against the discriminators
            "nce_weight": 2.0,  # of PatchNCE
            "identity_weight": 1.0,  # of what a generator changes in images that are already of the other domain
            "temperature": 0.05,  # of PatchNCE
            "num_patches": 256,  # of each map of an image, or all there are
            "features": 256,  # of a projected patch
            "widths": (64, 128, 256, 512),  # of the discriminators
        }
    )
    return base.finish(base.cross_fitted(m), "" if variant == "real" else variant)
