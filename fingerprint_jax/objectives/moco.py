"""MoCo v2 with a temperature of each image (taozi): the two views of an image are alike, those of others are not.

No label is read. Membership is how alike a real image is to the synthetic one that it is most alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones.layers import Linear
from fingerprint_jax.estimators import search
from fingerprint_jax.objectives.parts import losses, momentum
from fingerprint_jax.runtime import names


class Encoder(nnx.Module):
    """Backbone, a linear layer to `width` features, projection: images [N,H,W,C] -> embedding [N,E], temperature [N]."""

    def __init__(self, backbone: backbones.Backbone, width: int, projection: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.backbone = backbone
        self.features = Linear(backbone.num_features, width, rngs=rngs)
        self.projection = momentum.Projection(width, projection, rngs)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, jax.Array]:
        """Embedding of unit length, and temperature."""
        return self.projection(self.features(self.backbone(images, train=train, rngs=rngs)))


class Objective(objectives.Objective):
    """InfoNCE of each image's query, by the online encoder, among its own key, by the momentum encoder, and the queue.

    `objective.online` times that, plus the rest of 1 times the same with the roles of the encoders swapped: the key looks for its
    query, at its own temperature. taozi name the weights 0.7 and 0.3 of an online and a momentum part and no more; this reading
    costs no further pass of an encoder. With `objective.positives='pool'` a key in the queue whose cosine to the image's own
    reaches `objective.threshold` is a positive too. That is a reading as well: their candidates are found once, from features of
    the backbone, and their code never uses them, `none`. An older key of the image itself is neither positive nor negative.

    Each part of `optimizer.accumulate` moves the momentum encoder and the queue.
    """

    trainable = momentum.TRAINED
    probabilities = False
    two_views = True

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        options = config.objective
        objectives.membership_only(config)
        names.check("objective.positives", options.positives, ("none", "pool"))
        if len(options.projection) < 2:
            raise ValueError(f"objective.projection={options.projection}: use two layers or more")

    def check(self, images: int, batch: int) -> None:
        """Raises ValueError for a queue that the batch does not divide, or that is longer than the images trained on."""
        queue = self.config.objective.queue
        if queue % batch or queue > images:
            most = images // batch * batch
            raise ValueError(
                f"objective.queue={queue}: use a multiple of the {batch} images of a batch (data.streams), at most {most},"
                f" since there are {images} images to train on"
            )

    def encoder(self, rngs: nnx.Rngs) -> nnx.Module:
        """The online encoder."""
        options = self.config.objective
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        return Encoder(backbone, options.width, options.projection, rngs)

    @staticmethod
    def smoke(options: Config) -> None:
        """A short queue, narrow layers."""
        options.queue, options.width = min(options.queue, 32), min(options.width, 32)
        options.projection = tuple(min(width, 16) for width in options.projection)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        options = self.config.objective
        return momentum.contrasted(self.encoder(rngs), options.queue, options.projection[-1], rngs)

    def loss(self, net: Any, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted losses of queries and keys; moves the momentum encoder and the queue."""
        options = self.config.objective
        order, other_order, dropout, other_dropout = jax.random.split(key, 4)
        momentum.update(net, options.momentum)
        with self.joined(batch) as streams:
            images, second, index = (streams.join([part[name] for part in batch.values()]) for name in ("image", "second", "index"))
            queries, temperature = momentum.shuffled(net, images, order, nnx.Rngs(dropout=dropout))
            keys, key_temperature = momentum.shuffled(net.momentum_encoder, second, other_order, nnx.Rngs(dropout=other_dropout))
        queue = net.queue.keys[...]
        # The streams repeat at their own paces: an image comes again while its last key is still in the queue.
        own = index[:, None] == net.queue.index[None]
        same = None
        if options.positives == "pool":
            same = jnp.matmul(keys, queue.T, precision=jax.lax.Precision.HIGHEST) >= options.threshold
        online = losses.info_nce(queries, keys, queue, temperature, same, own)
        swapped = losses.info_nce(keys, queries, queue, key_temperature, same, own)
        net.queue.push(streams.whole(keys), streams.whole(index))
        loss = options.online * online + (1 - options.online) * swapped
        return loss, {"online": online, "momentum": swapped, "temperature": temperature.mean()}

    def outputs(self, net: Any, images: jax.Array) -> dict[str, jax.Array]:
        """`embedding` [N,E] of unit length, by the online encoder: the space that the loss compares in."""
        return {"embedding": net(images, train=False)[0]}

    def scores(self, net: Any, query: dict, gallery: dict) -> np.ndarray:
        """The highest cosine to a synthetic image, which is never the query itself: [N,1]."""
        generated = gallery["generated"]
        # Of unit length again: the mean over `views` is not.
        asked, others = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query["embedding"], generated["embedding"]))
        distance, _ = search.nearest(asked, others, 1, query_index=query["index"], gallery_index=generated["index"])
        return 1 - distance**2 / 2
