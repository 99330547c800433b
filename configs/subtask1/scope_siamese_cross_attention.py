"""SCOPE's Siamese network with cross-attention on subtask 1, cross-fitted.

Published: run 1160 (ResNet50) kappa -0.032. System: a shared backbone; cross-attention aligns the two feature maps with each other;
the absolute difference and the product of the aligned features go through a perceptron 4096-1024-1; cross-entropy + 0.3 times an
angular loss, margin 0.5; 224 pixels (here those of the packed images), ImageNet normalisation, no augmentation, a weighted sampler
(here each label equally often); Adam. Heads, learning rate, batch, steps, the formula of the angular loss, and how the pairs of an
image become its score were not published: here the mean (or `objective.readout=max`) logit with the 50 nearest synthetic images.

Their other backbones, each with its weights:

    ... --config.member.backbone.name=densenet161 --config.member.backbone.weights=hf://timm/densenet161.tv_in1k
    ... --config.member.backbone.name=efficientnet_b2 --config.member.backbone.weights=hf://timm/efficientnet_b2.ra_in1k
    ... --config.member.backbone.name=vit_base_patch16 --config.member.backbone.weights=hf://timm/vit_base_patch16_224.augreg_in21k_ft_in1k
        --config.member.data.normalize=symmetric

The weights come from the hub, for which `--config.member.backbone.weights=` may name a file; empty, they are drawn from the seed.

    python -m fingerprint_jax.main --config=configs/subtask1/scope_siamese_cross_attention.py --config.data_dir=$HOME/data
        --workdir=runs/s
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Five fold children; every labelled image is scored by the child that did not see it."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 1000, 250, 250
    m.data.streams = ConfigDict({"real": 32, "generated": 32})
    m.data.cache = "device"
    m.data.normalize = "imagenet"
    m.backbone.name, m.backbone.weights = "resnet50", "hf://timm/resnet50.tv_in1k"
    m.objective = ConfigDict(
        {
            "name": "cross_attention",
            "heads": 8,  # of the attention
            "hidden": 1024,  # units between the similarity of a pair and its logit
            "num_pairs": 32,  # pairs a step, half of them positive
            "angular_weight": 0.3,  # of the angular loss, beside the cross-entropy
            "margin": 0.5,  # of the angular loss, in radians
            "candidates": 50,  # nearest synthetic images that a query is compared with; 0: all
            "readout": "mean",  # mean | max logit of the candidates
        }
    )
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    return base.finish(base.cross_fitted(m), variant)
