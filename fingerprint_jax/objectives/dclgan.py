"""Dual contrastive learning GAN between the synthetic and the real images (Han et al. 2021, arXiv 2104.07689).

Neural Nexus (ImageCLEFmedical 2025, subtask 1) take the overlap of the attention of its two discriminators as the signal. The real
images are those of the split `reference`, which nobody asks about: no row of the target split is read, and no label. Whether the
team took the task's own, used and not used, was not published: the stream `real` in place of `reference` has them. One optimizer
moves everything at once, where the code of DCLGAN moves the discriminators before the generators, and the projections by a third.
"""

from typing import Never

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones import cyclegan_resnet
from fingerprint_jax.backbones.cyclegan_resnet import Discriminator, Generator
from fingerprint_jax.backbones.layers import Linear, stopped
from fingerprint_jax.objectives.parts import losses


class Projection(nnx.Module):
    """Two dense layers for each of the maps of an encoder, which their patches go through: [N,h,w,C] -> [N,P,D]."""

    def __init__(self, widths: list[int], features: int, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.List([Linear(width, features, rngs=rngs) for width in widths])
        self.fc2 = nnx.List([Linear(features, features, rngs=rngs) for _ in widths])

    def __call__(self, maps: list[jax.Array], places: list[jax.Array]) -> list[jax.Array]:
        """The places [P] of each map."""
        patches = [x.reshape(len(x), -1, x.shape[-1])[:, place] for x, place in zip(maps, places, strict=True)]
        return [fc2(nnx.relu(fc1(x))) for fc1, fc2, x in zip(self.fc1, self.fc2, patches, strict=True)]


class Domain(nnx.Module):
    """What belongs to one domain: the generator out of it, the projection of that one's patches, and its discriminator."""

    def __init__(self, generator: Generator, projection: Projection, discriminator: Discriminator) -> None:
        self.generator, self.projection, self.discriminator = generator, projection, discriminator


class Net(nnx.Module):
    """`generated` and `real`."""

    def __init__(self, generated: Domain, real: Domain) -> None:
        self.generated, self.real = generated, real

    @property
    def backbone(self) -> Never:
        """There are two: raises ValueError."""
        raise ValueError("objective.name='dclgan' has two generators, drawn from the seed: no backbone.weights, no layers")


class Objective(objectives.Objective):
    """One summed loss of both players, updated together: what either gives the other passes no gradient to its weights.

    The overlap of two attention maps is the sum of their minima over that of their maxima, 1 where they are equal. The map is the
    mean absolute activation of a discriminator's last features (Zagoruyko & Komodakis 2017, arXiv 1612.03928), its sum 1; neither
    map nor measure was published. The score is the overlap, whatever the labels say: a used image looks alike to both.
    """

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        options, least = config.objective, 2 ** len(config.objective.widths)
        objectives.membership_only(config)
        if not options.widths or min(image_shape[:2]) < least:
            raise ValueError(f"objective.widths={options.widths}: use at least one width, and images of {least} pixels or more")

    @staticmethod
    def smoke(options: Config) -> None:
        """Narrow layers."""
        options.widths = tuple(min(width, 8) for width in options.widths)

    def build(self, rngs: nnx.Rngs) -> Net:
        """The networks of both domains."""
        return Net(*(self._domain(rngs) for _ in range(2)))

    def _domain(self, rngs: nnx.Rngs) -> Domain:
        options, channels = self.config.objective, self.image_shape[2]
        dtype = self.config.backbone.dtype
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        if not isinstance(backbone, cyclegan_resnet.Backbone):
            raise ValueError(f"backbone.name={self.config.backbone.name!r} is no encoder of a generator: use cyclegan_resnet")
        maps = jax.eval_shape(backbone.layers, jnp.zeros((1, *self.image_shape)))
        squash = self.config.data.normalize == "symmetric"
        return Domain(
            Generator(backbone, channels, squash, rngs, dtype),
            Projection([x.shape[-1] for x in maps], options.features, rngs),
            Discriminator(options.widths, channels, rngs, dtype),
        )

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted losses of the generators, and those of the discriminators; every one is the mean of the two directions."""
        options = self.config.objective
        (generated, real), _ = _domains({name: stream["image"] for name, stream in batch.items()})
        ways = self.terms(net.generated, net.real, generated, real, key), self.terms(net.real, net.generated, real, generated, key)
        found = {name: (ways[0][name] + ways[1][name]) / 2 for name in ways[0]}
        weights = {name: options[f"{name}_weight"] for name in ("adversarial", "nce", "identity")}
        return sum(weight * found[name] for name, weight in weights.items()) + found["discriminator"], found

    def terms(self, source: Domain, target: Domain, images: jax.Array, others: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """The losses of one direction.

        Args:
            source: the domain that is translated ...
            target: ... into this one.
            images: of `source`, [N,H,W,C].
            others: of `target`, [M,H,W,C].
            key: of the places of the patches, the same ones for all images.
        """
        options = self.config.objective
        translated, maps = source.generator(images)
        sizes = [x.shape[1] * x.shape[2] for x in maps]
        keys = jax.random.split(key, len(maps))
        places = [jax.random.permutation(k, size)[: options.num_patches] for k, size in zip(keys, sizes, strict=True)]
        # Keys pass no gradient, as in the published code: a projection learns from the direction in which it makes the queries.
        positive = jax.lax.stop_gradient(source.projection(maps, places))
        query = target.projection(target.generator.backbone.layers(translated), places)
        nce = [losses.patch_nce(q, k, options.temperature) for q, k in zip(query, positive, strict=True)]
        real, fake = target.discriminator(others), target.discriminator(jax.lax.stop_gradient(translated))
        return {
            "adversarial": losses.least_squares(stopped(target.discriminator)(translated), 1.0),
            "nce": sum(nce[1:], nce[0]) / len(nce),
            "identity": jnp.abs(source.generator(others)[0] - others).mean(),
            "discriminator": (losses.least_squares(real, 1.0) + losses.least_squares(fake, 0.0)) / 2,
        }

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`overlap` [N] of the attention maps, and `embedding` [N,2D], the mean over places of both discriminators' features."""
        maps = [domain.discriminator.maps(images) for domain in (net.generated, net.real)]
        embedding = jnp.concatenate([x.mean(axis=(1, 2)) for x in maps], axis=1)
        return {"overlap": overlap(*map(attention, maps)), "embedding": embedding}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """The overlap [N,1]."""
        return query["overlap"][:, None]

    def pictures(self, net: Net, images: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Images of either domain above their translation into the other: [N,2H,W,C]."""
        (generated, real), name = _domains(images)
        ways = {f"generated_to_{name}": (net.generated, generated), f"{name}_to_generated": (net.real, real)}
        return {way: jnp.concatenate([shown, domain.generator(shown)[0]], axis=1) for way, (domain, shown) in ways.items()}


def attention(maps: jax.Array) -> jax.Array:
    """Where a network looks, the mean absolute activation of its features: [N,h,w,D] -> [N,h*w], the sum of an image 1."""
    found = jnp.abs(maps).mean(axis=-1).reshape(len(maps), -1)
    return found / jnp.maximum(found.sum(axis=1, keepdims=True), 1e-12)


def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of maps without negative values: [N,P], [N,P] -> [N] in 0..1."""
    return jnp.minimum(a, b).sum(axis=1) / jnp.maximum(jnp.maximum(a, b).sum(axis=1), 1e-12)


def _domains(streams: dict) -> tuple[tuple, str]:
    """What the streams of both domains hold, generated first, and the name of the other; raises ValueError where that is not so."""
    names = sorted(streams, key=lambda name: name != "generated")
    if len(names) != 2 or names[0] != "generated":
        raise ValueError(f"data.streams={sorted(streams)}: dclgan has two domains, use generated, and reference or real")
    return tuple(streams[name] for name in names), names[1]
