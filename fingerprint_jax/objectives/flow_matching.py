"""Rectified flow: the network learns the velocity that carries noise to images along straight lines; following it makes images.

x_t = (1 - t) z + t x for an image x and normal noise z has the velocity x - z; the network, which sees x_t and t, is fitted
to it by the mean squared error (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003). What it knows better than
other images it may have been trained on: minus its error is a score of membership of whoever holds the generator itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones import unet

Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # x [N,H,W,C], a time -> [N,H,W,C]


def euler(velocity: Velocity, x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
    """One step of Euler's method from time t on; an error of the order of dt at the end."""
    return x + dt * velocity(x, t)


def heun(velocity: Velocity, x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
    """One step of Heun's method, which asks for the velocity twice; an error of the order of dt^2 at the end."""
    first = velocity(x, t)
    return x + dt / 2 * (first + velocity(x + dt * first, t + dt))


SOLVERS = {"euler": euler, "heun": heun}


def noise(key: jax.Array, numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of images by number, each by its own key: [N] -> [N, *shape]."""
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), shape))(numbers)


def sample(step: Callable[[jax.Array, np.float32, np.float32], jax.Array], x: jax.Array, steps: int) -> jax.Array:
    """Noise carried from time 0 to 1 in equal steps: [N,H,W,C] -> [N,H,W,C].

    A loop in Python around a compiled step: XLA:CPU is slow at convolutions in a loop of its own, and devices work ahead of it.

    Args:
        step: (x, t, dt) -> x at t + dt, such as one of SOLVERS with its velocity.
        x: standard normal noise.
        steps: how many.
    """
    for i in range(steps):
        x = step(x, np.float32(i / steps), np.float32(1 / steps))
    return x


class Objective(objectives.Objective):
    """The mean squared error of the velocity, at times whose logit is normal (Esser et al. 2024, arXiv 2403.03206).

    Images are -1..1 (`data.normalize='symmetric'`), of one stream. With `objective.conditional` the network sees the label too, but
    for a share `objective.label_dropout` of the images, so that it can also do without. The score of an image is minus its error,
    without its label, at each of the `objective.times`, with noise that is the same for all images.
    """

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        if config.data.normalize != "symmetric":
            raise ValueError(f"data.normalize={config.data.normalize!r}: the images of flow_matching are -1..1, use symmetric")
        if not config.objective.times:
            raise ValueError("objective.times=(): use at least one")

    @staticmethod
    def smoke(options: Config) -> None:
        """One time."""
        options.times = options.times[:1]

    def build(self, rngs: nnx.Rngs) -> unet.Conditioned:
        """The network."""
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        if not isinstance(backbone, unet.Backbone):
            raise ValueError(f"backbone.name={self.config.backbone.name!r} makes no map of the size of an image: use unet_small")
        classes = self.num_classes if self.config.objective.conditional else 0
        return unet.Conditioned(backbone, self.image_shape[2], classes, rngs, self.config.backbone.dtype)

    def loss(self, net: unet.Conditioned, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean error over the images, each at a time and with noise of its own."""
        if len(batch) != 1:
            raise ValueError(f"data.streams={sorted(batch)}: flow_matching learns one set of images, name one stream")
        (stream,) = batch.values()
        options, (images, labels) = self.config.objective, (stream["image"], stream["label"])
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
        z = jax.random.normal(jax.random.key(self.config.objective.noise_seed), (len(times), *self.image_shape))

        def each(x: jax.Array) -> jax.Array:
            """[N or 1, T or 1, ..] -> [N * T, ..]: what is of one image stays together, and on its device."""
            return jnp.broadcast_to(x, (count, len(times), *x.shape[2:])).reshape(-1, *x.shape[2:])

        found = errors(net, each(images[:, None]), each(z[None]), each(times[None]), jnp.full(count * len(times), -1))
        return {"error": found.reshape(count, -1)}

    def scores(self, net: unet.Conditioned, query: dict, gallery: dict) -> np.ndarray:
        """Minus the mean error [N,1]; raises ValueError for a task that does not ask for membership."""
        objectives.membership_only(self.config)
        return -query["error"].mean(axis=1, keepdims=True)


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
