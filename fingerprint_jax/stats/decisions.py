"""Scores -> labels. Each decision is `f(scores [N,K], known_scores [M,K], known_labels [M], **params)`
-> int labels [N], and raises ValueError for scores that are not finite.

Those of membership read column 0 only, `both_thresholds` column 1 too; 1 is `used`. What a decision learns from never contains
what it decides about: that is the caller's duty (`evaluation/decide.py`). What others ask about a decision it says by `facts`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from fingerprint_jax import Config
from fingerprint_jax.runtime import names, plugins

Decision = Callable[..., np.ndarray]

_FACTS: dict[str, Any] = {
    "needs_known": lambda params: False,  # of its params, whether it cannot do without known scores and labels
    "sees_split": lambda known: False,  # of `decision.known`, whether a label depends on the other rows of the split
    "class_balance": False,  # whether it rests on how many rows of the split are used, which an honest test does not tell
}


def facts(**said: Any) -> Callable[[Decision], Decision]:
    """What a decision says of itself: `needs_known`, `sees_split` and `class_balance` as in `_FACTS`, where it is not as there."""

    def mark(decision: Decision) -> Decision:
        decision.facts = said  # pyright: ignore[reportFunctionMemberAccess]
        return decision

    return mark


def argmax(scores: np.ndarray, known_scores: np.ndarray | None = None, known_labels: np.ndarray | None = None) -> np.ndarray:
    """The class of the highest score, ties to the lower number."""
    scores = _checked(scores)
    if scores.shape[1] < 2:
        raise ValueError("decision.name='argmax' needs a score a class; use threshold or learned_threshold for membership")
    return scores.argmax(axis=1)


def threshold(
    scores: np.ndarray, known_scores: np.ndarray | None = None, known_labels: np.ndarray | None = None, *, value: float
) -> np.ndarray:
    """1 where the score is at least `value`, both as float32: a score that prints as the value reaches it."""
    return (_checked(scores)[:, 0] >= np.float32(value)).astype(np.int64)


@facts(needs_known=lambda params: True)
def learned_threshold(scores: np.ndarray, known_scores: np.ndarray, known_labels: np.ndarray) -> np.ndarray:
    """1 where the score reaches the threshold that has the highest Cohen's kappa on the known rows (`best_threshold`)."""
    return threshold(scores, value=best_threshold(_checked(known_scores)[:, 0], np.asarray(known_labels)))


@facts(needs_known=lambda params: params["value"] is None)
def both_thresholds(
    scores: np.ndarray,
    known_scores: np.ndarray | None = None,
    known_labels: np.ndarray | None = None,
    *,
    confidence: float,
    value: float | None,
) -> np.ndarray:
    """1 where column 1 exceeds `confidence` and column 0 reaches `value`; None: the threshold of `learned_threshold`.

    That is learned on column 0 of all known rows, whatever their column 1. Raises ValueError for scores of one column.
    """
    scores = _checked(scores)
    if scores.shape[1] < 2:
        raise ValueError("decision.name='both_thresholds' needs a second column, the confidence; use learned_threshold")
    near = learned_threshold(scores, known_scores, known_labels) if value is None else threshold(scores, value=value)
    return near * (scores[:, 1] > np.float32(confidence))


@facts(sees_split=lambda known: not known)
def mean_plus_std(
    scores: np.ndarray, known_scores: np.ndarray | None = None, known_labels: np.ndarray | None = None, *, k: float
) -> np.ndarray:
    """1 where the score is at least mean + k * population standard deviation.

    Both are taken from the known scores, or from the scores themselves where none are given: then a label
    depends on the other rows (transductive).
    """
    reference = _checked(scores if known_scores is None else known_scores)[:, 0].astype(np.float64)
    return threshold(scores, value=reference.mean() + k * reference.std())


@facts(sees_split=lambda known: True, class_balance=True)
def top_fraction(
    scores: np.ndarray, known_scores: np.ndarray | None = None, known_labels: np.ndarray | None = None, *, fraction: float
) -> np.ndarray:
    """1 for the round(fraction * N) highest scores (round half to even), ties to the earlier rows.

    This uses the class balance of the split and depends on its other rows: a result that rests on it must say so.
    """
    column = _checked(scores)[:, 0]
    labels = np.zeros(len(column), np.int64)
    labels[np.argsort(-column, kind="stable")[: round(fraction * len(column))]] = 1
    return labels


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the highest Cohen's kappa of `scores >= threshold` [N] against labels [N], in O(N log N).

    Candidates lie half-way between neighbouring scores, so that both labels are given; of equally good ones
    the one in the widest gap is taken.

    Raises ValueError unless both labels occur, and where all scores are equal.
    """
    found = np.unique(labels).tolist()
    if found != [0, 1]:
        raise ValueError(f"a threshold is learned from rows labelled 0 and 1, the known rows have {found}")
    values = np.unique(scores)
    if len(values) == 1:
        raise ValueError(f"a threshold cannot be learned: all {len(scores)} known scores are {values[0]:g}")
    order = np.argsort(scores, kind="stable")
    sorted_scores, sorted_labels = scores[order].astype(np.float64), labels[order]
    first = np.searchsorted(sorted_scores, values[1:], side="left")  # rows from here on are called 1
    total, used = len(scores), int(labels.sum())
    called = total - first
    true_positive = used - np.concatenate([[0], np.cumsum(sorted_labels)])[first]
    agreement = (true_positive + (total - used) - (called - true_positive)) / total
    chance = (called * used + (total - called) * (total - used)) / total**2
    kappa = (agreement - chance) / (1 - chance)
    gaps = np.diff(values.astype(np.float64))
    best = np.flatnonzero(np.isclose(kappa, kappa.max(), rtol=0, atol=1e-12))
    low, high = values[best[np.argmax(gaps[best])] :][:2]
    middle = low / 2 + high / 2
    # Between neighbouring floats there is no middle, and the lower score must stay below.
    return float(middle if middle > low else high)


def _checked(scores: np.ndarray) -> np.ndarray:
    # The precision of a table on disk: fresh scores and scores read back are decided alike.
    scores = np.asarray(scores, np.float32)
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise ValueError(
            f"the scores of {len(bad)} of {len(scores)} rows are not finite, the first is row {bad[0]}: {scores[bad[0]]}"
        )
    return scores


DECISIONS = {f.__name__: f for f in (argmax, threshold, learned_threshold, both_thresholds, mean_plus_std, top_fraction)}


def get(name: str) -> Decision:
    """A decision by name, or `package.module:function`; raises ValueError with the known names."""
    if plugins.dotted(name):
        return plugins.find("decision.name", name)
    names.check("decision.name", name, DECISIONS)
    return DECISIONS[name]


def check(decision: Config, membership: bool) -> None:
    """Raises ValueError for a `config.decision` with an unknown name, other params than its own, or nothing to learn from.

    Also for one of membership where the task asks for classes, and for one of a package that cannot be called as a decision is.
    """
    function, params = get(decision.name), decision.params.to_dict()
    if not membership and function in DECISIONS.values() and function is not argmax:
        raise ValueError(f"decision.name={decision.name!r} tells used images from others: use argmax for a task of classes")
    try:
        inspect.signature(function).bind_partial(None, None, None)
    except TypeError:
        wanted_call = "def NAME(scores, known_scores, known_labels, *, ...)"
        raise ValueError(f"decision.name={decision.name!r} cannot be called as a decision is: write it {wanted_call}") from None
    wanted = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for name in params:
        names.check("decision.params", name, wanted)
    if missing := wanted - params.keys():
        raise ValueError(f"decision.params: {decision.name} needs {', '.join(sorted(missing))}")
    if not decision.known and needs_known(decision.name, params):
        raise ValueError(f"decision.name={decision.name!r} learns from known scores: set decision.known to a split")


def needs_known(name: str, params: dict[str, Any]) -> bool:
    """Whether a decision cannot do without known scores and labels."""
    return _facts(name)["needs_known"](params)


def uses_class_balance(name: str) -> bool:
    """Whether a decision rests on how many rows of the split are used, which an honest test does not tell."""
    return _facts(name)["class_balance"]


def sees_split(name: str, known: str) -> bool:
    """Whether a label depends on the other rows of the split, given the split that the decision learns from."""
    return _facts(name)["sees_split"](known)


def _facts(name: str) -> dict[str, Any]:
    return _FACTS | getattr(get(name), "facts", {})
