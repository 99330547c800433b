"""Hybrid contrastive attention network (zhouyijiang1): a real image and a synthetic one like it, and whether the real one was used.

Tokens after several layers of a ViT are fused by a gate, mapped to the features of a token, and those of the real image attend to
those of its companion. Not published: the labels of this stage, the formulas of gate, similarity and temperature (here one learned
number, the same for all pairs), and over which images confidence and similarity are taken. Here a pair has the label of its real
image in the cross-entropy; in the contrastive loss every image of the batch counts by itself, a synthetic one with the label that
it carries, 1, so that used images come close to the synthetic ones and the others do not. Which images are pairs is the sampler's:
`config.pairs`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones import vit
from fingerprint_jax.backbones.layers import BatchNorm, Linear
from fingerprint_jax.objectives.cross_attention import CrossAttention, compared
from fingerprint_jax.objectives.parts import losses

SPAN = 10.0  # the learned temperature lies between 1/10 and 10, and begins as 1


class Fusion(nnx.Module):
    """The mean of the tokens after L layers, each normalised; its weights, a gate of their class tokens, are each image's own."""

    def __init__(self, layers: int, width: int, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([vit.LayerNorm(width, rngs) for _ in range(layers)])
        self.gate = Linear(layers * width, layers, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens [L,N,T,D], the class token first -> [N,T,D] and weights [N,L] of sum 1."""
        tokens = jnp.stack([norm(layer) for norm, layer in zip(self.norms, tokens, strict=True)])
        classes = jnp.moveaxis(tokens[:, :, 0], 0, 1).reshape(tokens.shape[1], -1)
        weights = jax.nn.softmax(self.gate(classes), axis=-1)
        return jnp.einsum("nl,lntd->ntd", weights, tokens), weights


class Net(nnx.Module):
    """Backbone, fusion, a map to the features of a token, attention between the images of a pair, and a classifier of it.

    Args:
        backbone: a ViT.
        layers: numbers of its blocks, from 1, whose tokens are fused.
        features: of a token after the map.
        heads: of the attention, a divisor of `features`.
        rngs: `params` initialises.
    """

    def __init__(self, backbone: vit.Backbone, layers: tuple[int, ...], features: int, heads: int, rngs: nnx.Rngs) -> None:
        self.backbone, self.layers = backbone, tuple(layer - 1 for layer in layers)
        self.fusion = Fusion(len(layers), backbone.num_features, rngs)
        self.map = Linear(backbone.num_features, features, rngs=rngs)
        # Ours: what all images have in common would make every cosine 1, where the contrastive loss has no gradient.
        self.norm = BatchNorm(features, rngs=rngs)
        self.attention = CrossAttention(features, heads, rngs)
        self.head = Linear(features, 1, rngs=rngs)
        self.heat = nnx.Param(jnp.zeros(()))

    @property
    def temperature(self) -> jax.Array:
        """Of the logits, a learned number in 1/SPAN..SPAN."""
        return SPAN ** jnp.tanh(self.heat[...])

    def tokens(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The features of every token of an image by itself: [N,H,W,C] -> [N,T,F]."""
        layers = self.backbone.maps(images, train=train, rngs=rngs, layers=self.layers)
        return self.norm(self.map(self.fusion(layers)[0]), train=train)

    def encode(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """What each image brings to its pairs, see `CrossAttention.project`."""
        return self.attention.project(self.tokens(images, train=train, rngs=rngs))

    def logits(self, real: dict, generated: dict) -> jax.Array:
        """Whether the real image of each encoded pair was used: [P]."""
        return self.head(self.attention(real, generated).mean(axis=1))[:, 0] / self.temperature

    def similarity(self, real: dict, generated: dict) -> jax.Array:
        """Cosines of the tokens of encoded pairs, weighted by the attention of the real image's; the mean over these: [P]."""
        a, b = losses.l2_normalize(real["tokens"]), losses.l2_normalize(generated["tokens"])
        cosines = jnp.einsum("ptd,pud->ptu", a, b, precision=jax.lax.Precision.HIGHEST)
        return (self.attention.weights(real, generated) * cosines).sum(axis=-1).mean(axis=-1)

    def compare(self, real: dict, generated: dict) -> jax.Array:
        """Similarity and confidence, the probability that the real image was used: [P,2]."""
        return jnp.stack([self.similarity(real, generated), jax.nn.sigmoid(self.logits(real, generated))], axis=-1)


class Objective(objectives.Objective):
    """Row i of the stream `real` and row i of `generated` are a pair; each image is encoded once a step."""

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        objectives.membership_only(config)
        objectives.no_views(config)

    @staticmethod
    def smoke(options: Config) -> None:
        """The blocks of a tiny Vision Transformer, and few features."""
        options.layers, options.features = (1, 2), min(options.features, 16)

    def build(self, rngs: nnx.Rngs) -> Net:
        """The network."""
        options, name = self.config.objective, self.config.backbone.name
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        if not isinstance(backbone, vit.Backbone):
            raise ValueError(f"backbone.name={name!r} has no tokens after its layers: objective.name='canet' needs a ViT")
        depth = len(backbone.blocks)
        if not options.layers or not all(1 <= layer <= depth for layer in options.layers):
            raise ValueError(f"objective.layers={options.layers}: {name} has the layers 1 to {depth}")
        return Net(backbone, options.layers, options.features, options.heads, rngs)

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the pairs, and the weighted supervised contrastive loss of all images."""
        real, generated, options = batch["real"], batch["generated"], self.config.objective
        with self.joined(batch, "real", "generated") as streams:
            images = streams.join([real["image"], generated["image"]])
            encoded = net.encode(images, train=True, rngs=nnx.Rngs(dropout=key))
            labels = streams.whole(streams.join([real["label"], generated["label"]]))
        parts = {name: streams.split(value) for name, value in encoded.items()}
        a, b = ({name: value[k] for name, value in parts.items()} for k in range(2))
        entropy = optax.sigmoid_binary_cross_entropy(net.logits(a, b), real["label"].astype(jnp.float32)).mean()
        embedding = streams.whole(encoded["tokens"].mean(axis=1))
        contrast = losses.supervised_contrastive(embedding, labels, options.temperature)
        found = {"cross_entropy": entropy, "contrast": contrast, "temperature": net.temperature}
        return entropy + options.contrast * contrast, found

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`embedding` [N,F] of unit length, the mean of the image's own tokens."""
        return {"embedding": losses.l2_normalize(net.tokens(images, train=False).mean(axis=1))}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """Similarity and confidence, each the mean over the synthetic images nearest to a query by embedding: [N,2]."""
        return np.nanmean(compared(net, query, gallery["generated"], self.config.objective.candidates), axis=1)
