"""Adversarial training: a generator makes images out of noise, a discriminator learns to tell these from real ones.

Non-saturating logistic losses (Goodfellow et al. 2014, arXiv 1406.2661), the gradient penalty R1 (Mescheder et al. 2018, arXiv
1801.04406) and adaptive augmentation (Karras et al. 2020, arXiv 2006.06676). A discriminator that has learned its training images
by heart calls them more real than others: its logit is a score of membership of whoever holds it (Hayes et al. 2019, arXiv
1705.07663).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones import initializers, stylegan2
from fingerprint_jax.backbones.layers import Linear, stopped
from fingerprint_jax.data import augment


class Net(nnx.Module):
    """The discriminator, which is the backbone and its last two layers, and the generator.

    Args:
        backbone: of the discriminator.
        image_shape: (H, W, C).
        latent: L, numbers of noise an image.
        classes: how many there are; 0: neither network sees any.
        rngs: `params` initialises.
        dtype: of the arithmetic.
    """

    def __init__(
        self,
        backbone: stylegan2.Backbone,
        image_shape: tuple[int, int, int],
        latent: int,
        classes: int,
        rngs: nnx.Rngs,
        dtype: str,
    ) -> None:
        width = backbone.num_features
        places = backbone.places(image_shape[:2])
        self.backbone = backbone
        self.hidden, self.head = Linear(places * width, width, rngs=rngs), Linear(width, 1, rngs=rngs)
        self.generator = stylegan2.Generator(backbone.widths, image_shape, latent, rngs, dtype)

        def rows(width: int, deviation: float) -> nnx.Param | None:
            """One a class."""
            return nnx.Param(initializers.normal(deviation)(rngs.params(), (classes, width), jnp.float32)) if classes else None

        # What a class adds: to the logit the product of its row with the features, to the noise its row.
        self.classes, self.styles = rows(width, 0.02), rows(latent, 1.0)
        self.strength = nnx.Variable(jnp.zeros(()))  # the probability that an image is augmented

    def judged(self, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Logits of being real: [N,H,W,C], [N] -> float32 [N]; a label of -1 is no class.

        With classes they are those of a projection discriminator (Miyato & Koyama 2018, arXiv 1802.05637).
        """
        maps = self.backbone.maps(images, train=True)
        features = stylegan2.rectified(self.hidden(maps.reshape(len(maps), -1)))
        logits = self.head(features)[:, 0]
        if self.classes is not None:
            logits += (features * _rows(self.classes[...], labels)).sum(axis=1)
        return logits

    def made(self, noise: jax.Array, labels: jax.Array) -> jax.Array:
        """Images out of normal noise: [N,L], [N] -> float32 [N,H,W,C]; a label of -1 is no class."""
        return self.generator(noise if self.styles is None else noise + _rows(self.styles[...], labels))


def _rows(table: jax.Array, labels: jax.Array) -> jax.Array:
    """A row of a table each, zeros for -1: [K,D], [N] -> [N,D]; as a product: the gradient of a look-up is a scatter."""
    return jnp.matmul(jax.nn.one_hot(labels, len(table)), table, precision=jax.lax.Precision.HIGHEST)


class Objective(objectives.Generative):
    """One summed loss of both players, updated together: what either gives the other passes no gradient to its weights.

    Images are -1..1 (`data.normalize='symmetric'`), of one stream. R1 is of every step. An image of either kind is augmented, by
    all of `objective.augment` at once, with a probability that grows while more than `objective.ada_target` of the logits of real
    images are positive, and falls while less are; the paper draws for each transformation apart. The score of an image is the
    logit, without its label.
    """

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        unknown = set(config.objective.augment) - set(config.augment)
        if unknown:
            raise ValueError(
                f"objective.augment.{min(unknown)} is unknown: use fields of augment, {', '.join(sorted(config.augment))}"
            )

    @staticmethod
    def smoke(options: Config) -> None:
        """Little noise."""
        options.noise = min(options.noise, 8)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.config.objective.noise,)

    def build(self, rngs: nnx.Rngs) -> Net:
        """Both networks."""
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        if not isinstance(backbone, stylegan2.Backbone):
            raise ValueError(f"backbone.name={self.config.backbone.name!r} is no discriminator: use stylegan2_small")
        classes = self.num_classes if self.config.objective.conditional else 0
        return Net(backbone, self.image_shape, self.config.objective.noise, classes, rngs, self.config.backbone.dtype)

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Those of generator and discriminator, and the penalty; `strength` is the probability of the augmentation."""
        options, stream = self.config.objective, self.only(batch)
        real, labels = stream["image"], stream["label"]
        noise_key, fake_key, real_key = jax.random.split(key, 3)
        strength, options_of = net.strength[...], options.augment.to_dict()

        def shown(images: jax.Array, key: jax.Array) -> jax.Array:
            return augmented(images, key, strength, options_of) if options.ada_target else images

        fake = net.made(jax.random.normal(noise_key, (len(real), options.noise)), labels)
        still: Any = stopped(net)
        for_generator = still.judged(shown(fake, fake_key), labels)
        of_fake = net.judged(shown(jax.lax.stop_gradient(fake), fake_key), labels)

        def of(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = net.judged(shown(images, real_key), labels)
            return logits.sum(), logits

        slopes, of_real = jax.grad(of, has_aux=True)(real)
        found = {
            "generator": jax.nn.softplus(-for_generator).mean(),
            "discriminator": (jax.nn.softplus(of_fake) + jax.nn.softplus(-of_real)).mean(),
            "penalty": options.r1 / 2 * jnp.square(slopes).sum(axis=(1, 2, 3)).mean(),
        }
        total = found["generator"] + found["discriminator"] + found["penalty"]
        if options.ada_target:
            certain = jnp.sign(jax.lax.stop_gradient(of_real)).mean()
            moved = strength + jnp.sign(certain - options.ada_target) * len(real) / options.ada_images
            net.strength.set_value(jnp.clip(moved, 0, 1))
        return total, found | {"strength": strength}

    def advance(self, net: Net, x: jax.Array, t: jax.Array, dt: jax.Array, labels: jax.Array, solver: str) -> jax.Array:
        """The images of the noise `x`, in one step."""
        return net.made(x, labels)

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`logit` [N]."""
        return {"logit": net.judged(images, jnp.full(len(images), -1))}

    def known(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The logit."""
        return outputs["logit"]


def augmented(images: jax.Array, key: jax.Array, strength: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Each image of [N,H,W,C] with probability `strength` as `augment.augment` makes it with these options, else as it is."""
    coin_key, key = jax.random.split(key)
    chosen = jax.random.bernoulli(coin_key, strength, (len(images), 1, 1, 1))
    return jnp.where(chosen, augment.augment(images, key, **options), images)
