"""Several runs combined: children over folds (cross-fitting) or seeds, or finished runs given by their work directories."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit, logit, softmax
from scipy.stats import rankdata

from fingerprint_jax import Config, methods
from fingerprint_jax.data import tables, tasks
from fingerprint_jax.runs import config_file, ranges, unchanged
from fingerprint_jax.runs.config import flat_config, network_config
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runs.views import PARTS
from fingerprint_jax.runtime import names
from fingerprint_jax.runtime.targets import Target
from fingerprint_jax.stats import score_metrics

FIELDS = {"ensemble": dict, "ensemble.runs": (tuple, list), "ensemble.variants": dict, "member": dict}
FIELDS |= {"ensemble.seeds": int, "ensemble.combine": str}


def members(run: Run) -> list[tuple[int, Run]]:
    """(fold, member) of each member; fold -1 where a member holds out what the ensemble holds out, or nothing."""
    e, data = run.config.ensemble, run.config.data
    if e.runs:
        return [(-1, methods.load(path, data_dir=run.config.data_dir, field="ensemble.runs").kept_by(run)) for path in e.runs]
    most = ranges.MOST_SEED // max(e.seeds, 1) - 1
    if run.config.seed > most and e.seeds > 1:
        raise ValueError(f"seed={run.config.seed}: with ensemble.seeds={e.seeds} use 0 to {most}")
    whole = _whole(run)
    folds = range(data.folds) if data.folds and data.fold < 0 and not whole else [-1]
    found = []
    for fold, (variant, config), seed in itertools.product(folds, variants(run.config).items(), range(max(e.seeds, 1))):
        seed += run.config.seed * max(e.seeds, 1)  # ensembles of two seeds share no member
        name = "-".join([f"fold{fold}"] * (fold >= 0) + [variant] * bool(variant) + [f"seed{seed}"])
        child = run.child(name, config, seed=seed, fold=fold if fold >= 0 else data.fold)
        if whole:
            child.config.data.update({"folds": 0, "fold": -1, "valid": 0.0, "sequester": 0.0})
        found.append((fold, child))
    return found


def variants(config: Config) -> dict[str, Config]:
    """{name: config of a member}: `member` with the fields of each variant; one that names its method is a config by itself.

    Raises ValueError for a name that is no part of a directory's name.
    """
    found = {}
    for name, fields in config.ensemble.variants.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(f"ensemble.variants: the name {name!r} becomes that of a directory: use letters, digits and ._+-")
        found[name] = ConfigDict({} if "method" in fields else config.member.to_dict())
        found[name].update(fields.to_dict())
    return found or {"": config.member}


def _whole(run: Run) -> bool:
    """Whether no member reads a row that a fold could hold out: then one member is that of all folds, and of every split."""
    e = run.config.ensemble
    if e.runs or e.admit or e.best_variant:
        return False
    return not any(methods.reads(config, run.target) for config in variants(run.config).values())


def admitted(run: Run) -> list[tuple[int, Run]]:
    """The members that take part, by their accuracy (membership: AUC) on their own `valid`, of the data they were started with.

    With `ensemble.best_variant` the best of the variants, for each fold and seed, the first of equal ones; then those that reach
    `ensemble.admit`. Raises ValueError that names the best member where none of a fold does.
    """
    found, least, best_variant = members(run), run.config.ensemble.admit, run.config.ensemble.best_variant
    if not least and not best_variant:
        return found
    judged = [m if m.same_target else m.own for _, m in found]
    scored = [(m.rows("valid").labels, methods.predict(m, "valid").scores) for m in judged]
    figures = [next(iter(score_metrics.quick(*each, run.task.watched).values())) for each in scored]
    if best_variant:
        chosen: dict[tuple[int, int], int] = {}
        for i, (fold, m) in enumerate(found):
            known = chosen.setdefault((fold, m.config.seed), i)
            chosen[fold, m.config.seed] = i if figures[i] > figures[known] else known
        found, figures = [found[i] for i in chosen.values()], [figures[i] for i in chosen.values()]
    for fold in {fold for fold, _ in found}:
        best, member = max((figure, str(m.workdir)) for figure, (f, m) in zip(figures, found, strict=True) if f == fold)
        if best < least:
            raise ValueError(f"ensemble.admit={least}: no member reaches it on valid, the best is {member} with {best:.4f}")
    return [item for figure, item in zip(figures, found, strict=True) if figure >= least]


def check(run: Run) -> None:
    """How members are combined and admitted, and each member."""
    e, task = run.config.ensemble, run.config.task
    names.check("ensemble.combine", e.combine, (*COMBINE, "weighted"))
    if e.combine == "weighted":
        _check_coefficients(run.config)
    if e.combine == "vote" and run.task.membership:
        raise ValueError("ensemble.combine='vote' needs one score a class; use mean or rank for membership")
    if not e.runs:
        _check_variants(run.config)
    for _, member in members(run):
        if e.runs and member.config.task != task:
            raise ValueError(f"ensemble.runs: {member.workdir} is a run of {member.config.task}, not {task}")
        if e.runs and not member.done:
            raise ValueError(f"ensemble.runs: {member.workdir} is not finished")
        if member.config.task != task:
            raise ValueError(f"member.task={member.config.task!r}: the ensemble is of task={task!r}, its members too")
        if e.runs:
            unchanged.require_window(member)
        else:
            methods.check(member)
        if e.admit or e.best_variant:
            member.rows("valid")


def _check_coefficients(config: Config) -> None:
    e = config.ensemble
    given, count = len(e.get("coefficients", ())), len(e.runs or variants(config))
    if given != count:
        raise ValueError(f"ensemble.coefficients has {given} numbers, there are {count} members: give one each, in their order")
    if e.admit or e.best_variant:
        raise ValueError("ensemble.coefficients are of all members: leave out ensemble.admit and ensemble.best_variant")
    if not e.runs and e.seeds > 1:
        raise ValueError(f"ensemble.seeds={e.seeds}: ensemble.coefficients are of the variants, with one seed")


def _check_variants(config: Config) -> None:
    # `update` adds a field that `member` lacks, which nothing reads. Backbones, features and estimators know their own options.
    known, open_to = flat_config(config.member), {"backbone", "objective", "features", "estimator", "gallery", "streams"}
    for name, fields in config.ensemble.variants.items():
        for field in flat_config(fields) if "method" not in fields else ():
            if field not in known and not open_to & {*field.split(".")}:
                raise ValueError(f"ensemble.variants.{name}: {config_file.missing_field(config.member, field)}")


def fit(run: Run) -> None:
    """Trains every child that is not done."""
    with methods.fitting(run):
        for _, member in members(run) if not run.config.ensemble.runs else ():
            methods.fit(member)
        # Before it is called done, so that a lower threshold can still be allowed.
        found: dict[str, Any] = {"members": len(admitted(run)), "named": {}}
        for _, member in members(run) if run.config.ensemble.runs else ():
            found["named"] |= methods.named(member)
        run.finish(**found)


def state(run: Run) -> dict:
    """The states of the members that take part."""
    named = bool(run.config.ensemble.runs)
    return {str(m.workdir): methods.named_state(m, run) if named else methods.state(m) for _, m in admitted(run)}


def reads(config: Config, split: str) -> bool:
    """Whether a member reads rows of a split, or is chosen by them."""
    e = config.ensemble
    configs = [methods.load(path).config for path in e.runs] or variants(config).values()
    chosen = bool(e.admit or e.best_variant) and split in (tasks.of(config.task).target, *PARTS)
    return chosen or any(methods.reads(c, split) for c in configs)


def predict(run: Run, split: str) -> Predictions:
    """Combined scores, rows aligned by id. `heldout` of folds: each row by the members that did not see it."""
    found = admitted(run)
    rows = run.rows(split)
    if _whole(run) and split.partition(":")[0] in (run.target, *PARTS):
        parts = [_of(methods.predict(member, run.target), rows.ids) for _, member in found]
        return _combine(run, parts)
    if split == "heldout" and any(fold >= 0 for fold, _ in found):
        parts = []
        for fold in sorted({fold for fold, _ in found}):
            parts.append(_combine(run, [methods.predict(m, "heldout") for f, m in found if f == fold]))
        ids = np.concatenate([part.ids for part in parts])
        merged = Predictions(ids, np.concatenate([part.scores for part in parts]), parts[0].probabilities)
    else:
        merged = _combine(run, [methods.predict(member, split) for _, member in found])
    return Predictions(rows.ids, merged.scores[tables.align(rows.ids, merged.ids)], merged.probabilities)


def _of(predictions: Predictions, ids: np.ndarray) -> Predictions:
    """Those of some ids."""
    position = {name: i for i, name in enumerate(predictions.ids.tolist())}
    return Predictions(ids, predictions.scores[[position[name] for name in ids.tolist()]], predictions.probabilities)


def _combine(run: Run, parts: list[Predictions]) -> Predictions:
    ids = parts[0].ids
    stack = np.stack([part.scores[tables.align(ids, part.ids)] for part in parts])
    name, probabilities = run.config.ensemble.combine, all(part.probabilities for part in parts)
    if name == "logits" and not probabilities:
        raise ValueError("ensemble.combine='logits' needs members whose scores are probabilities; use mean, vote or rank")
    return Predictions(ids, combined(run.config, stack), name in ("mean", "logits") and probabilities)


def combined(config: Config, stack: np.ndarray) -> np.ndarray:
    """The scores of the members of an ensemble's config as one: [M,N,K] -> [N,K]."""
    e = config.ensemble
    return weighted(stack, e.coefficients) if e.combine == "weighted" else COMBINE[e.combine](stack)


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over the members: [M,N,K] -> [N,K]."""
    return scores.mean(axis=0)


def logits(scores: np.ndarray) -> np.ndarray:
    """Probabilities of the mean of the members' logits: [M,N,K] -> [N,K]; with one column those of two classes.

    A softmax does not see a constant that is added to all logits, so that the logarithm of the probabilities serves.
    """
    if scores.shape[2] == 1:
        least = np.finfo(np.float32).eps
        return expit(logit(np.clip(scores, least, 1 - least)).mean(axis=0))
    return softmax(np.log(np.maximum(scores, np.finfo(np.float32).tiny)).mean(axis=0), axis=1)


def vote(scores: np.ndarray) -> np.ndarray:
    """Share of votes, ties to the higher mean: [M,N,K>1] -> [N,K].

    A member's vote is its highest score. The mean score, scaled into [0, 1/2], can order ties but never outweigh a vote.
    """
    if scores.shape[2] < 2:
        raise ValueError("ensemble.combine='vote' needs one score a class; use mean or rank for membership")
    votes = (scores.argmax(axis=2)[..., None] == np.arange(scores.shape[2])).sum(axis=0)
    means = scores.mean(axis=0)
    low, high = means.min(), means.max()
    ties = (means - low) / (high - low) if high > low else np.zeros_like(means)
    return (votes + 0.5 * ties) / (len(scores) + 0.5)


def rank(scores: np.ndarray) -> np.ndarray:
    """Mean rank within the split, in (0, 1]: [M,N,K] -> [N,K]. Transductive: a score depends on the other rows of the split."""
    return rankdata(scores, axis=1).mean(axis=0) / scores.shape[1]


def standardised(scores: np.ndarray) -> np.ndarray:
    """Each member's scores at mean 0 and deviation 1 within the split, 0 where all are equal: [M,N,K] -> [M,N,K]."""
    scores = scores.astype(np.float64)
    spread = scores.std(axis=1, keepdims=True)
    return (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)


def weighted(scores: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Sum of the standardised scores by weights [M]: [M,N,K] -> [N,K]. Transductive, as `rank`."""
    return np.tensordot(np.asarray(weights, np.float64), standardised(scores), axes=1)


COMBINE = {"mean": mean, "logits": logits, "vote": vote, "rank": rank}


def sources(run: Run) -> Iterator[methods.Read]:
    """What the members have read, and what they were chosen by."""
    for _, member in members(run):
        if run.config.ensemble.admit or run.config.ensemble.best_variant:
            yield run, "chose its members by", functools.partial(member.rows, "valid")
        yield from methods.sources(member)


def inner(config: Config) -> list[Config]:
    """Those of the members, of each variant."""
    return [methods.load(path).config for path in config.ensemble.runs] or list(variants(config).values())


def transductive(config: Config) -> list[str]:
    """Ranks are."""
    why = {"rank": "ranks the images of the split among each other", "weighted": "standardises scores over the images of the split"}
    name = config.ensemble.combine
    return [f"ensemble.combine={name!r} {why[name]}"] if name in why else []


def network(run: Run) -> Run | None:
    """That of the first member."""
    return methods.network(members(run)[0][1])


def describe(run: Run, target: Target | None = None) -> list[tuple[str, str]]:
    """The number of members, and what one of them would take."""
    children = [member for _, member in members(run)]
    chosen = next((child for child in children if network_config(child.config).method == "gradient"), children[0])
    which = "one of them:" if run.config.ensemble.variants else "each:"
    return [("children", f"{len(children)}, {which}"), *methods.describe(chosen, target)]
