"""Permutation p-values for membership, and which rows of a run they can be had for."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu, rankdata

from fingerprint_jax import bootstrap, methods
from fingerprint_jax.data.source import Rows
from fingerprint_jax.run import Run

PERMUTATIONS = 999
CONDITIONAL = (
    "intervals hold the fits fixed and are too narrow. Without any effect they hold chance in about 83% of cases instead of 95%"
    " where there are two classes, in about 91% where there are five (simulated)"
)


def permutation_p(
    statistic: Callable[[np.ndarray], np.ndarray], labels, groups=None, permutations: int = PERMUTATIONS, seed: int = 0
) -> dict:
    """One-sided p-values by permuting the labels of whole groups (without groups: of rows).

    A group keeps its rows together and hands on its label as one unit; a group with both labels is split into a unit a label.
    p = (1 + #(permuted >= observed)) / (1 + permutations), which is valid for any number of permutations (Phipson & Smyth 2010).
    The labels of units must be exchangeable: then their sizes may differ, but a label must not go with the size.

    Args:
        statistic: labels [N] -> [M], one value a method, higher is more evidence. Where labels were used to make the scores it
            has to make them anew; `auc_of` is for scores that no label of these rows has entered.
        labels: int [N] in {0, 1}.
        groups: [N].
        permutations: B; the smallest p is 1 / (1 + B).
        seed: of the permutations, which all methods share.

    Returns:
        p: [M].
        family_wise: the p of the largest statistic of all methods (Westfall & Young 1993): right however many were tried.
        permutations: B.
        split_groups: groups that held both labels.
        null: [B,M], the statistics of the permuted labels, which are the same ones for the same labels, groups and seed.

    Raises ValueError for other labels, one class only, or a statistic that is not finite.
    """
    labels = np.asarray(labels)
    if np.unique(labels).tolist() != [0, 1]:
        raise ValueError(f"a permutation needs rows labelled 0 and 1, these have {np.unique(labels).tolist()}")
    group = bootstrap.as_they_come(np.arange(len(labels)) if groups is None else groups)
    units, first, unit = np.unique(2 * group + labels, return_index=True, return_inverse=True)
    unit_labels = labels[first]
    rng = np.random.default_rng(seed)
    observed = np.atleast_1d(statistic(labels))
    null = np.empty((permutations, len(observed)))
    for permuted in null:
        permuted[:] = statistic(rng.permutation(unit_labels)[unit])
        if not np.isfinite(permuted).all() or not np.isfinite(observed).all():
            raise ValueError(f"the statistic is not finite: {observed.tolist()}, and {permuted.tolist()} after a permutation")
    return p_of(observed, null) | {"permutations": permutations, "split_groups": len(units) - len(np.unique(group)), "null": null}


NOTHING_SYNTHETIC = "a difference between the real images; no synthetic image was read"


def p_of(observed: np.ndarray, null: np.ndarray) -> dict:
    """`p` and `family_wise` as `permutation_p` gives them, of statistics [M] and those after each permutation [B,M]."""
    reached = 1 + (null >= observed).sum(axis=0), 1 + (null.max(axis=1) >= observed.max()).sum()
    return {"p": (reached[0] / (1 + len(null))).tolist(), "family_wise": float(reached[1] / (1 + len(null)))}


def refitted_p(run: Run, permutations: int) -> dict:
    """`permutation_p` of the AUC of a cross-fitted run, whose estimators are fitted anew to every permutation of the labels.

    The folds, which are stratified, are drawn anew as well; M is 1, the AUC that of column 0.

    Raises ValueError where `unavailable` gives a reason, of refits.
    """
    rows = run.rows("heldout")
    if reason := unavailable(run, rows, refitted=True):
        raise ValueError(f"{run.workdir}: {reason}")

    def statistic(labels: np.ndarray) -> np.ndarray:
        scores = Run(run.config, run.workdir, run.step, labels=labels).predict("heldout").scores[:, 0]
        return auc_of(scores)(labels) if np.ptp(scores) else np.array([0.5])

    return permutation_p(statistic, rows.labels, rows.groups, permutations)


def auc_of(scores) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic of scores [N] or [N,M] of M methods: labels [N] -> AUC [M], by rank sums (Mann & Whitney 1947).

    Raises ValueError for scores that are not finite, or all equal.
    """
    scores = np.asarray(scores, np.float64).reshape(len(scores), -1)
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).any(axis=1).sum()} of {len(scores)} scores are not finite")
    constant = np.flatnonzero((scores == scores[0]).all(axis=0))
    if len(constant):
        raise ValueError(f"all {len(scores)} scores are {scores[0, constant[0]]:g}: they tell no two images apart")
    ranks = rankdata(scores, axis=0)  # tied scores share their mean rank, a multiple of 1/2: sums are exact

    def auc(labels):
        used = ranks[labels == 1]
        n = len(used)
        return (used.sum(axis=0) - n * (n + 1) / 2) / (n * (len(labels) - n))

    return auc


def unavailable(run: Run, rows: Rows, refitted: bool = False) -> str | None:
    """Why permuting the labels of these rows would give a wrong p for the run's scores; None where it is right.

    It is right where no label of these rows, or of another image of their groups, had a part in their scores: on a fixed held-out
    fold, and on a packed split that the run did not read labels of. A cross-fitted score depends on the labels of the other folds:
    permuting them afterwards leaves that out and gives false alarms. So does a label that goes with the size of a group.

    Where the estimators of a cross-fitted run are `refitted` to every permutation (`refitted_p`), it is also right if nothing else
    read the labels: a network would have to be trained anew.
    """
    if len(np.unique(rows.labels)) < 2:
        return f"all {len(rows)} labels are {rows.labels[0]}"
    if reason := uneven(rows.labels, rows.groups):
        return reason
    if refitted and (run.config.method != "ensemble" or len(rows) < len(run.source.rows(run.target))):
        return "refits are of the folds of an ensemble, which together hold out every labelled image"
    return _learned(run, rows, refitted)


def cross_fitted(run: Run, split: str) -> bool:
    """Whether a split is that of all folds, whose images are scored by what learned from the labels of the others.

    Resampling the scores leaves that out: its intervals hold the fits fixed and are too narrow (docs/statistics.md).
    """
    data = run.config.data
    folds = split.partition(":")[0] == "heldout" and data.folds and data.fold < 0
    return bool(folds and _learned(run, run.rows(split), certain=True))


def readers(run: Run) -> Iterator[Run]:
    """The runs of the task of a run, itself and those that it stands on, that read labelled images; each as it sees these data."""
    seen = set()
    for source, _, read in _label_sources(run):
        if source.config.task != run.config.task or source.workdir in seen:
            continue
        try:
            index = read().index
        except ValueError:  # of other data than these it holds nothing out, and chose by nothing of these
            continue
        if np.isin(index, source.source.rows(source.target).index).any():
            seen.add(source.workdir)
            yield source


def _learned(run: Run, rows: Rows, refitted: bool = False, certain: bool = False) -> str | None:
    """Which labels of these rows, or of their groups, had a part in the run's scores, or may have; None where none had.

    Args:
        run: that gave the scores.
        rows: of it.
        refitted: leaves out what estimators read.
        certain: leaves out what only may have.
    """
    real = run.source.rows(run.target).index
    for source, what, read in _label_sources(run):
        unknown, elsewhere = _unknown(run, source, what)
        if unknown and not certain:
            return unknown
        if elsewhere or (refitted and source.config.method == "classical"):
            continue
        seen = read()
        # Only real images share groups; the names of others may coincide.
        groups = seen.groups[np.isin(seen.index, real)]
        shared = int((np.isin(rows.index, seen.index) | np.isin(rows.groups, groups)).sum())
        if shared:
            return f"{source.workdir} {what} the labels of {shared} of these {len(rows)} images or of their groups; {_remedy(run)}"
    return None


def _unknown(run: Run, source: Run, what: str) -> tuple[str | None, bool]:
    """Why it is not known which labels a source of a run read, if so; and whether that is since it read other data."""
    if source.config.task != run.config.task:
        return f"{source.workdir} {what} images of {source.config.task}: whether these are among them is not known", True
    # Labels stand in the target split and in extra labels alone: the others may be packed anew. Record numbers are of one data set.
    if not source.same_target or source.source.fingerprints != run.source.fingerprints:
        return f"{source.workdir} {what} images of another data set: whether these patients are among them is not known", True
    moved, before, now = list(source.moved), source.provenance["fingerprints"], source.fingerprints
    if "extra_labels" in before.keys() | now.keys() and before != now:  # they are of images of the other splits
        moved.append("data.extra_labels or its images")
    # A stream that came or went: what it read before is not in the config.
    came = [c for c in source.provenance["changes"] if c["field"].startswith("data.streams.") and not (c["from"] and c["to"])]
    moved += [change["field"] for change in came]
    if moved:
        return f"{', '.join(moved)} changed after {source.workdir} was started: what it learned from is not known", False
    return None, False


def uneven(labels: np.ndarray, groups: np.ndarray) -> str | None:
    """Why the labels of groups cannot be exchanged: they go with the sizes of the groups; None where they do not."""
    _, group = np.unique(groups, return_inverse=True)
    unit, size = np.unique(2 * group + labels, return_counts=True)
    used, others = size[unit % 2 == 1], size[unit % 2 == 0]
    of_size: Any = mannwhitneyu(used, others)  # the stubs of its result differ between versions of scipy
    if len(np.unique(size)) > 1 and of_size.pvalue < 0.01:
        means = f"used groups have {used.mean():.1f} images each, the others {others.mean():.1f}"
        return f"{means}: where the label goes with the size, labels of groups cannot be exchanged; score equally many of each"
    return None


def _remedy(run: Run) -> str:
    fields = "--config.data.folds=2 --config.data.fold=0"
    if run.config.decision.known == "heldout":  # from which a decision on it could then not learn
        fields += " --config.data.valid=0.2 --config.decision.known=valid"
    return f"train on a fixed half, the same for every member, with {fields} and score heldout"


def _label_sources(run: Run) -> Iterator[tuple[Run, str, Callable[[], Rows]]]:
    """The rows whose labels had a part in a run's scores: (the run that read them, what for, what gives the rows)."""
    config, name = run.config, run.workdir.name
    rows = functools.partial(functools.partial, run.rows)
    if name.startswith("watch-") and not (run.workdir / "lock").exists():  # kept by --watch, never trained there
        yield run, "chose its checkpoint by", rows(name.removeprefix("watch-").replace("-", ":"))
    if config.method == "gradient":
        for stream in config.data.streams if config.num_steps else ():
            yield run, "was trained on", _present(run, [run.split_of(stream)])
        yield from _gallery(run, "")
        if config.best:
            yield run, "chose its checkpoint by", rows("valid")
        if config.init_from and not (Path(config.init_from) / "config.json").exists():
            yield run, f"began with {config.init_from}, which is gone and may have read", _everything(run)
        elif origin := methods.get("gradient").origin(run):
            yield from _label_sources(origin)
    elif config.method == "classical":
        yield from _gallery(run, "labelled")
        if encoder := methods.get("classical").encoder(run):
            yield from _label_sources(encoder)
    elif config.method == "ensemble":
        for _, member in methods.get("ensemble").members(run):
            if config.ensemble.admit or config.ensemble.best_variant:
                yield run, "chose its members by", functools.partial(member.rows, "valid")
            yield from _label_sources(member)
    else:  # nothing is known of it
        yield run, "may have read", _everything(run)


def _everything(run: Run) -> Callable[[], Rows]:
    return lambda: Rows.concatenate([run.source.rows(split) for split in run.source.splits])


def _gallery(run: Run, learned: str) -> Iterator[tuple[Run, str, Callable[[], Rows]]]:
    for stream, splits in run.config.gallery.items():
        what = "fitted its estimator to" if stream == learned else "compares images with a gallery that may depend on"
        if splits:
            yield run, what, _present(run, splits)


def _present(run: Run, splits: Sequence[str]) -> Callable[[], Rows]:
    """What a run trains on of splits. Of other data: what is there of them, and no extra labels, whose images may be missing."""
    there = [split for split in splits if split.partition(":")[0] in run.source.splits]
    rows = run.training_rows if run.fingerprints == run.provenance["fingerprints"] else run.rows
    return lambda: (
        Rows.concatenate([rows(split) for split in there]) if there else run.source.rows(run.target).take(np.array([], int))
    )
