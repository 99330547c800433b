"""Rounds of self-training: what one round is sure of joins the training images of the next, with the labels that it gave them."""

import logging
from collections.abc import Iterator

import numpy as np

from fingerprint_jax import Config, methods
from fingerprint_jax.data import tables
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runtime.targets import Target
from fingerprint_jax.stats import score_metrics

log = logging.getLogger(__name__)

FIELDS = {"pseudo": dict, "pseudo.source": str, "member": dict}


def round_of(run: Run, number: int) -> Run:
    """The child of a round. Round 0 learns from no pseudo-labels, every other from those of the round before."""
    child = run.child(f"round{number}", run.config.member, seed=run.config.seed, fold=run.config.data.fold)
    if number:
        child.config.data.extra_labels = str(run.workdir / "labels" / f"round{number}.csv")
    return child


def chosen(run: Run) -> Run:
    """The child whose predictions are the result; raises ValueError where the rounds are not done, or not those of this run."""
    if not run.done:
        raise ValueError(f"{run.workdir} is not finished, no round is chosen yet: the command that trains it goes on")
    if not isinstance(number := run.outcome.get("chosen"), int):
        raise ValueError(f"{run.workdir / 'done'} names no round: remove it, and the command that trains the run writes it anew")
    return round_of(run, number)


def check(run: Run) -> None:
    """What the rounds learn from, and the first of them."""
    data, pseudo = run.config.data, run.config.pseudo
    if run.task.membership:
        raise ValueError(f"method='pseudo_label' needs one score a class, {run.task.name} has one score in all")
    if data.extra_labels:
        raise ValueError(f"data.extra_labels={data.extra_labels!r}: method='pseudo_label' writes its own, leave it empty")
    if pseudo.source not in run.source.splits or pseudo.source == run.target:
        others = [split for split in run.source.splits if split != run.target]
        raise ValueError(f"pseudo.source={pseudo.source!r}: labelled rows take no pseudo-labels, use one of {', '.join(others)}")
    methods.check(round_of(run, 0))


def fit(run: Run) -> None:
    """Trains the rounds, until the accuracy on `sequestered` falls, then the result is the round before, or until no image joins.

    `done` holds the chosen round, why the rounds stopped early ('' where they did not), and of each round the images of each
    class that joined its training, and its accuracy on `sequestered`, null where the run has no such rows.
    """
    source, least, last = run.config.pseudo.source, run.config.pseudo.least, run.config.pseudo.rounds
    with methods.fitting(run):
        rounds, accuracies, best, stopped = [], [], 0, ""
        joined = np.zeros(run.source.num_classes, np.int64)
        for number in range(last + 1):
            current = round_of(run, number)
            log.info("%s: %s images a class joined", current.workdir, joined.tolist())
            methods.fit(current)
            if run.config.data.sequester:
                labels, scores = run.rows("sequestered").labels, methods.predict(current, "sequestered").scores
                accuracies.append(score_metrics.quick(labels, scores, run.task.watched)["accuracy"])
            rounds.append({"joined": joined.tolist(), "sequestered": accuracies[-1] if accuracies else None})
            if accuracies and number and accuracies[-1] < accuracies[-2]:
                stopped = f"the accuracy on sequestered fell from {accuracies[-2]:.4f} to {accuracies[-1]:.4f}"
                break
            best = number
            if number == last:
                break
            rows, scores = run.rows(source), methods.predict(current, source).scores
            sure = select(rows.ids, scores, least, run.config.pseudo.cap)
            if not len(sure):
                stopped = f"no image of {source} has a score of pseudo.least={least}"
                break
            labels = scores[sure].argmax(axis=1)
            joined = np.bincount(labels, minlength=len(joined))
            tables.write_extra_labels(round_of(run, number + 1).config.data.extra_labels, source, rows.ids[sure], labels)
        if stopped:
            log.info("%s: %s; the result is round %d", run.workdir, stopped, best)
        run.finish(chosen=best, stopped=stopped, rounds=rounds)


def select(ids: np.ndarray, scores: np.ndarray, least: float, cap: int) -> np.ndarray:
    """Which images join: ids [N], scores [N,K] -> positions [M], increasing.

    Those whose highest score is at least `least`, compared as float32; of each class at most `cap` (0: all), the highest scores
    first, ties in the order of the ids.
    """
    labels, highest = scores.argmax(axis=1), scores.max(axis=1)
    order = np.lexsort((ids, -highest))
    order = order[highest[order] >= np.float32(least)]
    return np.sort(np.concatenate([order[labels[order] == k][: cap or None] for k in range(scores.shape[1])]))


def state(run: Run) -> dict:
    """The state of the chosen round."""
    child = chosen(run)
    return {str(child.workdir): methods.state(child)}


def predict(run: Run, split: str) -> Predictions:
    """The scores of the chosen round."""
    return methods.predict(chosen(run), split)


def reads(config: Config, split: str) -> bool:
    """Always: of a round nothing is known before it."""
    return True


def sources(run: Run) -> Iterator[methods.Read]:
    """Nothing is known of its own; those of a round, as of what the network of all rounds begins with."""
    yield run, "may have read", methods.everything(run)
    yield from methods.sources(chosen(run) if run.done else round_of(run, 0))


def inner(config: Config) -> list[Config]:
    """That of a round."""
    return [config.member]


def transductive(config: Config) -> list[str]:
    """The images that join."""
    return [f"pseudo-labels of {config.pseudo.source} were trained on"]


def network(run: Run) -> Run | None:
    """That of the chosen round."""
    return methods.network(chosen(run))


def describe(run: Run, target: Target | None = None) -> list[tuple[str, str]]:
    """The number of rounds, and what one of them would take."""
    return [("rounds", f"{run.config.pseudo.rounds + 1}, each:"), *methods.describe(round_of(run, 0), target)]
