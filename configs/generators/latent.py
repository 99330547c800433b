"""Ours: a generator of large images: rectified flow in the latents of an autoencoder, both trained on the same images.

System: an autoencoder with a latent map of an eighth of the side and a divergence term (objectives/autoencoder.py), then a U-Net
that learns the velocity of its latents (objectives/flow_matching.py). It is meant for 256 pixels: the U-Net sees maps of 32 x 32.

    python -m fingerprint_jax.main --config=configs/generators/latent.py --config.data_dir=$HOME/data --workdir=runs/latent
    python -m fingerprint_jax.generate --workdir=runs/latent --count=5000 --output_dir=generated

With `:members` after the file both learn the used images of subtask 1, and the real ones are scored by the loss.
"""

from ml_collections import ConfigDict

from configs import base
from configs.generators import flow
from fingerprint_jax import Config


def get_config(variant: str = "") -> Config:
    """Every image is trained on; none is held out."""
    of = variant if variant == "members" else ""
    c, p = flow.get_config(of), base.generator(of)
    c.num_steps, c.eval_every, c.checkpoint_every = 20_000, 1000, 1000
    c.backbone.name = "unet_base"
    c.objective.latents = True
    c.optimizer.rates = (("codec/*", 0.0),)
    p.num_steps, p.eval_every, p.checkpoint_every = 10_000, 1000, 1000
    p.backbone.name = "strided_resnet_map"
    p.objective = ConfigDict(
        {
            "name": "autoencoder",
            "error": "mse",  # mse | mae
            "latent_map": 4,  # channels of the latent map
            "kl": 1e-4,  # weight of the divergence of the latents from the normal distribution, a mean over the map
            "widths": (256, 128, 64, 32),  # of the decoder: the first map's, then of each step, which doubles it
        }
    )
    p.optimizer.update(learning_rate=5e-4, schedule="cosine", warmup_steps=100, clip_norm=1.0)
    c.pretrain = p
    return base.finish(c, variant, ("members",))
