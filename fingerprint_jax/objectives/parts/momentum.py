"""Momentum contrast (MoCo, He et al. 2020, arXiv 1911.05722; v2, Chen et al. 2020, arXiv 2003.04297): what its objectives share.

The network is the online encoder, which also owns its `momentum_encoder` and its `queue`. `TRAINED` leaves the first out; a queue
is no parameter. The loss assigns to both, which are part of the state and of its checkpoints.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fingerprint_jax.backbones.layers import Linear, placed, places
from fingerprint_jax.objectives.parts import losses

TRAINED = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("momentum_encoder")))


class Queue(nnx.Module):
    """The last keys, first in first out: `keys` [L,D] of unit length, `index` [L] their images', `count` how many were ever pushed.

    It begins with random directions, as the code of MoCo does, of no image: -1. Key number i stands in row i modulo L.
    """

    def __init__(self, length: int, width: int, rngs: nnx.Rngs) -> None:
        self.keys = nnx.Variable(losses.l2_normalize(jax.random.normal(rngs.params(), (length, width))))
        self.index = nnx.Variable(jnp.full(length, -1, jnp.int32))
        self.count = nnx.Variable(jnp.int32(0))

    def push(self, keys: jax.Array, index: jax.Array) -> None:
        """Writes the keys [B,D] of images [B] over the oldest; raises ValueError where B does not divide the length."""
        length = len(self.keys[...])
        if length % len(keys):
            raise ValueError(f"objective.queue={length} is not a multiple of the {len(keys)} images of a batch")
        place = self.count[...] % length
        self.keys.set_value(jax.lax.dynamic_update_slice(self.keys[...], keys, (place, jnp.zeros_like(place))))
        self.index.set_value(jax.lax.dynamic_update_slice(self.index[...], index, (place,)))
        self.count.set_value(self.count[...] + len(keys))


class Projection(nnx.Module):
    """Features [N,D] -> embedding [N,E] of unit length, temperature [N] of each image between 0.05 and 0.2.

    A perceptron with ReLU between its layers of `widths`, and a linear layer that reads the temperature from the layer before the
    last (taozi; where it is read was not published).
    """

    def __init__(self, features: int, widths: tuple[int, ...], rngs: nnx.Rngs) -> None:
        sizes = (features, *widths)
        self.layers = nnx.List([Linear(a, b, rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)])
        self.temperature = Linear(sizes[-2], 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embedding and temperature."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return losses.l2_normalize(self.layers[-1](x)), 0.05 + 0.15 * jax.nn.sigmoid(self.temperature(x)[:, 0])


def contrasted(encoder: Any, length: int, width: int, rngs: nnx.Rngs) -> Any:
    """An encoder with a momentum encoder and a queue of `length` keys [D = width]."""
    encoder.momentum_encoder, encoder.queue = nnx.clone(encoder), Queue(length, width, rngs)
    return encoder


def update(net: Any, decay: float) -> None:
    """Moves the momentum encoder: decay * its parameter + (1 - decay) * the online one, whose gradient this does not pass.

    Before the first key it becomes the online encoder, statistics included, whatever that has begun with. Later its statistics are
    its own.
    """
    first = net.queue.count[...] == 0
    online, moved = dict(nnx.to_flat_state(nnx.state(net))), []
    for path, old in nnx.to_flat_state(nnx.state(net.momentum_encoder)):
        keep = jnp.where(first, 0.0, decay if isinstance(old, nnx.Param) else 1.0)
        # Without stop_gradient the keys would pass (1 - decay) of a gradient to the online encoder, and nothing would tell.
        new = jax.lax.stop_gradient(online[path].get_value())
        moved.append((path, old.replace(keep * old.get_value() + (1 - keep) * new)))
    nnx.update(net.momentum_encoder, nnx.from_flat_state(moved))


def shuffled(encoder: Any, images: jax.Array, key: jax.Array, rngs: nnx.Rngs) -> tuple[jax.Array, jax.Array]:
    """Embedding and temperature of images [N,H,W,C] by an encoder to which they stand in random places, see `layers.placed`.

    MoCo's shuffling of batch normalisation (section 3.3): with `backbone.norm_groups` an image's key then has other company than
    its query, so that the statistics do not betray which belong together. Queries are shuffled too: each group is then a mix of
    the streams of a batch, as on MoCo's devices.
    """
    place = jnp.argsort(jax.random.permutation(key, len(images)))[places(len(images))]
    with placed(place):
        return encoder(images, train=True, rngs=rngs)
