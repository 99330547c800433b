"""Momentum contrast, as objective `moco`, of the fused features of several backbones (taozi's mixture of experts)."""

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax import backbones
from fingerprint_jax.backbones.layers import Linear
from fingerprint_jax.objectives import moco
from fingerprint_jax.objectives.cross_attention import CrossAttention
from fingerprint_jax.objectives.parts import losses, momentum


class Experts(nnx.Module):
    """Images [N,H,W,C] -> embedding [N,E], temperature [N].

    The features of each backbone are mapped to `width`, of unit length; a gate, a perceptron that sees all of them, weighs them;
    their weighted sum attends to them, see `CrossAttention`; then the projection. That the gate makes the sum, and that the sum
    asks the experts, is a reading: the published text has a gate, and attention that refines the fused features.

    Args:
        experts: the backbones.
        width: of the features.
        gate: hidden units of the gate.
        heads: of the attention, a divisor of `width`.
        projection: widths of the projection.
        rngs: `params` initialises.
    """

    def __init__(
        self, experts: list[backbones.Backbone], width: int, gate: int, heads: int, projection: tuple[int, ...], rngs: nnx.Rngs
    ) -> None:
        self.backbone = nnx.List(experts)
        self.features = nnx.List([Linear(expert.num_features, width, rngs=rngs) for expert in experts])
        self.gate1 = Linear(len(experts) * width, gate, rngs=rngs)
        self.gate2 = Linear(gate, len(experts), rngs=rngs)
        self.attention = CrossAttention(width, heads, rngs)
        self.projection = momentum.Projection(width, projection, rngs)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, jax.Array]:
        """Embedding of unit length, and temperature."""
        found = [expert(images, train=train, rngs=rngs) for expert in self.backbone]
        return self.projection(self.fused(jnp.stack([layer(x) for layer, x in zip(self.features, found, strict=True)], axis=1)))

    def fused(self, features: jax.Array) -> jax.Array:
        """Features of the experts [N,K,D] -> one feature [N,D]."""
        features = losses.l2_normalize(features)
        total = jnp.sum(self.weights(features)[..., None] * features, axis=1, keepdims=True)
        return self.attention(self.attention.project(total), self.attention.project(features))[:, 0]

    def weights(self, features: jax.Array) -> jax.Array:
        """What the gate gives each expert: [N,K,D] -> [N,K], a sum of 1."""
        return jax.nn.softmax(self.gate2(nnx.relu(self.gate1(features.reshape(len(features), -1)))), axis=-1)


class Objective(moco.Objective):
    """As `moco`; `backbone.name` is several names joined by +, and so is `backbone.weights` where there are any."""

    def encoder(self, rngs: nnx.Rngs) -> nnx.Module:
        """The online encoder."""
        options = self.config.objective
        experts = backbones.several(self.config.backbone, self.image_shape, rngs)
        return Experts(experts, options.width, options.gate, options.heads, options.projection, rngs)
