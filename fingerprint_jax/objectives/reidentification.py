"""Siamese network that tells whether two images are of one patient (Packhäuser et al. 2022, Sci Rep 12:14851).

It learns from real images of known patients. Then it is asked which synthetic images are of the patient of a real one: a generator
that has kept a patient makes images that point to them. No label of a real image is read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.spatial.distance import cdist

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones.layers import Linear
from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.runtime import names

BLOCK = 2048  # queries compared at a time, which bounds the memory of `scores`


class Net(nnx.Module):
    """A backbone with two branches, each a dense layer of `width` features: one of verification, one of retrieval."""

    def __init__(self, backbone: backbones.Backbone, width: int, rngs: nnx.Rngs) -> None:
        self.backbone = backbone
        self.verification, self.retrieval = (Linear(backbone.num_features, width, rngs=rngs) for _ in range(2))
        self.head = Linear(width, 1, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, jax.Array]:
        """Features of verification, 0..1, and the embedding of retrieval, of unit length: [N,H,W,C] -> [N,D], [N,D]."""
        x = self.backbone(images, train=train, rngs=rngs)
        return nnx.sigmoid(self.verification(x)), losses.l2_normalize(self.retrieval(x))

    def compare(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Logits that images are of one patient, of the absolute difference of their features: [N,D], [M,D] -> [N,M]."""
        return self.head(jnp.abs(a[:, None] - b[None, :]))[..., 0]


class Objective(objectives.Objective):
    """Each image is encoded once; the first images of the patients of a batch are compared with the second ones.

    The score of a real image is its likeness to the synthetic image that is most like it, less that to the reference image that is
    most like it: the images of others say what chance gives. By `objective.readout` likeness is the logit of verification
    (`probability`), or minus the distance of the embeddings (`distance`).
    """

    of_patients = True

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        objectives.membership_only(config)
        objectives.no_views(config)
        names.check("objective.readout", config.objective.readout, ("probability", "distance"))

    def build(self, rngs: nnx.Rngs) -> Net:
        """The network."""
        return Net(backbones.from_config(self.config.backbone, self.image_shape, rngs), self.config.objective.width, rngs)

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of verification and the weighted contrastive loss of retrieval, each `balanced`."""
        (stream,), options = batch.values(), self.config.objective
        with self.joined(batch) as streams:
            images = streams.join([stream["image"]])
            found = net(images, train=True, rngs=nnx.Rngs(dropout=key))
            features, embedding = map(streams.whole, found)
            patient = streams.whole(streams.join([stream["label"]]))
        same = patient[::2, None] == patient[None, 1::2]
        logits = net.compare(features[::2], features[1::2])
        entropy = losses.balanced(optax.sigmoid_binary_cross_entropy(logits, same.astype(jnp.float32)), same)
        contrastive = losses.all_pairs_contrastive(embedding[::2], embedding[1::2], same, options.margin)
        return entropy + options.contrastive_weight * contrastive, {"cross_entropy": entropy, "contrastive": contrastive}

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`features` of verification and the `embedding` of retrieval, [N,D]."""
        features, embedding = net(images, train=False)
        return {"features": features, "embedding": embedding}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """The likeness to the synthetic images less that to the reference: [N,1]; raises ValueError where either is missing."""
        for name in ("generated", "reference"):
            if name not in gallery:
                raise ValueError(f"gallery.{name} is missing: images are compared with it, list its splits in gallery.{name}")
        near, far = (self._likeness(net, query, gallery[name]) for name in ("generated", "reference"))
        return (near - far)[:, None]

    def _likeness(self, net: Net, query: dict, stream: dict) -> np.ndarray:
        """Of each query that to the image of a stream that is most like it, itself left out: float64 [N]."""
        found = np.empty(len(query["index"]))
        for first in range(0, len(found), BLOCK):
            rows = slice(first, first + BLOCK)
            if self.config.objective.readout == "probability":
                likeness = logits(net, query["features"][rows], stream["features"])
            else:
                likeness = -cdist(query["embedding"][rows], stream["embedding"])
            likeness[query["index"][rows, None] == stream["index"][None, :]] = -np.inf
            found[rows] = likeness.max(axis=1)
        return found


def logits(net: Net, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`Net.compare` on the host, without the differences [N,M,D]: [N,D], [M,D] -> float64 [N,M].

    A weighted city block distance, of the features with positive and with negative weights each by itself.
    """
    assert net.head.bias is not None  # `Linear` has one
    kernel, bias = (np.asarray(jax.device_get(x.get_value()), np.float64) for x in (net.head.kernel, net.head.bias))
    weights = kernel[:, 0]
    up, down = (cdist(a * w, b * w, "cityblock") for w in (np.maximum(weights, 0), np.maximum(-weights, 0)))
    return up - down + bias
