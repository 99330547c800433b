"""Softmax classifier: the cross-entropy of every stream's labels, of a class of its own for real images, and a contrastive loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones.layers import Linear, dropout
from fingerprint_jax.objectives.parts import losses

PROJECTION = 128  # of the contrastive loss, one linear layer, as in Khosla et al. 2020


class Net(nnx.Module):
    """Backbone and a head, linear or with a hidden layer: images [N,H,W,C] -> features [N,D], logits [N,K].

    `projection` is for training alone.
    """

    def __init__(
        self,
        backbone: backbones.Backbone,
        num_classes: int,
        rngs: nnx.Rngs,
        contrast: bool = False,
        hidden: int = 0,
        rate: float = 0.0,
    ) -> None:
        self.backbone, self.rate = backbone, rate
        self.hidden = Linear(backbone.num_features, hidden, rngs=rngs) if hidden else None
        self.head = Linear(hidden or backbone.num_features, num_classes, rngs=rngs)
        self.projection = Linear(backbone.num_features, PROJECTION, rngs=rngs) if contrast else None

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, jax.Array]:
        """Features and logits."""
        features = self.backbone(images, train=train, rngs=rngs)
        x = features if self.hidden is None else nnx.relu(self.hidden(features))
        return features, self.head(dropout(x, self.rate, train=train, rngs=rngs))


class Objective(objectives.Objective):
    """Classes are the labels of the task; scores are the softmax probabilities.

    With `objective.real_class` the stream `real` is one class more, which is dropped before the softmax of the scores (SDVA's six
    classes). `objective.contrast` times the supervised contrastive loss of a projection of the features joins the cross-entropy.
    `objective.hidden` units with ReLU may lie before the logits, and `objective.dropout` acts on what the logits are computed from.
    """

    probabilities = True

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        self.real_class = config.objective.real_class
        if self.real_class and not self.task.attribution:
            raise ValueError(f"objective.real_class is of subtask2, where synthetic images are classified, not of {config.task}")
        self.contrast, self.temperature = config.objective.contrast, config.objective.temperature
        self.hidden, self.dropout = config.objective.hidden, config.objective.dropout

    def build(self, rngs: nnx.Rngs) -> Net:
        """The network."""
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        return Net(backbone, self.num_classes + self.real_class, rngs, self.contrast > 0, self.hidden, self.dropout)

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross-entropy over all streams of the batch, with the contrastive loss, and the training accuracy."""
        labels = {name: stream["label"] for name, stream in batch.items()}
        if self.real_class:
            labels["real"] = jnp.full_like(labels["real"], self.num_classes)
        with self.joined(batch) as streams:
            images, labels = streams.join([stream["image"] for stream in batch.values()]), streams.join(list(labels.values()))
            features, logits = net(images, train=True, rngs=nnx.Rngs(dropout=key))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        found = {"train_accuracy": (logits.argmax(-1) == labels).mean()}
        if self.contrast:
            assert net.projection is not None  # `build` makes it
            projected = streams.whole(net.projection(features))
            contrast = losses.supervised_contrastive(projected, streams.whole(labels), self.temperature)
            loss, found["contrast"] = loss + self.contrast * contrast, contrast
        return loss, found

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`embedding` [N,D] and `logits` [N,K]."""
        features, logits = net(images, train=False)
        return {"embedding": features, "logits": logits}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """Class probabilities [N,K]; membership [N,1], the probability of `used`."""
        logits = query["logits"][:, : self.num_classes]
        probabilities = jax.device_get(jax.nn.softmax(jax.device_put(logits), axis=-1))
        return probabilities[:, 1:] if self.task.membership else probabilities
