"""Two denoisers, one of the synthetic images and one of the reference: is a real image more like the first than like the second?

What makes an image hard to denoise, it is for both: the ratio of their errors leaves it out. The score is label-free, and its sign
follows from the question. The error of a denoiser bounds the likelihood of an image (Kingma & Gao 2023, arXiv 2303.00848), hence
the name.
"""

from typing import Never

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones.layers import Linear

STREAMS = ("generated", "reference")


class Denoiser(nnx.Module):
    """Noisy images of S x S pixels -> images: [N,S,S,C], [N] -> [N,S,S,C].

    The network sees the image scaled to variance 1 and gives the part that scaling by itself cannot: preconditioning of Karras et
    al. 2022 (arXiv 2206.00364), table 1, without a level of noise as an input.
    """

    def __init__(self, backbone: backbones.Backbone, shape: tuple[int, int, int], deviation: float, rngs: nnx.Rngs) -> None:
        self.backbone, self.shape, self.deviation = backbone, shape, deviation
        # It begins as the best linear denoiser of independent pixels.
        zeros = nnx.initializers.zeros
        self.head = Linear(backbone.num_features, int(np.prod(shape)), kernel_init=zeros, rngs=rngs)

    def __call__(self, noisy: jax.Array, sigma: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The images without their noise of deviation `sigma` [N]."""
        sigma = sigma[:, None, None, None]
        total = jnp.sqrt(sigma**2 + self.deviation**2)
        found = self.head(self.backbone(noisy / total, train=train, rngs=rngs)).reshape(-1, *self.shape)
        return (self.deviation / total) ** 2 * noisy + sigma * self.deviation / total * found


class Net(nnx.Module):
    """`synthetic` and `reference`, which begin alike."""

    def __init__(self, synthetic: Denoiser, reference: Denoiser) -> None:
        self.synthetic, self.reference = synthetic, reference

    @property
    def backbone(self) -> Never:
        """There are two: raises ValueError."""
        raise ValueError("objective.name='likelihood_ratio' has two networks, drawn from the seed: no backbone.weights, no layers")


class Objective(objectives.Objective):
    """One summed loss; the networks share neither weights nor images, but their start, noise and augmentation.

    Images are averaged to `objective.size` pixels a side. In training the deviation of the noise is log-uniform between the two
    `objective.sigmas`, in units of the normalised images, and the squared error is weighted so that every level counts alike. In
    evaluation it is each of the levels in `objective.scored`, with `objective.draws` draws of noise, the same ones for all images.
    """

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        self.config, options = config, config.objective
        objectives.membership_only(config)
        if options.size > min(image_shape[:2]):
            raise ValueError(f"objective.size={options.size}: use 1 to {min(image_shape[:2])}, the side of the images")
        low, high = options.sigmas
        if low > high or not options.scored:
            raise ValueError(
                f"objective.sigmas={options.sigmas}, objective.scored={options.scored}: use two, sorted, and at least one"
            )
        self.shape = (options.size, options.size, image_shape[2])

    def build(self, rngs: nnx.Rngs) -> Net:
        """The networks."""
        count, nets = rngs.params.count[...], []
        for _ in STREAMS:
            rngs.params.count[...] = count  # the same draws
            backbone = backbones.from_config(self.config.backbone, self.shape, rngs)
            nets.append(Denoiser(backbone, self.shape, self.config.objective.deviation, rngs))
        return Net(*nets)

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted squared errors of both networks, each on its own stream."""
        sigma_key, noise_key, dropout_key = jax.random.split(key, 3)
        low, high = self.config.objective.sigmas
        found = {}
        for name, denoiser in zip(STREAMS, (net.synthetic, net.reference), strict=True):
            images = self._small(batch[name]["image"])
            levels = jax.random.uniform(sigma_key, (len(images),), minval=np.log(low), maxval=np.log(high))
            sigma, noise = jnp.exp(levels), jax.random.normal(noise_key, images.shape)
            error = self._errors(denoiser, images, sigma, noise, train=True, rngs=nnx.Rngs(dropout=dropout_key))
            # The inverse of the squared scale of what the network gives: then its own error counts, at every level alike.
            found[name] = jnp.mean(error * (1 / sigma**2 + 1 / self.config.objective.deviation**2))
        return found["generated"] + found["reference"], found

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`synthetic` and `reference`: the mean squared error of each network at each level that is scored, [N,L]."""
        options, images = self.config.objective, self._small(images)
        noise = jax.random.normal(jax.random.key(options.noise_seed), (len(options.scored), options.draws, *self.shape))

        def errors(denoiser: Denoiser) -> jax.Array:
            """At each level: the mean over its draws of noise."""
            return jnp.stack(
                [
                    sum(self._errors(denoiser, images, jnp.full(len(images), sigma), draw[None]) for draw in draws) / options.draws
                    for sigma, draws in zip(options.scored, noise, strict=True)
                ],
                axis=1,
            )

        return {"synthetic": errors(net.synthetic), "reference": errors(net.reference)}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """Log of the ratio of the errors, reference to synthetic, its mean over the levels: [N,1]; 0 where neither knows more."""
        return np.log(query["reference"] / query["synthetic"]).mean(axis=1, keepdims=True)

    def _errors(
        self,
        denoiser: Denoiser,
        images: jax.Array,
        sigma: jax.Array,
        noise: jax.Array,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Mean squared error [N] of images [N,S,S,C] with noise of deviation `sigma` [N]."""
        found = denoiser(images + sigma[:, None, None, None] * noise, sigma, train=train, rngs=rngs)
        return jnp.square(found - images).mean(axis=(1, 2, 3))

    def _small(self, images: jax.Array) -> jax.Array:
        return jax.image.resize(images, (len(images), *self.shape), "linear", antialias=True)
