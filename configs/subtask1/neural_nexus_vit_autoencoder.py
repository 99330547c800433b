r"""Neural Nexus: the reconstruction error of an autoencoder of the synthetic images, with a Vision Transformer.

Published: run 1878 kappa 0.148 (the best of the task). System: ViT-B/16 from scratch behind a 1x1 convolution to three channels,
latent 512. First it classifies an outside chest CT set (batch 64, Adam 1e-4, weight decay 1e-5, the rate times 0.9 every 10 of 100
epochs), then it is the encoder of an autoencoder of the synthetic images (dense to 256 x 8 x 8, five transposed convolutions of
stride 2 with residual blocks, LeakyReLU 0.1, tanh; mean squared error, Adam 1e-4, 10 epochs of 5,000). Its latents were clustered,
by a rule that was not published; here the score is minus the reconstruction error, their continuous one, and the clustering is
subtask1/neural_nexus_spectral.

Not published: widths of the decoder, here halved at each step, and the batch of the second phase, here 32. Published at 224 px,
here at the packed size. Their augmentation also shears by 5 degrees and blurs, which is left out here.

The outside set is packed beside the data as task images, classes as folders; the paper says tuberculosis, the code lung cancer:

    python -m fingerprint_jax.pack --task=images --train_dir=CHEST_CT --data_dir=$HOME/data
    python -m fingerprint_jax.main --config=configs/subtask1/neural_nexus_vit_autoencoder.py --config.data_dir=$HOME/data \
        --workdir=runs/m

Without one: --config.member.pretrain.num_steps=0. It lies elsewhere: --config.member.pretrain.data_dir=DIR.
"""

from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config

ENCODER = {"name": "vit_base_patch16", "project": 3}


def member() -> Config:
    """The autoencoder, label-free, and the classifier it begins with."""
    m = base.gradient("subtask1")
    m.num_steps, m.eval_every, m.checkpoint_every = 1560, 780, 780
    m.data.streams = ConfigDict({"generated": 32})
    m.data.normalize = "symmetric"
    m.backbone.update(ENCODER)
    m.objective = ConfigDict(
        {
            "name": "autoencoder",
            "error": "mse",  # mse | mae
            "latent": 512,  # a linear layer after the backbone; 0: none
            "widths": (256, 128, 64, 32, 16, 8),  # of the decoder: the first map's, then of each step, which doubles it
        }
    )
    p = base.gradient("images")
    p.num_steps, p.eval_every, p.checkpoint_every = 1000, 500, 500  # 100 epochs of some 600 images
    p.data.streams = ConfigDict({"train": 64})
    p.data.normalize = "symmetric"
    p.backbone.update(ENCODER)
    p.augment.update(rotate=10.0, scale=0.05, shift=12, brightness=0.2, contrast=0.2, erase=0.5)
    p.optimizer.weight_decay = 1e-5
    p.optimizer.schedule = "step"
    m.pretrain = p
    return m


def get_config(variant: str = "") -> Config:
    """The folds are those of the threshold."""
    return base.finish(base.cross_fitted(member()), variant)
