"""Rectified flow: the network learns the velocity that carries noise to images along straight lines; following it makes images.

x_t = (1 - t) z + t x for an image x and normal noise z has the velocity x - z; the network, which sees x_t and t, is fitted
to it by the mean squared error (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003). What it knows better than
other images it may have been trained on: minus its error is a score of membership of whoever holds the generator itself.

With `objective.latents` images are the latent maps of an autoencoder, that of the config's `pretrain` (Rombach et al. 2022, arXiv
2112.10752): it is trained first and stays as it is, so that large images cost as little as small ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones import unet
from fingerprint_jax.objectives import autoencoder

Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # x [N,H,W,C], a time -> [N,H,W,C]


def euler(velocity: Velocity, x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
    """One step of Euler's method from time t on; an error of the order of dt at the end."""
    return x + dt * velocity(x, t)


def heun(velocity: Velocity, x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
    """One step of Heun's method, which asks for the velocity twice; an error of the order of dt^2 at the end."""
    first = velocity(x, t)
    return x + dt / 2 * (first + velocity(x + dt * first, t + dt))


FROZEN = "codec/*"  # the parameters of the autoencoder
SOLVERS = {"heun": heun, "euler": euler}


class OfLatents(unet.Conditioned):
    """The network of the velocity of latents, and the autoencoder `codec` that they are of, which is not trained here."""

    def __init__(self, codec: autoencoder.MapNet, *parts: Any) -> None:
        super().__init__(*parts)
        self.codec = codec


class Objective(objectives.Generative):
    """The mean squared error of the velocity, at times whose logit is normal (Esser et al. 2024, arXiv 2403.03206).

    Images are -1..1 (`data.normalize='symmetric'`), of one stream. With `objective.conditional` the network sees the label too, but
    for a share `objective.label_dropout` of the images, so that it can also do without. The score of an image is minus its error,
    without its label, at each of the `objective.times`, with noise that is the same for all images.
    """

    steps, solvers = 25, tuple(SOLVERS)

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        if not config.objective.times:
            raise ValueError("objective.times=(): use at least one")
        self._latents = bool(config.objective.get("latents"))
        self._shape = image_shape
        if self._latents:
            of = config.get("pretrain", {})
            if not of or of.objective.name != "autoencoder" or not of.objective.get("latent_map"):
                raise ValueError("objective.latents=True: pretrain must be an autoencoder with objective.latent_map")
            if not any(pattern == FROZEN and not factor for pattern, factor in config.optimizer.rates):
                raise ValueError(
                    f"objective.latents=True: the autoencoder stays as it is, give optimizer.rates=(({FROZEN!r}, 0.0),)"
                )
            self._shape = (*autoencoder.map_shape(of, image_shape)[:2], of.objective.latent_map)

    @staticmethod
    def smoke(options: Config) -> None:
        """One time."""
        options.times = options.times[:1]

    def build(self, rngs: nnx.Rngs) -> unet.Conditioned:
        """The network."""
        backbone = backbones.from_config(self.config.backbone, self._shape, rngs)
        if not isinstance(backbone, unet.Backbone):
            raise ValueError(f"backbone.name={self.config.backbone.name!r} makes no map of the size of an image: use unet_small")
        classes = self.num_classes if self.config.objective.conditional else 0
        parts = backbone, self._shape[2], classes, rngs, self.config.backbone.dtype
        if not self._latents:
            return unet.Conditioned(*parts)
        codec = autoencoder.build(self.config.pretrain, self.image_shape, rngs)
        assert isinstance(codec, autoencoder.MapNet)
        return OfLatents(codec, *parts)

    def begun(self, known: dict[str, Any]) -> dict[str, Any]:
        """The arrays of an autoencoder are those of its codec; another generator of latents has one, too."""
        if not self._latents or any(name.startswith("codec/") for name in known):
            return known
        return {f"codec/{name}": value for name, value in known.items()}

    def encoded(self, net: Any, images: jax.Array) -> jax.Array:
        """What it makes of images [N,H,W,C]: themselves, or their latents."""
        return jax.lax.stop_gradient(net.codec.encode(images)) if self._latents else images

    def images(self, net: Any, x: jax.Array) -> jax.Array:
        """The images of what it has made."""
        return net.codec.decode(x) if self._latents else x

    def loss(self, net: unet.Conditioned, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean error over the images, each at a time and with noise of its own."""
        options, stream = self.config.objective, self.only(batch)
        images, labels = self.encoded(net, stream["image"]), stream["label"]
        time_key, noise_key, label_key = jax.random.split(key, 3)
        deviations = jax.random.normal(time_key, (len(images),))
        time = jax.nn.sigmoid(options.time_mean + options.time_deviation * deviations)
        if options.conditional:
            labels = jnp.where(jax.random.bernoulli(label_key, options.label_dropout, labels.shape), -1, labels)
        z = jax.random.normal(noise_key, images.shape)
        return errors(net, images, z, time, labels, train=True).mean(), {}

    def outputs(self, net: unet.Conditioned, images: jax.Array) -> dict[str, jax.Array]:
        """`error` [N,T] at each of `objective.times`."""
        times, count = jnp.array(self.config.objective.times, jnp.float32), len(images)
        images = self.encoded(net, images)
        z = jax.random.normal(jax.random.key(self.config.objective.noise_seed), (len(times), *self._shape))

        def each(x: jax.Array) -> jax.Array:
            """[N or 1, T or 1, ..] -> [N * T, ..]: what is of one image stays together, and on its device."""
            return jnp.broadcast_to(x, (count, len(times), *x.shape[2:])).reshape(-1, *x.shape[2:])

        found = errors(net, each(images[:, None]), each(z[None]), each(times[None]), jnp.full(count * len(times), -1))
        return {"error": found.reshape(count, -1)}

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """That of an image, or of its latent."""
        return self._shape

    def advance(
        self, net: unet.Conditioned, x: jax.Array, t: jax.Array, dt: jax.Array, labels: jax.Array, solver: str
    ) -> jax.Array:
        """One step along the velocity."""

        def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
            return net(x, jnp.full(len(x), t), labels, train=False)

        return SOLVERS[solver](velocity, x, t, dt)

    def known(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Minus the mean error."""
        return -outputs["error"].mean(axis=1)


def errors(
    net: Callable[..., jax.Array], images: jax.Array, z: jax.Array, time: jax.Array, labels: jax.Array, *, train: bool = False
) -> jax.Array:
    """Mean squared error of the velocity of each image.

    Args:
        net: (x_t, t, labels, train=) -> velocity.
        images: [N,H,W,C] in -1..1.
        z: noise [N,H,W,C].
        time: [N] in 0..1.
        labels: [N], -1 for none.
        train: whether the network is trained.

    Returns:
        [N].
    """
    t = time[:, None, None, None]
    found = net((1 - t) * z + t * images, time, labels, train=train)
    return jnp.square(found - (images - z)).mean(axis=(1, 2, 3))
