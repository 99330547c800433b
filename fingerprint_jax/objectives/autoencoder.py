"""Autoencoder: the network learns to give images back; what it gives back well is like the images it was trained on.

Neural Nexus (ImageCLEFmedical 2025, subtask 1) train it on the synthetic images, and take the error of a real one.

With a map as its latent, and a variational one (Kingma & Welling 2014, arXiv 1312.6114), it is the first stage of a generator of
large images, whose second one makes latents (Rombach et al. 2022, arXiv 2112.10752; objectives/flow_matching.py).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones.decoder import Decoder
from fingerprint_jax.backbones.layers import Conv, Linear
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


class MapNet(nnx.Module):
    """Backbone, a convolution to mean and log of the variance of a latent map, decoder: images [N,H,W,C] <-> [N,h,w,L].

    Args:
        backbone: its last map is h x w.
        features: channels of that map.
        latent_map: L.
        rngs: `params` initialises.
        options: of the decoder.

    Raises ValueError where the decoder does not begin at h x w.
    """

    DECAY, EPSILON = 0.9, 1e-6

    def __init__(self, backbone: backbones.Backbone, features: int, latent_map: int, rngs: nnx.Rngs, **options: Any) -> None:
        self.backbone = backbone
        self.moments = Conv(features, 2 * latent_map, 1, bias=True, rngs=rngs)
        self.decoder = Decoder(latent_map, of_map=True, rngs=rngs, **options)
        # Of the latents in training, that whoever makes some can make those of mean 0 and deviation 1.
        self.mean, self.variance = nnx.BatchStat(jnp.zeros(latent_map)), nnx.BatchStat(jnp.ones(latent_map))

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """In training: the images that come back from latents drawn by standard normal noise [N,h,w,L], and what these cost [N].

        The cost is the divergence of the latents' distribution from the standard normal one, a mean over the map.
        """
        mean, log_variance = self._moments(images, train=True)
        latent = mean + jnp.exp(log_variance / 2) * noise
        for running, new in ((self.mean, latent.mean((0, 1, 2))), (self.variance, latent.var((0, 1, 2)))):
            running.set_value(self.DECAY * running[...] + (1 - self.DECAY) * jax.lax.stop_gradient(new))
        cost = (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean(axis=(1, 2, 3)) / 2
        return self.decoder(latent, train=True), cost

    def encode(self, images: jax.Array) -> jax.Array:
        """The mean latents, of mean 0 and deviation 1 over the images that it was trained on: [N,H,W,C] -> [N,h,w,L]."""
        centre, deviation = self._spread
        return (self._moments(images, train=False)[0] - centre) / deviation

    def decode(self, latents: jax.Array) -> jax.Array:
        """The images of such latents: [N,h,w,L] -> [N,H,W,C]."""
        centre, deviation = self._spread
        return self.decoder(latents * deviation + centre, train=False)

    @property
    def _spread(self) -> tuple[jax.Array, jax.Array]:
        """Mean and deviation of the latents: [1,1,1,L] each."""
        return self.mean[...][None, None, None], jnp.sqrt(self.variance[...] + self.EPSILON)[None, None, None]

    def _moments(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        mean, log_variance = jnp.split(self.moments(self.backbone.maps(images, train=train)), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)  # what its exponential can be in float32


def build(config: Config, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> Net | MapNet:
    """The network of a config, of its `backbone`, `objective` and `data.normalize`."""
    options, backbone = config.objective, backbones.from_config(config.backbone, image_shape, rngs)
    decoder: dict[str, Any] = {"widths": options.widths, "channels": image_shape[2], "image_size": image_shape[:2]}
    decoder |= {"squash": config.data.normalize == "symmetric", "dtype": config.backbone.dtype}
    if not options.get("latent_map"):
        return Net(backbone, options.latent, rngs, **decoder)
    height, width, features = map_shape(config, image_shape)
    net = MapNet(backbone, features, options.latent_map, rngs, **decoder)
    if net.decoder.map_size != (height, width):
        steps, size = len(options.widths) - 1, " x ".join(map(str, net.decoder.map_size))
        raise ValueError(
            f"objective.widths={tuple(options.widths)}: {steps} steps of the decoder begin at {size}, the backbone's last map is"
            f" {height} x {width}: use a width more than it halves the image"
        )
    return net


def map_shape(config: Config, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Height, width and channels of the backbone's last map."""

    def last() -> jax.Array:
        backbone = backbones.from_config(config.backbone, image_shape, nnx.Rngs(0))
        return backbone.maps(jnp.zeros((1, *image_shape)), train=False)

    return jax.eval_shape(last).shape[1:]


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

    def build(self, rngs: nnx.Rngs) -> Net | MapNet:
        """The network."""
        return build(self.config, self.image_shape, rngs)

    def loss(self, net: Any, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean error over the images of all streams; with a latent map `objective.kl` times what it costs is added."""
        with self.joined(batch) as streams:
            images = streams.join([stream["image"] for stream in batch.values()])
            if not isinstance(net, MapNet):
                _, reconstruction = net(images, train=True, rngs=nnx.Rngs(dropout=key))
                return self._error(images, reconstruction).mean(), {}
            shape = (*net.decoder.map_size, self.config.objective.latent_map)
            keys = jax.random.split(key, len(batch))
            noise = [jax.random.normal(k, (len(s["image"]), *shape)) for k, s in zip(keys, batch.values(), strict=True)]
            reconstruction, cost = net(images, streams.join(noise))
        error, cost = self._error(images, reconstruction).mean(), cost.mean()
        return error + self.config.objective.kl * cost, {"error": error, "kl": cost}

    def _error(self, images: jax.Array, reconstruction: jax.Array) -> jax.Array:
        return ERRORS[self.config.objective.error](images - reconstruction).mean(axis=(1, 2, 3))

    def outputs(self, net: Any, images: jax.Array) -> dict[str, jax.Array]:
        """`embedding` [N,L], the latent, and `error` [N]."""
        if isinstance(net, MapNet):
            latent = net.encode(images)
            latent, reconstruction = latent.reshape(len(images), -1), net.decode(latent)
        else:
            latent, reconstruction = net(images, train=False)
        return {"embedding": latent, "error": self._error(images, reconstruction)}

    def scores(self, net: Any, query: dict, gallery: dict) -> np.ndarray:
        """Minus the error [N,1]."""
        return -query["error"][:, None]
