"""Patient re-identification: of which patient are the synthetic images? The Siamese networks of Packhäuser et al. 2022.

Published (Sci Rep 12:14851, of real radiographs, no generator): two images of ChestX-ray14 are told to be of one patient or of two
with AUC 0.994. System: ResNet50 of ImageNet at 256 px, 128 features; of verification sigmoids, whose absolute difference goes
through a dense layer and a sigmoid, binary cross-entropy, Adam 1e-4, 32 pairs a step, half of them of one patient; of retrieval an
embedding by contrastive loss, margin 1. Theirs are two networks with trainings of their own, here they are two branches of one; the
contrastive loss is that of Hadsell et al., theirs takes the distance for its square and compares with the steps before, too. Here
the first images of 32 patients are compared with the second ones of all: 32 pairs of one patient, which count as all 992 of two.

Not of the paper: the score. It is the distance of an image's embedding to that of the nearest reference image, less that to the
nearest synthetic one; with `objective.readout=probability` the largest logit of verification with a synthetic image, less the
largest with a reference image. On phantoms of near copies the former told used images, the latter did not: among many images some
of others get a logit as high as a copy's (docs/subtask1.md).

It learns from the reference, real images of known patients that were not used: pack with --reference_dir and --groups. No label is
read but those of the threshold, so that the AUC has an exact p, and one network does for all folds. The weights come from the hub,
for which `--config.member.backbone.weights=` may name a file; empty, they are drawn from the seed. `:small` behind the file is a
small network without any.

    python -m fingerprint_jax.main --config=configs/subtask1/reidentification.py --config.data_dir=$HOME/data --workdir=runs/r
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Label-free scores; the folds are those of the threshold."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 5000, 1000, 1000
    m.data.streams = ConfigDict({"reference": 64})  # two of each patient
    m.data.cache, m.data.balanced = "device", False
    m.data.normalize = "imagenet"
    m.backbone.name, m.backbone.weights = "resnet50", "hf://timm/resnet50.tv_in1k"
    m.objective = ConfigDict(
        {
            "name": "reidentification",
            "width": 128,  # features of either branch
            "contrastive_weight": 1.0,  # of the contrastive loss, beside the cross-entropy
            "margin": 1.0,  # of the contrastive loss, a distance of embeddings of unit length
            "readout": "distance",  # distance: minus that of the embeddings of retrieval | probability: the logit of verification
        }
    )
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated"), "reference": ("reference",)})
    if variant == "small":
        m.num_steps, m.eval_every, m.checkpoint_every = 1000, 500, 500
        m.data.normalize = "symmetric"
        m.backbone.name, m.backbone.weights = "mlp", ""
        m.optimizer.learning_rate = 1e-3
    return base.finish(base.cross_fitted(m), variant, own=("small",))
