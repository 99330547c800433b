"""Losses on embeddings, pure functions; the arithmetic is float32 whatever the input."""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array) -> jax.Array:
    """Rows of unit length: [N,D] -> float32 [N,D]; a zero row stays zero and its gradient is finite."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def pairwise_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """Euclidean distances: [N,D], [M,D] -> [N,M].

    A matrix product, since the differences [N,M,D] would not fit. Distances below 1/1000 of the spread drown in its rounding:
    they count as zero, with gradient zero.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # Distances do not change with the origin, and their rounding error is least with the origin amid the points.
    origin = jax.lax.stop_gradient(jnp.concatenate([a, b]).mean(axis=0, keepdims=True))
    a, b = a - origin, b - origin
    scale = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    square = scale - 2 * jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return _sqrt(square, 1e-6 * scale)


def contrastive(distance: jax.Array, same: jax.Array, margin: float) -> jax.Array:
    """y d^2 + (1 - y) max(0, margin - d)^2, elementwise, y = 1 for the same class.

    Hadsell, Chopra & LeCun 2006, eq. 4, without its factor 1/2 (and with y for its 1 - Y), as in the Keras example.
    """
    distance = distance.astype(jnp.float32)
    return jnp.where(same, distance**2, jnp.maximum(margin - distance, 0.0) ** 2)


def all_pairs_contrastive(a: jax.Array, b: jax.Array, same: jax.Array, margin: float) -> jax.Array:
    """Contrastive loss of every pair, `balanced`: [N,D], [M,D], bool [N,M] -> scalar."""
    return balanced(contrastive(pairwise_distances(a, b), same, margin), same)


def balanced(loss: jax.Array, same: jax.Array) -> jax.Array:
    """The mean of two means, over positive and over negative pairs: [N,M], bool [N,M] -> scalar.

    A kind that the batch does not hold counts zero.
    """
    positive = jnp.sum(loss * same) / jnp.maximum(jnp.sum(same), 1)
    negative = jnp.sum(loss * ~same) / jnp.maximum(jnp.sum(~same), 1)
    return (positive + negative) / 2


def sampled_pairs_contrastive(
    a: jax.Array, b: jax.Array, same: jax.Array, margin: float, key: jax.Array, num_pairs: int
) -> jax.Array:
    """Contrastive loss of pairs drawn with replacement, half of them positive: [N,D], [M,D], bool [N,M] -> scalar.

    Args:
        a: embeddings [N,D].
        b: embeddings [M,D].
        same: which pairs are positive [N,M].
        margin: of the negatives, a Euclidean distance.
        key: of the draw.
        num_pairs: pairs drawn, even. A kind that the batch does not hold counts zero.

    Raises:
        ValueError: `num_pairs` is odd or less than 2.
    """
    total = jnp.float32(0)
    for row, column, held in half_positive_pairs(key, same, num_pairs):
        difference = a[row].astype(jnp.float32) - b[column].astype(jnp.float32)
        distance = _sqrt(jnp.sum(difference**2, axis=-1), 0.0)
        loss = contrastive(distance, same[row, column], margin)
        total += jnp.sum(jnp.where(held, loss, 0.0))
    return total / num_pairs


def angular_contrastive(a: jax.Array, b: jax.Array, same: jax.Array, margin: float) -> jax.Array:
    """y theta + (1 - y) max(0, margin - theta) of rows, y = 1 for the same class: [N,D], [N,D], bool [N] -> [N].

    theta is the angle of two rows in radians, 0 to pi. SCOPE names an angular loss and its margin, not the formula; this is the
    plainest. The gradient is finite everywhere, and zero at theta = 0, where it has no direction.
    """
    a, b = l2_normalize(a), l2_normalize(b)
    # Kahan's formula: the arc cosine of a float32 leaves no digit of small angles, and its slope is infinite there.
    apart, along = _sqrt(jnp.sum((a - b) ** 2, axis=-1), 0.0), _sqrt(jnp.sum((a + b) ** 2, axis=-1), 0.0)
    theta = 2 * jnp.arctan2(apart, jnp.maximum(along, 1e-12))  # two zero rows: 0, not the slope of 0/0
    return jnp.where(same, theta, jnp.maximum(margin - theta, 0.0))


def supervised_contrastive(x: jax.Array, labels: jax.Array, temperature: float) -> jax.Array:
    """Supervised contrastive loss within a batch: [N,D], int [N] -> scalar.

    The mean over anchors i and their positives p, the other rows of the same label, of -log(exp(s_ip / t) / sum_a exp(s_ia / t)), s
    the cosine and a every row but i: Khosla et al. 2020 (NeurIPS), eq. 2, where each anchor counts the same. Rows without a
    positive are no anchors; without any anchor the loss is zero.
    """
    x = l2_normalize(x)
    similarity = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST) / temperature
    other = ~jnp.eye(len(x), dtype=bool)
    positive = (labels[:, None] == labels[None, :]) & other
    log_probability = jax.nn.log_softmax(similarity, axis=1, where=other)
    count = positive.sum(axis=1)
    mean = jnp.sum(jnp.where(positive, log_probability, 0.0), axis=1) / jnp.maximum(count, 1)
    return -mean.sum() / jnp.maximum((count > 0).sum(), 1)


def patch_nce(query: jax.Array, key: jax.Array, temperature: float) -> jax.Array:
    """Contrastive loss of patches against the others of their own image: [N,P,D], [N,P,D] -> scalar.

    The mean over images and patches i of -log(exp(q_i k_i / t) / sum_j exp(q_i k_j / t)), of unit length: Park et al. 2020
    (arXiv 2007.15651), eq. 3 and 4.
    """
    query, key = l2_normalize(query), l2_normalize(key)
    similarity = jnp.einsum("npd,nqd->npq", query, key, precision=jax.lax.Precision.HIGHEST)
    log_probability = jax.nn.log_softmax(similarity / temperature, axis=-1)
    return -jnp.mean(jnp.diagonal(log_probability, axis1=1, axis2=2))


def least_squares(scores: jax.Array, target: float) -> jax.Array:
    """Adversarial loss, the mean square of scores minus target, 1 for real and 0 for fake (Mao et al. 2017, arXiv 1611.04076)."""
    return jnp.mean(jnp.square(scores.astype(jnp.float32) - target))


def info_nce(
    query: jax.Array,
    positive: jax.Array,
    others: jax.Array,
    temperature: jax.Array,
    same: jax.Array | None = None,
    left_out: jax.Array | None = None,
) -> jax.Array:
    """InfoNCE: the cross-entropy of finding a query's positive among itself and other rows, by inner products: -> scalar.

    van den Oord et al. 2018 (arXiv 1807.03748), eq. 4, as in He et al. 2020 (arXiv 1911.05722), eq. 1. Of several positives the
    mean of their log-probabilities counts, as in `supervised_contrastive`.

    Args:
        query: [N,D].
        positive: [N,D], each query's own.
        others: [M,D], the same for all queries.
        temperature: [N], of each query.
        same: which of the others are positives too, bool [N,M]; None: none.
        left_out: which of the others are neither positive nor negative, bool [N,M]; None: none.
    """
    query, positive, others = (x.astype(jnp.float32) for x in (query, positive, others))
    own = jnp.sum(query * positive, axis=1, keepdims=True)
    similarity = jnp.concatenate([own, jnp.matmul(query, others.T, precision=jax.lax.Precision.HIGHEST)], axis=1)
    logits = similarity / temperature[:, None]
    if left_out is not None:  # after the division, whose gradient at -inf is no number
        logits = jnp.where(jnp.pad(left_out, ((0, 0), (1, 0))), -jnp.inf, logits)
    log_probability = jax.nn.log_softmax(logits, axis=1)
    if same is None:
        return -log_probability[:, 0].mean()
    same = same if left_out is None else same & ~left_out
    wanted = jnp.concatenate([jnp.ones_like(same[:, :1]), same], axis=1)
    return -(jnp.sum(jnp.where(wanted, log_probability, 0.0), axis=1) / wanted.sum(axis=1)).mean()


def half_positive_pairs(key: jax.Array, same: jax.Array, num_pairs: int) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """The positive and the negative half of pairs drawn with replacement: rows, columns, and whether the batch holds that kind.

    Args:
        key: of the draw.
        same: which pairs are positive [N,M].
        num_pairs: of both halves.

    Raises:
        ValueError: `num_pairs` is odd or less than 2.
    """
    if num_pairs < 2 or num_pairs % 2:
        raise ValueError(f"objective.num_pairs={num_pairs} cannot be half positive: use an even number from 2")
    kinds = zip((same, ~same), jax.random.split(key), strict=True)
    return [(*sample_pairs(kind_key, kind, num_pairs // 2), jnp.any(kind)) for kind, kind_key in kinds]


def sample_pairs(key: jax.Array, allowed: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Rows [count] and columns [count] of pairs drawn uniformly, with replacement, where `allowed` [N,M] is true (else any)."""
    # By the counts of rows, then within the row: one running sum over all pairs grows with the square of their number.
    ends = jnp.cumsum(allowed.sum(axis=1))
    rank = jax.random.randint(key, (count,), 0, jnp.maximum(ends[-1], 1))
    row = jnp.minimum(jnp.searchsorted(ends, rank, side="right"), len(ends) - 1)
    within = rank - jnp.where(row > 0, ends[row - 1], 0)
    column = (jnp.cumsum(allowed[row], axis=1) <= within[:, None]).sum(axis=1)
    return row, jnp.minimum(column, allowed.shape[1] - 1)


def _sqrt(square: jax.Array, zero: jax.Array | float) -> jax.Array:
    # Both branches of a `where` are differentiated: the root must not see what is not used.
    positive = square > zero
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
