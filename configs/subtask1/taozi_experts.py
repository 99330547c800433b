"""taozi's mixture of experts: momentum contrast as in subtask1/taozi_moco, of three backbones behind a gate and attention.

Published: run 1874, no figure. System: resnet50, efficientnet_b0 and vit_base_patch16, L2-normalised features concatenated, a gate
6144-512-3 with softmax, attention with 8 heads over the experts, the backbones at a tenth of the learning rate; candidate
similarity 0.65. How gate and attention meet was not published; what else was not, and how the threshold is found (`:published`:
their 0.63), is said in subtask1/taozi_moco.

The three backbones see the same images, normalised for the first two. Their weights come from the hub, for which
`--config.member.backbone.weights=` may name three files joined by +; empty, they are drawn from the seed.

    python -m fingerprint_jax.main --config=configs/subtask1/taozi_experts.py --config.data_dir=$HOME/data --workdir=runs/m
"""

from configs.subtask1 import taozi_moco
from fingerprint_jax import Config

WEIGHTS = ("resnet50.tv_in1k", "efficientnet_b0.ra_in1k", "vit_base_patch16_224.augreg_in21k_ft_in1k")


def get_config(variant: str = "") -> Config:
    """The folds are those of the threshold, and of the real images trained on."""
    m = taozi_moco.member()
    m.backbone.name = "resnet50+efficientnet_b0+vit_base_patch16"  # several, joined by +
    m.backbone.weights = "+".join(f"hf://timm/{name}" for name in WEIGHTS)
    m.optimizer.rates = (("^backbone/", 0.1),)
    m.objective.name, m.objective.threshold = "taozi_experts", 0.65
    m.objective.gate = 512  # hidden units of the gate
    m.objective.heads = 8  # of the attention over the experts
    return taozi_moco.finish(m, variant, 0.63)
