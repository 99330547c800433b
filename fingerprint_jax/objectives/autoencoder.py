"""Autoencoder: the network learns to give images back; what it gives back well is like the images it was trained on.

Neural Nexus (ImageCLEFmedical 2025, subtask 1) train it on the synthetic images, and take the error of a real one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones.decoder import Decoder
from fingerprint_jax.backbones.layers import Linear
from fingerprint_jax.runtime import names

ERRORS = {"mse": jnp.square, "mae": jnp.abs}


class Net(nnx.Module):
    """Backbone, a linear layer to the latent unless there is none, decoder: images [N,H,W,C] -> latent [N,L], images."""

    def __init__(self, backbone: backbones.Backbone, latent: int, rngs: nnx.Rngs, **options: Any) -> None:
        self.backbone = backbone
        self.latent = Linear(backbone.num_features, latent, rngs=rngs) if latent else None
        self.decoder = Decoder(latent or backbone.num_features, rngs=rngs, **options)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, jax.Array]:
        """Latent and reconstruction."""
        features = self.backbone(images, train=train, rngs=rngs)
        latent = features if self.latent is None else self.latent(features)
        return latent, self.decoder(latent, train=train)


class Objective(objectives.Objective):
    """The error of the normalised images, through tanh where those are -1..1 (`data.normalize='symmetric'`).

    The score is minus the error, whatever the labels say: the autoencoder of the synthetic images knows the used ones better.
    """

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        options = config.objective
        if self.task.attribution:
            raise ValueError(f"objective.name='autoencoder' gives one score, membership; {config.task} asks which of five sets")
        names.check("objective.error", options.error, ERRORS)
        if not options.widths:
            raise ValueError("objective.widths=(): use at least one width")

    @staticmethod
    def smoke(options: Config) -> None:
        """Narrow layers."""
        options.widths = tuple(min(width, 8) for width in options.widths)

    def build(self, rngs: nnx.Rngs) -> Net:
        """The network."""
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        return Net(
            backbone,
            self.config.objective.latent,
            rngs,
            widths=self.config.objective.widths,
            channels=self.image_shape[2],
            image_size=self.image_shape[:2],
            squash=self.config.data.normalize == "symmetric",
            dtype=self.config.backbone.dtype,
        )

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean error over the images of all streams."""
        with self.joined(batch) as streams:
            images = streams.join([stream["image"] for stream in batch.values()])
            _, reconstruction = net(images, train=True, rngs=nnx.Rngs(dropout=key))
        return self._error(images, reconstruction).mean(), {}

    def _error(self, images: jax.Array, reconstruction: jax.Array) -> jax.Array:
        return ERRORS[self.config.objective.error](images - reconstruction).mean(axis=(1, 2, 3))

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`embedding` [N,L], the latent, and `error` [N]."""
        latent, reconstruction = net(images, train=False)
        return {"embedding": latent, "error": self._error(images, reconstruction)}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """Minus the error [N,1]."""
        return -query["error"][:, None]
