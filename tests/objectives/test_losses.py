import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from fingerprint_jax.objectives.parts import losses

MARGIN = 1.0


def embeddings(n=6, m=5, d=4, scale=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (n, d)).astype(np.float32), rng.normal(0, scale, (m, d)).astype(np.float32)


def same_of(n=6, m=5):
    return np.arange(n)[:, None] % 3 == np.arange(m)[None, :] % 3


def loops(a, b, same, margin=MARGIN):
    """Contrastive loss of every pair, one at a time."""
    table = np.zeros(same.shape)
    for i in range(len(a)):
        for j in range(len(b)):
            distance = np.sqrt(((a[i].astype(float) - b[j]) ** 2).sum())
            table[i, j] = distance**2 if same[i, j] else max(0.0, margin - distance) ** 2
    return table


def test_l2_normalize():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]], np.float32)
    np.testing.assert_allclose(losses.l2_normalize(x), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: losses.l2_normalize(x).sum())(x)).all()


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_pairwise_distances_against_scipy(offset):
    a, b = embeddings(seed=1)
    a, b = a + np.float32(offset), b + np.float32(offset)
    np.testing.assert_allclose(losses.pairwise_distances(a, b), cdist(a, b), rtol=1e-4)


def test_pairwise_distances_of_a_collapsed_embedding():
    # Unit vectors 1e-3 apart: without a common origin float32 leaves hardly a digit of their distances.
    rng = np.random.default_rng(0)
    x = np.ones(64) / 8 + rng.normal(0, 1e-4, (12, 64))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_allclose(losses.pairwise_distances(x[:6], x[6:]), cdist(x[:6], x[6:]), rtol=1e-3)


def test_gradient_of_distances_is_that_of_the_closed_form_and_zero_at_zero():
    a, b = embeddings(3, 3)
    b[0] = a[0]
    gradient = jax.grad(lambda a: losses.pairwise_distances(a, b).sum())(a)
    difference, distance = a[:, None].astype(float) - b[None], cdist(a, b)
    unit = np.where(distance[..., None] > 0, difference / np.maximum(distance, 1e-30)[..., None], 0)
    np.testing.assert_allclose(gradient, unit.sum(axis=1), rtol=1e-3, atol=1e-4)
    alike = np.ones((4, 3), np.float32)
    assert not np.any(jax.grad(lambda a: losses.pairwise_distances(a, alike).sum())(alike))


def test_contrastive_by_hand():
    distance, same = jnp.array([0.5, 0.5, 1.5, 2.0]), jnp.array([True, False, False, True])
    np.testing.assert_allclose(losses.contrastive(distance, same, 1.0), [0.25, 0.25, 0.0, 4.0])
    np.testing.assert_allclose(losses.contrastive(distance, same, 2.0), [0.25, 2.25, 0.25, 4.0])


def test_all_pairs_against_loops():
    (a, b), same = embeddings(), same_of()
    table = loops(a, b, same)
    np.testing.assert_allclose(
        losses.all_pairs_contrastive(a, b, same, MARGIN), (table[same].mean() + table[~same].mean()) / 2, rtol=1e-5
    )


@pytest.mark.parametrize("kind", [True, False])
def test_a_missing_kind_counts_zero(kind):
    (a, b), same = embeddings(), np.full((6, 5), kind)
    table = loops(a, b, same)
    a, b, same = jnp.asarray(a), jnp.asarray(b), jnp.asarray(same)
    np.testing.assert_allclose(losses.all_pairs_contrastive(a, b, same, MARGIN), table.mean() / 2, rtol=1e-5)

    def sampled(a):
        return losses.sampled_pairs_contrastive(a, b, same, MARGIN, jax.random.key(0), 512)

    value, gradient = jax.jit(jax.value_and_grad(sampled))(a)
    np.testing.assert_allclose(value, table.mean() / 2, rtol=0.2)
    assert np.isfinite(gradient).all() and np.any(gradient)


def test_sampled_pairs_estimate_the_balanced_mean():
    (a, b), same = embeddings(), same_of()
    table = loops(a, b, same)
    sampled = jax.jit(losses.sampled_pairs_contrastive, static_argnums=(3, 5))
    value = sampled(a, b, same, MARGIN, jax.random.key(0), 20_000)
    error = np.sqrt((table[same].var() + table[~same].var()) / 10_000) / 2
    assert abs(value - (table[same].mean() + table[~same].mean()) / 2) < 5 * error
    assert value == sampled(a, b, same, MARGIN, jax.random.key(0), 20_000)
    assert value != sampled(a, b, same, MARGIN, jax.random.key(1), 20_000)


def test_half_of_the_sampled_pairs_are_positive():
    # Positive pairs are 1 apart and lose 1, negative ones lose 0: the loss is the share of positive pairs.
    a, b = np.zeros((4, 1), np.float32), np.ones((7, 1), np.float32)
    same = np.zeros((4, 7), bool)
    same[2, 5] = True
    for num_pairs in (2, 30):
        assert losses.sampled_pairs_contrastive(a, b, same, 1.0, jax.random.key(0), num_pairs) == 0.5


def test_sampled_pairs_are_allowed_and_equally_likely():
    allowed = np.random.default_rng(0).uniform(size=(5, 7)) < 0.4
    rows, columns = losses.sample_pairs(jax.random.key(0), jnp.asarray(allowed), 5000)
    drawn = np.zeros(allowed.shape, int)
    np.add.at(drawn, (np.asarray(rows), np.asarray(columns)), 1)
    assert not drawn[~allowed].any()
    assert scipy.stats.chisquare(drawn[allowed]).pvalue > 1e-3


def test_identical_embeddings_have_finite_gradients():
    a, same = jnp.ones((6, 4)), jnp.asarray(same_of(6, 6))

    def both(a):
        sampled = losses.sampled_pairs_contrastive(a, a, same, MARGIN, jax.random.key(0), 8)
        return sampled + losses.all_pairs_contrastive(a, a, same, MARGIN)

    value, gradient = jax.jit(jax.value_and_grad(both))(a)
    np.testing.assert_allclose(value, 2 * MARGIN**2 / 2)  # positives lose 0, negatives the squared margin
    assert np.isfinite(gradient).all()


def test_arithmetic_is_float32():
    (a, b), same = embeddings(), same_of()
    a, b = jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16)
    expected = losses.all_pairs_contrastive(a.astype(jnp.float32), b.astype(jnp.float32), same, MARGIN)
    value = losses.all_pairs_contrastive(a, b, same, MARGIN)
    assert value.dtype == jnp.float32 and value == expected
    assert losses.sampled_pairs_contrastive(a, b, same, MARGIN, jax.random.key(0), 4).dtype == jnp.float32
    assert losses.l2_normalize(a).dtype == jnp.float32


@pytest.mark.parametrize("num_pairs", [0, 7])
def test_uneven_numbers_of_pairs_are_refused(num_pairs):
    (a, b), same = embeddings(), same_of()
    with pytest.raises(ValueError, match=f"objective.num_pairs={num_pairs} cannot be half positive: use an even number from 2"):
        losses.sampled_pairs_contrastive(a, b, same, MARGIN, jax.random.key(0), num_pairs)


def test_supervised_contrastive_is_that_of_the_paper():
    # Eq. 2 of Khosla et al. 2020, anchor by anchor; the last row is alone in its class and no anchor.
    x, labels, temperature = np.random.default_rng(5).normal(size=(8, 4)), np.array([0, 1, 0, 2, 1, 0, 2, 3]), 0.1
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    anchors = []
    for i in range(7):
        others = [a for a in range(8) if a != i]
        total = logsumexp([z[i] @ z[a] / temperature for a in others])
        anchors.append(-np.mean([z[i] @ z[p] / temperature - total for p in others if labels[p] == labels[i]]))
    found = losses.supervised_contrastive(x.astype(np.float32), labels, temperature)
    np.testing.assert_allclose(found, np.mean(anchors), rtol=1e-5)


def test_supervised_contrastive_of_one_point_and_of_no_pair():
    # All rows alike: every other row is as likely.
    same = np.ones((6, 3), np.float32)
    np.testing.assert_allclose(losses.supervised_contrastive(same, np.array([0, 0, 0, 1, 1, 1]), 0.5), np.log(5), rtol=1e-6)
    gradient = jax.grad(lambda x: losses.supervised_contrastive(x, np.arange(6), 0.5))(same)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("degrees", [0.0, 0.001, 10.0, 28.0, 45.0, 90.0, 179.0, 180.0])
def test_angular_contrastive_of_known_angles(degrees):
    theta = np.deg2rad(degrees)
    a, b = np.array([[2.0, 0.0]], np.float32), 3 * np.array([[np.cos(theta), np.sin(theta)]], np.float32)
    for same, expected in ((True, theta), (False, max(0.0, 0.5 - theta))):
        np.testing.assert_allclose(losses.angular_contrastive(a, b, np.array([same]), 0.5), [expected], rtol=1e-5, atol=1e-6)


def test_gradient_of_the_angle_is_finite_where_rows_are_alike_opposite_or_zero():
    a = np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    b = np.array([[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 2.0]], np.float32)
    for same in (True, False):
        gradient = jax.grad(lambda a, b, same=same: losses.angular_contrastive(a, b, np.full(5, same), 4.0).sum(), (0, 1))(a, b)
        assert all(np.isfinite(side).all() for side in gradient)
        # At a right angle: towards b by one radian a unit of length, or away from it.
        np.testing.assert_allclose(gradient[0][4], [0, -1 if same else 1], atol=1e-6)


def test_half_positive_pairs_are_of_their_kind():
    same = jnp.asarray(same_of())
    for (row, column, held), kind in zip(losses.half_positive_pairs(jax.random.key(0), same, 30), (True, False), strict=True):
        assert len(row) == len(column) == 15 and held
        assert np.all(np.asarray(same)[row, column] == kind)
    (_, _, positive), (_, _, negative) = losses.half_positive_pairs(jax.random.key(0), jnp.ones((3, 2), bool), 2)
    assert positive and not negative


def test_patch_nce_against_a_loop():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = []
    for q, k in zip(query, key, strict=True):  # an image's patches are compared with its own alone
        q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
        expected += [logsumexp(q[i] @ k.T / 0.05) - q[i] @ k[i] / 0.05 for i in range(5)]
    np.testing.assert_allclose(losses.patch_nce(query, key, 0.05), np.mean(expected), rtol=1e-5)


def test_patch_nce_of_orthogonal_patches():
    patches = np.eye(6, dtype=np.float32)[None]
    expected = np.log(1 + 5 * np.exp(-1 / 0.5))
    np.testing.assert_allclose(losses.patch_nce(patches, patches, 0.5), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.patch_nce(patches, patches[:, ::-1], 0.5), expected + 2, rtol=1e-5)  # no patch at its place


def test_least_squares_is_the_mean_square():
    scores = jnp.asarray([[0.0, 1.0], [3.0, -1.0]], jnp.bfloat16)
    assert float(losses.least_squares(scores, 1.0)) == (1 + 0 + 4 + 4) / 4
    assert float(losses.least_squares(scores, 0.0)) == (0 + 1 + 9 + 1) / 4


@pytest.mark.parametrize("several", [False, True])
def test_info_nce_against_a_loop(several):
    rng = np.random.default_rng(0)
    query, own, others = (rng.normal(size=(n, 4)).astype(np.float32) for n in (6, 6, 9))
    temperature, same = rng.uniform(0.05, 0.2, 6).astype(np.float32), rng.uniform(size=(6, 9)) < 0.3
    expected = []
    for i in range(6):
        logits = np.array([query[i] @ row for row in (own[i], *others)], np.float64) / temperature[i]
        wanted = [0, *(1 + np.flatnonzero(same[i]))] if several else [0]
        expected.append(logsumexp(logits) - logits[wanted].mean())
    found = losses.info_nce(query, own, others, temperature, same if several else None)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_what_info_nce_leaves_out_is_as_if_it_were_not_there(several):
    rng = np.random.default_rng(1)
    query, own, others = (jnp.asarray(rng.normal(size=(n, 4)).astype(np.float32)) for n in (5, 5, 7))
    temperature = jnp.asarray(rng.uniform(0.05, 0.2, 5).astype(np.float32))
    same, left_out = (rng.uniform(size=(5, 7)) < 0.4 for _ in range(2))
    assert (same & left_out).any()

    def loss(query, temperature):
        return losses.info_nce(query, own, others, temperature, same if several else None, left_out)

    def loop(query, temperature):
        found = []
        for i, kept in enumerate(~left_out):
            row, wanted = slice(i, i + 1), same[i : i + 1, kept] if several else None
            found.append(losses.info_nce(query[row], own[row], others[kept], temperature[row], wanted))
        return sum(found) / len(found)

    found, expected = (jax.value_and_grad(f, (0, 1))(query, temperature) for f in (loss, loop))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_info_nce_by_hand():
    x = np.eye(3, 4, dtype=np.float32)
    # Of four rows at right angles and one alike: -log(e^(1/t) / (e^(1/t) + 4)).
    found = losses.info_nce(x, x, np.tile(np.eye(4, dtype=np.float32)[3:], (4, 1)), np.full(3, 0.5, np.float32))
    np.testing.assert_allclose(found, np.log(1 + 4 * np.exp(-2)), rtol=1e-5)
