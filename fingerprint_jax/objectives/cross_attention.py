"""Siamese network with cross-attention between the tokens of two images (SCOPE).

A pair is positive where the labels of its images are equal: for membership a used image (1) with any synthetic one (every synthetic
image carries the label 1).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones.layers import Linear
from fingerprint_jax.backbones.vit import LayerNorm
from fingerprint_jax.estimators import search
from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.runtime import names

IMAGES = 128  # queries, and candidates, whose tokens are on the device at a time: 2 MB an image of ResNet50 at 256 pixels
PAIRS = 64  # pairs compared at a time


class CrossAttention(nnx.Module):
    """Multi-head attention of one image's tokens to those of another, added to its input and normalised.

    What an image brings to its pairs, `project`, is computed once, not once a pair.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        if heads < 1 or width % heads:
            raise ValueError(f"objective.heads={heads} does not divide the {width} features of a token: use a divisor")
        self.heads = heads
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)
        self.norm = LayerNorm(width, rngs)

    def project(self, tokens: jax.Array) -> dict[str, jax.Array]:
        """Tokens [N,T,D] -> `tokens`, and `query`, `key` and `value` [N,T,heads,D/heads]."""
        n, count, width = tokens.shape
        query, key, value = jnp.moveaxis(self.qkv(tokens).reshape(n, count, 3, self.heads, width // self.heads), 2, 0)
        return {"tokens": tokens, "query": query, "key": key, "value": value}

    def __call__(self, a: dict, b: dict) -> jax.Array:
        """The tokens of a [P,T,D], each of which attends to all those of b."""
        attended = jax.nn.dot_product_attention(a["query"], b["key"], b["value"])
        return self.norm(a["tokens"] + self.proj(attended.reshape(a["tokens"].shape)))

    def weights(self, a: dict, b: dict) -> jax.Array:
        """How much each token of a attends to each of b, the mean over the heads: [P,T,U], rows of sum 1."""
        products = (
            jnp.einsum("pthd,puhd->phtu", a["query"], b["key"], precision=jax.lax.Precision.HIGHEST) / a["query"].shape[-1] ** 0.5
        )
        return jax.nn.softmax(products, axis=-1).mean(axis=1)


class Net(nnx.Module):
    """Backbone, cross-attention in both directions with the same weights, and a perceptron of the similarity of a pair.

    Args:
        backbone: of the tokens, the places of its last map.
        image_shape: (H, W, C).
        heads: of the attention, a divisor of the features of a token.
        hidden: units of the perceptron.
        rngs: `params` initialises.
    """

    def __init__(
        self, backbone: backbones.Backbone, image_shape: tuple[int, int, int], heads: int, hidden: int, rngs: nnx.Rngs
    ) -> None:
        self.backbone = backbone
        # Of the map, since a backbone's own features may have another width.
        width = jax.eval_shape(lambda: self.tokens(jnp.zeros((1, *image_shape)), train=False)).shape[-1]
        self.attention = CrossAttention(width, heads, rngs)
        self.fc1 = Linear(2 * width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, 1, rngs=rngs)

    def tokens(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The places of the last map: [N,H,W,C] -> [N,T,D]."""
        maps = self.backbone.maps(images, train=train, rngs=rngs)
        return maps.reshape(len(maps), -1, maps.shape[-1])

    def encode(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """What each image brings to its pairs, see `CrossAttention.project`."""
        return self.attention.project(self.tokens(images, train=train, rngs=rngs))

    def aligned(self, a: dict, b: dict) -> tuple[jax.Array, jax.Array]:
        """Features [P,D] of either image of a pair: the mean of its tokens, aligned with the other's."""
        return self.attention(a, b).mean(axis=1), self.attention(b, a).mean(axis=1)

    def similarity(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Logits [P] of aligned features [P,D]."""
        features = jnp.concatenate([jnp.abs(a - b), a * b], axis=-1)
        return self.fc2(nnx.relu(self.fc1(features)))[:, 0]

    def compare(self, a: dict, b: dict) -> jax.Array:
        """Logits [P,1] of encoded pairs."""
        return self.similarity(*self.aligned(a, b))[:, None]


class Objective(objectives.Objective):
    """Each image is encoded once a step; pairs are drawn among the real x synthetic images of the batch, half of them positive."""

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        objectives.membership_only(config)
        names.check("objective.readout", config.objective.readout, ("mean", "max"))
        if not config.objective.hidden:
            raise ValueError("objective.hidden=0: cross_attention needs a layer of 1 unit or more")
        objectives.no_views(config)

    def build(self, rngs: nnx.Rngs) -> Net:
        """The network."""
        backbone = backbones.from_config(self.config.backbone, self.image_shape, rngs)
        return Net(backbone, self.image_shape, self.config.objective.heads, self.config.objective.hidden, rngs)

    def loss(self, net: Net, batch: objectives.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the logits of the pairs, and the weighted angular loss of their aligned features."""
        real, generated, options = batch["real"], batch["generated"], self.config.objective
        pair_key, dropout_key = jax.random.split(key)
        with self.joined(batch, "real", "generated") as streams:
            images = streams.join([real["image"], generated["image"]])
            encoded = net.encode(images, train=True, rngs=nnx.Rngs(dropout=dropout_key))
            encoded = {name: streams.whole(value) for name, value in encoded.items()}
            labels = streams.whole(streams.join([real["label"], generated["label"]]))
        count = len(real["label"])
        same = labels[:count, None] == labels[None, count:]
        row, column, held = zip(*losses.half_positive_pairs(pair_key, same, options.num_pairs), strict=True)
        rows = streams.spread(jnp.stack([jnp.concatenate(row), count + jnp.concatenate(column)], axis=1))
        held = jnp.repeat(jnp.stack(held), options.num_pairs // 2)  # a kind that the batch does not hold counts zero
        # Both images of a pair at once, so that the gradients of an image's tokens are exchanged once.
        pairs = _take(encoded, rows)
        a, b = net.aligned(*({name: value[:, k] for name, value in pairs.items()} for k in range(2)))
        same = labels[rows[:, 0]] == labels[rows[:, 1]]
        entropy = optax.sigmoid_binary_cross_entropy(net.similarity(a, b), same.astype(jnp.float32))
        angular = losses.angular_contrastive(a, b, same, options.margin)
        entropy, angular = (jnp.where(held, loss, 0.0).mean() for loss in (entropy, angular))
        return entropy + options.angular_weight * angular, {"cross_entropy": entropy, "angular": angular}

    def outputs(self, net: Net, images: jax.Array) -> dict[str, jax.Array]:
        """`embedding` [N,D] of unit length, the mean of the image's own tokens."""
        return {"embedding": losses.l2_normalize(net.tokens(images, train=False).mean(axis=1))}

    def scores(self, net: Net, query: dict, gallery: dict) -> np.ndarray:
        """The mean or largest logit of a query with its candidates, the synthetic images nearest to it: [N,1]."""
        readout = np.nanmean if self.config.objective.readout == "mean" else np.nanmax
        return readout(compared(net, query, gallery["generated"], self.config.objective.candidates), axis=1)


def compared(net: Any, query: dict, generated: dict, count: int) -> np.ndarray:
    """What `net.compare` says of each query and its candidates: [N,k,K]; NaN where a candidate is the query itself.

    Args:
        net: has `encode` images and `compare` encoded pairs -> [P,K].
        query: what `scores` of an objective is given, with an `embedding`.
        generated: the stream of the gallery, likewise.
        count: candidates, those of the highest cosine of the embeddings; 0: all.
    """
    found, network, parts = _candidates(query, generated, count), nnx.split(net), []
    for first in range(0, len(found), IMAGES):
        rows = slice(first, first + IMAGES)
        asked = _encode(*network, query["images"](_padded(query["index"][rows], IMAGES)))
        figures = jax.eval_shape(lambda a: net.compare(a, a), asked).shape[1]
        parts.append(np.full((*found[rows].shape, figures), np.nan))
        _compare(network, asked, generated, found[rows], parts[-1])
    return np.concatenate(parts)


def _candidates(query: dict, generated: dict, count: int) -> np.ndarray:
    """Positions [N,k] in the gallery of the images of the highest cosine to each query; -1 for the query itself."""
    own, others = query["index"], generated["index"]
    if 0 < count < len(others):
        embeddings = query["embedding"], generated["embedding"]
        return search.nearest(*embeddings, count, query_index=own, gallery_index=others)[1]
    return np.where(own[:, None] == others[None, :], -1, np.arange(len(others))[None, :])


def _compare(network: tuple, asked: dict, generated: dict, found: np.ndarray, logits: np.ndarray) -> None:
    """Writes the figures [Q,k,K] of the pairs of encoded queries and their candidates `found`; every candidate is encoded once."""
    chosen, running = np.unique(found[found >= 0]), []
    for start in range(0, len(chosen), IMAGES):
        block = chosen[start : start + IMAGES]
        others = _encode(*network, generated["images"](_padded(generated["index"][block], IMAGES)))
        row, rank = np.nonzero((found >= block[0]) & (found <= block[-1]))
        column = np.searchsorted(block, found[row, rank])
        before, running = running, []
        for first in range(0, len(row), PAIRS):
            part = slice(first, first + PAIRS)
            pairs = jax.device_put((_padded(row[part], PAIRS), _padded(column[part], PAIRS)))
            running.append((row[part], rank[part], _logits(*network, asked, others, *pairs)))
        # The block before is read only now, so that the device works while this one was read from disk; no later, since each
        # holds its tokens.
        _write(before, logits)
    _write(running, logits)


def _write(parts: list, logits: np.ndarray) -> None:
    for row, rank, values in parts:
        logits[row, rank] = np.asarray(jax.device_get(values))[: len(row)]


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """To one length, so that one compilation does; the last repeats."""
    return np.pad(values, (0, size - len(values)), mode="edge")


def _take(encoded: dict, rows: jax.Array) -> dict:
    return {name: value[rows] for name, value in encoded.items()}


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
    return nnx.merge(graph, state).encode(images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef, state: nnx.State, asked: dict, others: dict, row: jax.Array, column: jax.Array) -> jax.Array:
    return nnx.merge(graph, state).compare(_take(asked, row), _take(others, column))
