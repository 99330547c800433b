"""Contrastive Siamese network on real x synthetic pairs (AI Multimedia Lab; loss of Hadsell, Chopra & LeCun 2006).

A pair is positive where the labels of its images are equal: the same subset, or for membership a used image (1) with any
synthetic one (every synthetic image carries the label 1).
"""

import jax
import numpy as np
from flax import nnx
from scipy.spatial.distance import cdist

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.runtime import names

BLOCK = 2048  # queries compared at a time, which bounds the memory of `scores`


class Net(nnx.Module):
    """The backbone with L2-normalised features: images [N,H,W,C] -> embedding [N,D]."""

    def __init__(self, backbone: backbones.Backbone) -> None:
        self.backbone = backbone

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Embedding of unit length."""
        return losses.l2_normalize(self.backbone(images, train=train, rngs=rngs))


class Objective(objectives.Objective):
    """Each image is encoded once; pairs are formed among the embeddings of the batch."""

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        options = config.objective
        names.check("objective.pairs", options.pairs, ("sampled", "all"))
        readouts = ("mean", "min", "knn") if self.task.membership else ("mean", "centroid")
        names.check("objective.readout", options.readout, readouts)

    def build(self, rngs: nnx.Rngs) -> Net:
        """The network."""
        return Net(backbones.from_config(self.config.backbone, self.image_shape, rngs))

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Contrastive loss over sampled pairs, half positive, or over every real x synthetic pair of the batch."""
        real, generated = batch["real"], batch["generated"]
        pair_key, dropout_key = jax.random.split(key)
        with self.joined(batch, "real", "generated") as streams:
            images = streams.join([real["image"], generated["image"]])
            embedding = streams.whole(net(images, train=True, rngs=nnx.Rngs(dropout=dropout_key)))
            labels = streams.whole(streams.join([real["label"], generated["label"]]))
        count = len(real["label"])
        a, b = embedding[:count], embedding[count:]
        same = labels[:count, None] == labels[None, count:]
        options = self.config.objective
        if options.pairs == "sampled":
            loss = losses.sampled_pairs_contrastive(a, b, same, options.margin, pair_key, options.num_pairs)
        else:
            loss = losses.all_pairs_contrastive(a, b, same, options.margin)
        return loss, {}

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`embedding` [N,D] of unit length."""
        return {"embedding": net(images, train=False)}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """Minus the distance: to each subset's reals (attribution, [N,K]), or to the synthetic images (membership, [N,1])."""
        blocks = np.array_split(np.arange(len(query["index"])), max(1, -(-len(query["index"]) // BLOCK)))
        score = self._membership if self.task.membership else self._attribution
        return np.concatenate([score(query["embedding"][b], query["index"][b], gallery) for b in blocks])

    def _membership(self, embedding: np.ndarray, index: np.ndarray, gallery: dict) -> np.ndarray:
        generated = gallery["generated"]
        distance = _distances(embedding, index, generated)
        if self.config.objective.readout == "mean":
            score = np.nanmean(distance, axis=1)
        else:
            k = 1 if self.config.objective.readout == "min" else self.config.objective.k
            score = np.sort(distance, axis=1)[:, :k].mean(axis=1)  # NaN sorts last
        return -score[:, None]

    def _attribution(self, embedding: np.ndarray, index: np.ndarray, gallery: dict) -> np.ndarray:
        real = gallery["real"]
        if self.config.objective.readout == "centroid":
            centroids = np.stack([real["embedding"][real["label"] == k].mean(axis=0) for k in range(self.num_classes)])
            return -cdist(embedding, centroids)
        distance = _distances(embedding, index, real)
        return -np.stack([np.nanmean(distance[:, real["label"] == k], axis=1) for k in range(self.num_classes)], axis=1)


def _distances(embedding: np.ndarray, index: np.ndarray, gallery: dict) -> np.ndarray:
    """Euclidean distances [N,M] in float64; NaN where the gallery image is the query itself."""
    distance = cdist(embedding, gallery["embedding"])
    distance[index[:, None] == gallery["index"][None, :]] = np.nan
    return distance
