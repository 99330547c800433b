"""Cross-attention, the pairs of a batch and the readouts of the candidates, against slow loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from scipy.special import log_expit, softmax

from fingerprint_jax import methods
from fingerprint_jax.methods import gradient
from fingerprint_jax.objectives import cross_attention
from fingerprint_jax.objectives.cross_attention import CrossAttention, Net, Objective
from fingerprint_jax.training import inference
from tests.conftest import fit

PATH = "configs/subtask1/scope_siamese_cross_attention.py"
OPTIONS = {
    "name": "cross_attention",
    "heads": 2,
    "hidden": 6,
    "num_pairs": 64,
    "angular_weight": 0.3,
    "margin": 0.5,
    "candidates": 3,
    "readout": "mean",
}
VIEWS = {"flip": False, "shift": 0}


class _Pixels(nnx.Module):
    """The pixels [N,2,2,4] are the tokens."""

    def maps(self, images, *, train, rngs=None):
        return images


def _objective(task="subtask1", views=None, **options):
    config = {"task": task, "objective": OPTIONS | options, "views": VIEWS | (views or {})}
    return Objective(ConfigDict(config), 2, (2, 2, 4))


def _net():
    return Net(_Pixels(), (2, 2, 4), OPTIONS["heads"], OPTIONS["hidden"], nnx.Rngs(0))


def _images(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2, 2, 4)).astype(np.float32)


def _arrays(layer):
    return [np.asarray(p.get_value(), np.float64) for p in (layer.kernel, layer.bias)]


def _attended(attention, a, b):
    """The tokens [T,D] of one image, aligned with those of another: one head and one token at a time."""
    (kernel, bias), (proj, proj_bias), heads = _arrays(attention.qkv), _arrays(attention.proj), attention.heads
    size = a.shape[1] // heads
    query, key, value = (a @ kernel + bias)[:, : a.shape[1]], *np.split(b @ kernel + bias, 3, axis=1)[1:]
    out = np.zeros(a.shape)
    for h in range(heads):
        head = slice(h * size, (h + 1) * size)
        for t in range(len(a)):
            out[t, head] = softmax(key[:, head] @ query[t, head] / np.sqrt(size)) @ value[:, head]
    x = a + out @ proj + proj_bias
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    return x * np.asarray(attention.norm.scale.get_value()) + np.asarray(attention.norm.bias.get_value())


def _pair(net, a, b):
    """Aligned features and logit of two images."""
    a, b = a.reshape(-1, 4).astype(float), b.reshape(-1, 4).astype(float)
    fa, fb = _attended(net.attention, a, b).mean(axis=0), _attended(net.attention, b, a).mean(axis=0)
    (fc1, bias1), (fc2, bias2) = _arrays(net.fc1), _arrays(net.fc2)
    hidden = np.maximum(np.concatenate([np.abs(fa - fb), fa * fb]) @ fc1 + bias1, 0)
    return fa, fb, (hidden @ fc2 + bias2)[0]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_against_a_loop(heads):
    attention = CrossAttention(4, heads, nnx.Rngs(heads))
    a, b = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    b = b[:, :4]  # the images of a pair may have other numbers of tokens
    found = attention(attention.project(jnp.asarray(a)), attention.project(jnp.asarray(b)))
    np.testing.assert_allclose(found, [_attended(attention, *pair) for pair in zip(a, b, strict=True)], rtol=1e-4, atol=1e-5)


def test_swapping_the_images_swaps_their_features_and_keeps_the_logit():
    net, images = _net(), _images(6)
    a, b = net.encode(images[:3], train=False), net.encode(images[3:], train=False)
    (fa, fb), swapped = net.aligned(a, b), net.aligned(b, a)
    np.testing.assert_array_equal(fa, swapped[1])
    np.testing.assert_array_equal(fb, swapped[0])
    np.testing.assert_array_equal(net.similarity(fa, fb), net.similarity(fb, fa))
    expected = [_pair(net, x, y) for x, y in zip(images[:3], images[3:], strict=True)]
    np.testing.assert_allclose(net.similarity(fa, fb), [logit for *_, logit in expected], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fa, [f for f, *_ in expected], rtol=1e-4, atol=1e-5)


def _batch(real, generated):
    images = _images(len(real) + len(generated))
    streams = {"real": (images[: len(real)], real), "generated": (images[len(real) :], generated)}
    return {name: {"image": jnp.asarray(image), "label": jnp.array(label)} for name, (image, label) in streams.items()}


def _table(net, batch):
    """Cross-entropy and angular loss of every real x generated pair."""
    entropy = np.zeros((len(batch["real"]["label"]), len(batch["generated"]["label"])))
    angular = np.zeros_like(entropy)
    for i, j in np.ndindex(entropy.shape):
        fa, fb, logit = _pair(net, np.asarray(batch["real"]["image"][i]), np.asarray(batch["generated"]["image"][j]))
        same = batch["real"]["label"][i] == batch["generated"]["label"][j]
        theta = np.arccos(fa @ fb / np.linalg.norm(fa) / np.linalg.norm(fb))
        entropy[i, j] = -log_expit(logit if same else -logit)
        angular[i, j] = theta if same else max(0, OPTIONS["margin"] - theta)
    return entropy, angular


def test_the_loss_is_half_of_positive_and_half_of_negative_pairs():
    net, batch = _net(), _batch([1, 0, 0, 0], [1])
    entropy, angular = _table(net, batch)
    # One image is used: its pair is half of all. The negative pairs are drawn among three, so that their mean is between theirs.
    loss, metrics = _objective(num_pairs=20_000).loss(net, batch, jax.random.key(0))
    for name, table in (("cross_entropy", entropy), ("angular", angular)):
        expected = (table[0, 0] + table[1:, 0].mean()) / 2
        np.testing.assert_allclose(metrics[name], expected, atol=5 * table[1:, 0].std() / np.sqrt(10_000) / 2 + 1e-5)
    np.testing.assert_allclose(loss, metrics["cross_entropy"] + 0.3 * metrics["angular"], rtol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_a_kind_that_the_batch_does_not_hold_counts_zero(label):
    net, batch = _net(), _batch([label], [1])
    (entropy, angular), metrics = _table(net, batch), _objective().loss(net, batch, jax.random.key(0))[1]
    np.testing.assert_allclose(metrics["cross_entropy"], entropy[0, 0] / 2, rtol=1e-4)
    np.testing.assert_allclose(metrics["angular"], angular[0, 0] / 2, rtol=1e-4)


def test_the_embedding_is_the_mean_of_the_image_s_own_tokens():
    images = _images(5)
    mean = images.reshape(5, 4, 4).mean(axis=1)
    found = _objective().outputs(_net(), jnp.asarray(images))["embedding"]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-5)


class _Data:
    """Images by record number, with a journal of those read."""

    def __init__(self, n):
        self.images, self.journal = _images(n, seed=1), []

    def read(self, index):
        self.journal.append(np.unique(index))
        return jnp.asarray(self.images[index])

    def rows(self, index):
        embedding = _objective().outputs(_net(), jnp.asarray(self.images[index]))["embedding"]
        return {"embedding": np.asarray(embedding), "index": index, "label": np.ones(len(index), int), "images": self.read}

    def expected(self, query, gallery, candidates, readout):
        """Every pair of the candidates, one by one."""
        net, embedding, scores = _net(), self.rows(np.arange(len(self.images)))["embedding"].astype(float), []
        for q in query:
            others = [g for g in gallery if g != q]
            nearest = sorted(others, key=lambda g: -embedding[q] @ embedding[g])[: candidates or None]
            scores.append([readout([_pair(net, self.images[q], self.images[g])[2] for g in nearest])])
        return scores


QUERY, GALLERY = np.arange(2, 7), np.arange(4, 17)  # some queries are part of the gallery


@pytest.mark.parametrize(("readout", "function"), [("mean", np.mean), ("max", np.max)])
@pytest.mark.parametrize("candidates", [0, 3, 12, 13])
def test_scores_against_a_loop_over_the_nearest(candidates, readout, function):
    data = _Data(17)
    scores = _objective(candidates=candidates, readout=readout).scores(_net(), data.rows(QUERY), {"generated": data.rows(GALLERY)})
    np.testing.assert_allclose(scores, data.expected(QUERY, GALLERY, candidates, function), rtol=1e-4, atol=1e-5)


def test_a_query_is_never_its_own_candidate():
    data = _Data(3)
    score = _objective(candidates=1).scores(_net(), data.rows(np.array([0])), {"generated": data.rows(np.arange(3))})
    assert 0 not in np.concatenate(data.journal[1:])
    np.testing.assert_allclose(score, data.expected([0], range(3), 1, np.mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("candidates", [0, 4])
def test_blocks_change_nothing(candidates, monkeypatch):
    found = []
    for images, pairs in ((128, 64), (4, 3), (3, 1000)):
        monkeypatch.setattr(cross_attention, "IMAGES", images)
        monkeypatch.setattr(cross_attention, "PAIRS", pairs)
        data = _Data(17)
        found.append(_objective(candidates=candidates).scores(_net(), data.rows(QUERY), {"generated": data.rows(GALLERY)}))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-6)


def test_every_image_is_encoded_once_and_one_compilation_does(monkeypatch):
    monkeypatch.setattr(cross_attention, "IMAGES", 5)
    monkeypatch.setattr(cross_attention, "PAIRS", 2)
    data, query = _Data(17), np.arange(5)
    rows, gallery = data.rows(query), {"generated": data.rows(np.arange(5, 17))}
    for function in (cross_attention._encode, cross_attention._logits):
        function.clear_cache()
    scores = _objective(candidates=0).scores(_net(), rows, gallery)
    read = np.concatenate(data.journal)
    assert sorted(read) == list(range(17))  # the queries, and each candidate for all of them
    np.testing.assert_array_equal(scores, _objective(candidates=0).scores(_net(), rows, gallery))
    assert cross_attention._encode._cache_size() == cross_attention._logits._cache_size() == 1


def test_a_run_reads_its_own_images_normalised(data_dir, tmp_path, monkeypatch):
    run = fit(PATH, data_dir, tmp_path / "run")
    child = run.load(min((run.workdir / "children").iterdir()))
    rows = child.rows("heldout")
    images = inference.images_of(child, rows.index)
    expected = (child.source.images(rows.index) / 255.0 - 0.449) / 0.226
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)
    first = methods.predict(child, "heldout").scores
    with monkeypatch.context() as patch:  # from the outputs that were written down
        patch.setattr(inference, "encode", None)
        np.testing.assert_array_equal(gradient.predict(child, "heldout").scores, first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "subtask2"}, "objective.name='cross_attention' answers membership, not task='subtask2': use subtask1"),
        ({"readout": "knn"}, "objective.readout='knn' is unknown; known: mean, max"),
        ({"hidden": 0}, "objective.hidden=0: cross_attention needs a layer of 1 unit or more"),
        ({"views": {"flip": True}}, "views.flip=True, views.shift=0: cross_attention has none, use False and 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _objective(**options)


def test_heads_divide_the_features_of_a_token():
    with pytest.raises(ValueError, match="objective.heads=3 does not divide the 4 features of a token"):
        Net(_Pixels(), (2, 2, 4), 3, 6, nnx.Rngs(0))
