"""Ours: a generator of images by adversarial training, whose training images are known; as flow.py it answers no question.

System: StyleGAN2's networks, made smaller, with R1 and adaptive augmentation (objectives/gan.py), and averaged weights. The size is
for images of 32 pixels on a CPU; `stylegan2_base` is meant for 64 pixels, `stylegan2_large` for 256 on a GPU.

It learns any set of images (`pack --task=images`). With `:members` after the file it learns the used images of subtask 1 and scores
the real ones by the logit of its own discriminator.

    python -m fingerprint_jax.main --config=configs/generators/gan.py --config.data_dir=$HOME/data --workdir=runs/gan
    python -m fingerprint_jax.generate --workdir=runs/gan --count=5000 --output_dir=generated
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Every image is trained on; none is held out."""
    c = base.generator(variant)
    c.num_steps, c.eval_every, c.checkpoint_every = 10_000, 1000, 1000
    c.backbone.name = "stylegan2_small"
    # Of Karras et al. 2020 but for the rate: theirs, 0.002, is of weights that each layer scales down, and diverges here.
    c.optimizer.update(learning_rate=3e-4, beta1=0.0, beta2=0.99, ema_decay=0.999)
    c.objective = ConfigDict(
        {
            "name": "gan",
            "noise": 128,  # numbers of noise an image
            "r1": 1.0,  # weight of the gradient penalty, of half its square
            "conditional": False,  # both networks see the label of an image too
            "ada_target": 0.6,  # of the mean sign of the logits of real images, which the augmentation is adapted to; 0: none
            "ada_images": 100_000,  # in which its probability moves from 0 to 1
            "augment": {"flip": 0.5, "shift": 4, "brightness": 0.2, "contrast": 0.3},  # fields of augment
        }
    )
    return base.finish(c, variant, ("members",))
