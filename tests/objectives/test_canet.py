"""Gate, attention, similarity, loss and the means over the candidates, against slow loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from scipy.special import expit, log_expit, softmax
from sklearn.metrics import roc_auc_score

from fingerprint_jax import methods
from fingerprint_jax.backbones import vit
from fingerprint_jax.evaluation import decide, score
from fingerprint_jax.methods import gradient
from fingerprint_jax.objectives.canet import Fusion, Net, Objective
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from tests.conftest import fit, load_config
from tests.objectives.test_cross_attention import _arrays, _attended

PATH = "configs/subtask1/zhouyijiang_canet.py"
OPTIONS = {"name": "canet", "layers": (1, 3), "features": 6, "heads": 3, "contrast": 0.5, "temperature": 0.2, "candidates": 3}
BACKBONE = {"width": 8, "depth": 3, "heads": 2, "patch": 2, "channels": 1, "image_size": (4, 4)}


def _objective(task="subtask1", views=None, backbone="vit_tiny", **options):
    views = {"flip": False, "shift": 0} | (views or {})
    config = {"task": task, "objective": OPTIONS | options, "views": views, "backbone": {"name": backbone, "weights": ""}}
    return Objective(ConfigDict(config), 2, (16, 16, 1))


@functools.cache
def _net():
    """With running statistics of some batch, a temperature that is not 1, and tokens that differ by more than their start."""
    net = Net(vit.Backbone(rngs=nnx.Rngs(1), **BACKBONE), OPTIONS["layers"], OPTIONS["features"], OPTIONS["heads"], nnx.Rngs(0))
    for _, parameter in nnx.to_flat_state(nnx.state(net.backbone, nnx.Param)):
        parameter.set_value(parameter.get_value() * 5)
    for _ in range(20):
        net.tokens(_images(16, seed=3), train=True)
    net.heat.set_value(jnp.float32(0.2))
    return net


def _images(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 4, 4, 1)).astype(np.float32))


def _normalised(x, norm):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return x * np.asarray(norm.scale.get_value()) + np.asarray(norm.bias.get_value())


def _fused(fusion, layers):
    """The tokens [L,T,D] of one image, one layer at a time."""
    layers = [_normalised(np.asarray(layer, np.float64), norm) for layer, norm in zip(layers, fusion.norms, strict=True)]
    kernel, bias = _arrays(fusion.gate)
    weights = softmax(np.concatenate([layer[0] for layer in layers]) @ kernel + bias)
    return sum(weight * layer for weight, layer in zip(weights, layers, strict=True)), weights


@functools.cache
def _tokens(seed=0, n=17):
    """The features [N,T,F] of the tokens of `_images`, one image at a time."""
    net = _net()
    layers = np.asarray(net.backbone.maps(_images(n, seed), train=False, layers=(0, 2)))
    fused = np.stack([_fused(net.fusion, layers[:, i])[0] for i in range(n)])
    kernel, bias = _arrays(net.map)
    mean, var, scale, shift = (np.asarray(v.get_value()) for v in (net.norm.mean, net.norm.var, net.norm.scale, net.norm.bias))
    return (fused @ kernel + bias - mean) / np.sqrt(var + 1e-5) * scale + shift


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _compared(net, a, b):
    """Similarity and logit of the tokens [T,F] of two images: one head and one token at a time."""
    (kernel, bias), heads = _arrays(net.attention.qkv), net.attention.heads
    width = a.shape[1]
    query, key = (a @ kernel + bias)[:, :width], (b @ kernel + bias)[:, width : 2 * width]
    found = []
    for h in range(heads):
        part = slice(h * width // heads, (h + 1) * width // heads)
        for t in range(len(a)):
            weights = softmax(key[:, part] @ query[t, part] / np.sqrt(width / heads))
            found.append(weights @ (_unit(b) @ _unit(a[t])))
    head, head_bias = _arrays(net.head)
    logit = (_attended(net.attention, a, b).mean(axis=0) @ head + head_bias)[0] / 10 ** np.tanh(0.2)
    return np.mean(found), logit


def test_the_weights_of_the_gate_sum_to_one_and_are_each_image_s_own():
    fusion = Fusion(3, 4, nnx.Rngs(0))
    tokens = np.random.default_rng(0).normal(2, 3, size=(3, 6, 5, 4)).astype(np.float32)
    fused, weights = fusion(jnp.asarray(tokens))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert np.std(weights, axis=0).min() > 0.01
    for i in range(6):
        expected = _fused(fusion, tokens[:, i])
        np.testing.assert_allclose(weights[i], expected[1], rtol=1e-4)
        np.testing.assert_allclose(fused[i], expected[0], rtol=1e-4, atol=1e-5)


def test_tokens_are_those_of_the_layers_counted_from_one():
    np.testing.assert_allclose(_net().tokens(_images(17), train=False), _tokens(), rtol=1e-3, atol=1e-4)


def test_in_training_the_tokens_of_a_batch_have_mean_zero():
    graph, state = nnx.split(_net())
    tokens = np.asarray(nnx.merge(graph, state, copy=True).tokens(_images(17), train=True))
    np.testing.assert_allclose(tokens.mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.std(axis=(0, 1)), 1, atol=1e-3)


def test_similarity_and_confidence_against_a_loop():
    net = _net()
    encoded = net.encode(_images(17), train=False)
    a, b = ({name: value[rows] for name, value in encoded.items()} for rows in (slice(0, 5), slice(5, 10)))
    weights = net.attention.weights(a, b)
    assert weights.shape == (5, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    expected = np.array([_compared(net, _tokens()[i], _tokens()[5 + i]) for i in range(5)])
    np.testing.assert_allclose(net.similarity(a, b), expected[:, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(net.logits(a, b), expected[:, 1], rtol=1e-3, atol=1e-4)
    expected[:, 1] = expit(expected[:, 1])
    np.testing.assert_allclose(net.compare(a, b), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("heat", "temperature"), [(-100, 0.1), (0, 1), (100, 10), (0.5, 10 ** np.tanh(0.5))])
def test_the_learned_temperature_is_bounded(heat, temperature):
    graph, state = nnx.split(_net())
    net = nnx.merge(graph, state, copy=True)
    net.heat.set_value(jnp.float32(heat))
    assert net.temperature == pytest.approx(temperature, rel=1e-5)


def _loss(labels, frozen=True, **options):
    """Loss and metrics of a batch in the state that evaluation sees, or as in training."""
    images, count = _images(17)[: 2 * len(labels)], len(labels)
    batch = {
        "real": {"image": images[:count], "label": jnp.array(labels)},
        "generated": {"image": images[count:], "label": jnp.ones(count, int)},
    }
    graph, state = nnx.split(_net())
    net = nnx.merge(graph, state, copy=True)
    net.norm.frozen = frozen
    return _objective(**options).loss(net, batch, jax.random.key(0))


def test_the_cross_entropy_is_of_the_label_of_the_real_image_of_a_pair():
    labels = [1, 0, 0, 1]
    metrics = _loss(labels)[1]
    logits = np.array([_compared(_net(), _tokens()[i], _tokens()[4 + i])[1] for i in range(4)])
    expected = -np.mean([log_expit(z if label else -z) for z, label in zip(logits, labels, strict=True)])
    np.testing.assert_allclose(metrics["cross_entropy"], expected, rtol=1e-3)


def test_in_training_the_loss_is_of_tokens_with_the_statistics_of_the_batch():
    tokens = np.asarray(_tokens()[:8])
    scale, shift = (np.asarray(v.get_value()) for v in (_net().norm.scale, _net().norm.bias))
    tokens = (tokens - tokens.mean(axis=(0, 1))) / tokens.std(axis=(0, 1)) * scale + shift
    logits = np.array([_compared(_net(), tokens[i], tokens[4 + i])[1] for i in range(4)])
    expected = -np.mean([log_expit(z if label else -z) for z, label in zip(logits, [1, 0, 0, 1], strict=True)])
    found, frozen = (_loss([1, 0, 0, 1], frozen=state)[1]["cross_entropy"] for state in (False, True))
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert abs(found - frozen) > 0.01 * frozen


def test_the_contrastive_loss_is_of_all_images_with_their_own_labels():
    loss, metrics = _loss([1, 0, 0, 1])
    similarity = _unit(_tokens()[:8].mean(axis=1))
    similarity = similarity @ similarity.T / OPTIONS["temperature"]
    groups = [[0, 3, 4, 5, 6, 7], [1, 2]]  # used and synthetic, and the others
    terms = []
    for group in groups:
        for i in group:
            others = np.delete(similarity[i], i)
            terms.append(-np.mean([similarity[i, j] - np.log(np.exp(others).sum()) for j in group if j != i]))
    np.testing.assert_allclose(metrics["contrast"], np.mean(terms), rtol=1e-3)
    np.testing.assert_allclose(loss, metrics["cross_entropy"] + 0.5 * metrics["contrast"], rtol=1e-6)
    alone, metrics = _loss([1, 0, 0, 1], contrast=0.0)
    np.testing.assert_allclose(alone, metrics["cross_entropy"], rtol=1e-6)


def _rows(index, journal=None):
    def read(wanted):
        if journal is not None:
            journal.append(np.unique(wanted))
        return _images(17)[wanted]

    embedding = np.asarray(_objective().outputs(_net(), _images(17))["embedding"])
    return {"embedding": embedding[index], "index": index, "label": np.ones(len(index), int), "images": read}


def test_the_embedding_is_the_mean_of_the_tokens_of_unit_length():
    np.testing.assert_allclose(_rows(np.arange(17))["embedding"], _unit(_tokens().mean(axis=1)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("candidates", [0, 1, 3, 50])
def test_scores_against_a_loop_over_the_nearest(candidates):
    query, gallery, embedding, expected = np.arange(2, 7), np.arange(4, 17), _unit(_tokens().mean(axis=1)), []
    scores = _objective(candidates=candidates).scores(_net(), _rows(query), {"generated": _rows(gallery)})
    for q in query:
        others = sorted((g for g in gallery if g != q), key=lambda g: -embedding[q] @ embedding[g])
        found = np.array([_compared(_net(), _tokens()[q], _tokens()[g]) for g in others[: candidates or None]])
        expected.append([found[:, 0].mean(), expit(found[:, 1]).mean()])
    assert scores.shape == (5, 2)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)


def test_a_query_is_never_its_own_candidate():
    journal, query = [], np.array([0])
    scores = _objective(candidates=1).scores(_net(), _rows(query), {"generated": _rows(np.arange(17), journal)})
    assert 0 not in np.concatenate(journal)
    assert scores[0, 0] < 0.999


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    return fit(PATH, data_dir, tmp_path_factory.mktemp("canet") / "run")


def test_figures_are_of_the_similarity_and_labels_of_both_conditions(run):
    predictions, rows = methods.predict(run, "heldout"), run.rows("heldout")
    scores = predictions.scores
    assert scores.shape == (len(rows), 2) and not predictions.probabilities
    assert (abs(scores[:, 0]) <= 1).all() and (0 < scores[:, 1]).all() and (scores[:, 1] < 1).all()
    run.config.decision.params.confidence = float(np.median(scores[:, 1]))
    results = score.evaluate(run, "heldout")["metrics"]
    assert results["scores"]["auc"] == pytest.approx(roc_auc_score(rows.labels, scores[:, 0]))
    decided, folds = decide.decide(run, "heldout", predictions), run.folds(rows)
    assert 0 < decided.sum() <= (scores[:, 1] > np.median(scores[:, 1])).sum()
    run.config.decision.params.confidence = 0.0
    reached = decide.decide(run, "heldout", predictions)
    np.testing.assert_array_equal(decided, reached * (scores[:, 1] > np.median(scores[:, 1])))
    for fold in (0, 1):  # each with a threshold of its own
        inside = folds == fold
        assert not reached[inside].any() or scores[inside & (reached == 1), 0].min() > scores[inside & (reached == 0), 0].max()


def test_a_training_watches_the_auc_of_the_similarity(data_dir, tmp_path):
    config = network_config(load_config(PATH))
    config.data_dir, config.data.valid, config.best, config.pairs.candidates = data_dir, 0.5, "max:auc", 0
    config.eval_every = 2
    run = Run(config, tmp_path / "run")
    gradient.fit(run)
    lines = [line for line in (run.workdir / "metrics.jsonl").read_text().splitlines() if "valid_auc" in line]
    assert len(lines) == 2
    scores, labels = methods.predict(run, "valid").scores, run.rows("valid").labels
    assert any(f"{roc_auc_score(labels, scores[:, 0])}"[:6] in line for line in lines)
    ensemble = methods.get("ensemble")
    whole = load_config(PATH)
    whole.data_dir, whole.data.valid, whole.data.folds, whole.ensemble.admit = data_dir, 0.5, 0, 1.0
    whole.ensemble.seeds, whole.member.num_steps, whole.decision.known = 1, 0, "valid"
    with pytest.raises(ValueError, match=r"ensemble.admit=1.0: no member reaches it on valid, the best is .* with 0\.\d+"):
        ensemble.fit(Run(whole, tmp_path / "ensemble"))
    child = ensemble.members(Run(whole, tmp_path / "ensemble"))[0][1]
    with pytest.raises(ValueError, match=f"with {roc_auc_score(labels, methods.predict(child, 'valid').scores[:, 0]):.4f}"):
        ensemble.admitted(Run(whole, tmp_path / "ensemble"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "subtask2"}, "objective.name='canet' answers membership, not task='subtask2': use subtask1"),
        ({"views": {"flip": True}}, "views.flip=True, views.shift=0: canet has none, use False and 0"),
        ({"layers": (0, 1)}, r"objective.layers=\(0, 1\): vit_tiny has the layers 1 to 2"),
        ({"layers": (6, 12, 18)}, r"objective.layers=\(6, 12, 18\): vit_tiny has the layers 1 to 2"),
        ({"layers": ()}, r"objective.layers=\(\): vit_tiny has the layers 1 to 2"),
        ({"layers": (1, 2), "heads": 4}, "objective.heads=4 does not divide the 6 features of a token"),
        ({"backbone": "strided_resnet_tiny"}, "backbone.name='strided_resnet_tiny' has no tokens after its layers"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _objective(**options).build(nnx.Rngs(0))
