"""Ours: a generator of images by rectified flow, whose training images are known. It answers no question: others are asked of it.

System: a U-Net that learns the velocity from noise to images (objectives/flow_matching.py), with averaged weights. The size is for
images of 32 pixels on a CPU; `unet_base` is meant for 64 pixels, `unet_large` for 256 on a GPU.

It learns any set of images (`pack --task=images`). With `:members` after the file it learns the used images of subtask 1 and scores
the real ones by its own loss, what an attack can know at most about it.

    python -m fingerprint_jax.main --config=configs/generators/flow.py --config.data_dir=$HOME/data --workdir=runs/flow
    python -m fingerprint_jax.generate --workdir=runs/flow --count=5000 --output_dir=generated
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Every image is trained on; none is held out."""
    c = base.generator(variant)
    c.num_steps, c.eval_every, c.checkpoint_every = 5000, 500, 500
    c.backbone.name = "unet_small"
    c.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0, ema_decay=0.999)
    c.objective = ConfigDict(
        {
            "name": "flow_matching",
            "time_mean": 0.0,  # of the logit of the time, normal in training: 0 is noise, 1 the image ...
            "time_deviation": 1.0,  # ... and its deviation
            "conditional": False,  # the network sees the label of an image too ...
            "label_dropout": 0.1,  # ... but for this share of the images
            "times": (0.1, 0.3, 0.5, 0.7, 0.9),  # at which the error of an image is taken for its score
            "noise_seed": 0,  # of the noise then, the same for all images
        }
    )
    return base.finish(c, variant, ("members",))
