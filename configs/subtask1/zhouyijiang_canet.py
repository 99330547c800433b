"""zhouyijiang1: similar pairs first, then the hybrid contrastive attention network (CANet) on them, cross-fitted.

Published: run 1873 ("Vision Transformer") kappa 0.136; 1801-1804, undescribed, 0.128 to 0.136. System: (1) the 50 most similar real
images of each synthetic one by L2 and by cosine, spectral clustering leaves out the outliers; (2) a ViT-Base, its layers 6, 12 and
18 fused by a gate with dynamic weights into 1536 features, 8-head attention, cross-entropy + a supervised contrastive loss, random
masking and Gabor noise, a custom positional encoding, adaptive temperature, sigmoid; AdamW, cosine decay. An image is "used" where
its attention-weighted similarity is high and the confidence exceeds 0.6.

ViT-Base has 12 layers, so that theirs cannot be: here 4, 8 and 12. Not published: the embedding of the first stage (here the same
ViT, not trained), how its clusters are made and which stay (methods/pairs.py), labels and formulas of the second
(objectives/canet.py), the positional encoding (here the ViT's own, learned for each place of the grid), the threshold of the
similarity (here learned on the other folds, or `--config.decision.params.value=`), weights of the losses, masking and noise,
learning rate, batch and steps. A score is the mean over the 50 synthetic images nearest to it.

Without the first stage, of pairs at random: --config.member.pairs.candidates=0. The weights come from the hub, for which
`--config.member.backbone.weights=` and `--config.member.pairs.member.backbone.weights=` may name a file; empty, they are drawn
from the seed.

    python -m fingerprint_jax.main --config=configs/subtask1/zhouyijiang_canet.py --config.data_dir=$HOME/data --workdir=runs/s
"""

from ml_collections import ConfigDict, config_dict

from configs import base
from fingerprint_jax import Config

BACKBONE, WEIGHTS = "vit_base_patch16", "hf://timm/vit_base_patch16_224.augreg_in21k_ft_in1k"


def member() -> Config:
    """Both stages of a fold."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 1000, 250, 250
    m.data.streams = ConfigDict({"real": 32, "generated": 32})
    m.data.cache = "device"
    m.data.normalize = "symmetric"
    m.augment.update(mask=0.25, gabor=0.1)
    m.backbone.name, m.backbone.weights = BACKBONE, WEIGHTS
    m.objective = ConfigDict(
        {
            "name": "canet",
            "layers": (4, 8, 12),  # of the backbone, from 1, whose tokens are fused
            "features": 1536,  # of a token
            "heads": 8,  # of the attention
            "contrast": 1.0,  # weight of the supervised contrastive loss, beside the cross-entropy
            "temperature": 0.1,  # of the supervised contrastive loss; that of the logits is learned
            "candidates": 50,  # nearest synthetic images that a query is compared with; 0: all
        }
    )
    m.gallery = ConfigDict({"generated": ("train_generated", "test_generated")})
    m.optimizer.update(learning_rate=1e-4, schedule="cosine", warmup_steps=50, weight_decay=0.05)
    m.pairs = base.pairs(base.frozen("subtask1", BACKBONE, WEIGHTS, "symmetric"))
    return m


def get_config(variant: str = "") -> Config:
    """Five fold children; every labelled image is scored by the child that did not see it."""
    c = base.cross_fitted(member())
    c.decision.name = "both_thresholds"
    c.decision.params = ConfigDict({"confidence": 0.6, "value": config_dict.placeholder(float)})  # of the similarity; None: learned
    return base.finish(c, variant)
