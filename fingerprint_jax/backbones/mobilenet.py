"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), as timm and torchvision build it.

EfficientNet is made of its blocks, so that the net is EfficientNet's with other stages, ReLU6 and no squeeze-and-excitation.
"""

from fingerprint_jax.backbones import efficientnet

Backbone = efficientnet.Backbone
TIMM = efficientnet.TIMM

STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (3, 2, 6, 32, 3),
    (3, 2, 6, 64, 4),
    (3, 1, 6, 96, 3),
    (3, 2, 6, 160, 3),
    (3, 1, 6, 320, 1),
)
TINY = ((3, 1, 1, 8, 1), (3, 2, 4, 12, 2))
_relu6 = {"act": "relu6", "squeeze": False, "dropout": 0.2}

VARIANTS = {
    "mobilenet_v2": {"stages": STAGES, "stem_width": 32, "num_features": 1280} | _relu6,
    "mobilenet_v2_tiny": {"stages": TINY, "stem_width": 8, "num_features": 24} | _relu6,
}
