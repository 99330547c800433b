"""Scores a split of a run, or a prediction file; results.json."""

import contextlib
import json
from collections.abc import Generator
from pathlib import Path

import numpy as np

from fingerprint_jax import methods
from fingerprint_jax.data import tables, tasks
from fingerprint_jax.data.source import Rows, open_source
from fingerprint_jax.evaluation import lineage
from fingerprint_jax.evaluation.decide import decide
from fingerprint_jax.evaluation.lineage import in_sample, transductive, unavailable
from fingerprint_jax.evaluation.results import SCHEMA, figures, scored_on
from fingerprint_jax.runs.config import config_hash
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runs.views import PARTS
from fingerprint_jax.runtime import distributed, environment, files, plugins
from fingerprint_jax.stats import decisions, metrics, permutation, score_metrics
from fingerprint_jax.stats.permutation import auc_of, permutation_p


@distributed.by_first
def _record(run: Run, split: str, results: dict) -> None:
    """Puts the results of a split into results.json, beside those of others; another evaluation of the run waits meanwhile."""
    with files.locked(run.workdir / "results.lock"):
        document = {"splits": {}} | figures(run.workdir)
        document |= {
            "schema": SCHEMA,
            "task": run.config.task,
            "config": run.config.to_dict(),
            "config_hash": config_hash(run.config),
            "fingerprints": run.fingerprints,
            "versions": environment.libraries(),
            "environment": environment.record(),
            "changes": run.provenance["changes"],
        }
        document["splits"][split] = results
        files.write_text(run.workdir / "results.json", json.dumps(document, indent=1))


def evaluate(
    run: Run, split: str, submission: dict | None = None, refits: int = 0, permutations: int = permutation.PERMUTATIONS
) -> dict:
    """Predicts a split, decides, scores it where its labels are known; writes predictions, results.json, the submission.

    Args:
        run: a run with a checkpoint, or an ensemble or classical run that is fitted.
        split: `heldout`, `valid`, `sequestered` or a packed split.
        submission: `{path, header, extension, style}`, or None.
        permutations: of the labels, where the scores do not depend on them.
        refits: permutations for which a run whose scores depend on the labels is fitted anew, to have a p; 0: then it has none.

    Returns:
        The results of the split, as in results.json.
    """
    run = methods.pinned(run)
    if submission:
        tables.check_style(run.config.task, submission["style"])
    rows = run.rows(split)
    if not len(rows):
        raise ValueError(f"split {split} has no rows that this run may use: they are held out or validation")
    with renewed(run, split):
        predictions = methods.predict(run, split)
        labels = decide(run, split, predictions)
    results = {
        "split": split,
        "n": len(rows),
        **_seen(run),
        "decision": run.config.decision.to_dict() | {"uses_class_balance": decisions.uses_class_balance(run.config.decision.name)},
        "state": (state := methods.state(run)),
        "checkpoints": list(methods.checkpoints(run.workdir, state).values()),
        "transductive": transductive(run.config),
        "in_sample": in_sample(run, split),
        "unfinished": methods.unfinished(run, state),
        "predictions": str(run.place / "predictions" / f"{split.replace(':', '-')}.csv"),
        "computed_by": predictions.by,
    }
    if (rows.labels >= 0).all():
        results["metrics"] = metrics.report(rows.labels, labels, run.source.num_classes, groups=rows.groups)
        try:
            results["metrics"] |= score_rows(run, rows, predictions, refits if split == "heldout" else 0, permutations)
            if "permutation" in results["metrics"] and not tables.all_anew():
                _keep_refits(run, split, results)
            results["metrics"]["cross_fitted"] = lineage.cross_fitted(run, split)
            results["runs_beside"] = distributed.first(lambda: runs_beside(run, split))
        except ValueError as error:
            raise ValueError(f"split {split}: {error}") from None
    _record(run, split, results)
    if submission:
        order = np.argsort(predictions.ids, kind="stable")  # records are in the order of their pixels
        tables.write_submission(ids=predictions.ids[order], labels=labels[order], **submission)
    return results


def _keep_refits(run: Run, split: str, results: dict) -> None:
    """Puts the p by refits of the same scores, which took long, back where none is asked for now."""
    known = distributed.first(lambda: figures(run.workdir).get("splits", {}).get(split, {}))
    before = known["metrics"].get("permutation") if isinstance(known.get("metrics"), dict) else None
    same = all(known.get(name) == results[name] for name in (*_seen(run), "n", "state", "checkpoints"))
    if same and isinstance(before, dict) and "null" in before and results["metrics"]["permutation"]["p"] is None:
        results["metrics"]["permutation"] = before


@contextlib.contextmanager
def renewed(run: Run, split: str) -> Generator[None]:
    """The block that predicts and decides a split.

    Before its first figures, or those of other data or of another config, records are compared, and in the block the tables of
    that split and of the one that it decides by, of the run and of all that it stands on, are made anew.

    Whatever lies there was not made by what is about to be said of it. Raises ValueError for records that are not those that
    summary.json describes.
    """

    def first() -> bool:
        known = figures(run.workdir).get("splits", {}).get(split, {})
        return "metrics" not in known or any(known.get(name, {}) != value for name, value in _seen(run).items())

    with contextlib.ExitStack() as block:
        if distributed.first(first):
            verify(run, split)
            splits = {split, run.packed(split), run.config.decision.known}
            block.enter_context(tables.anew({name.replace(":", "-") for name in splits}))
        yield


def _seen(run: Run) -> dict:
    """What the figures of a split are of, as `scored_on` gives it."""
    of = {"data_dir": run.config.data_dir, "fingerprints": run.fingerprints, "config_hash": config_hash(run.config)}
    return of | {"code": plugins.code(run.config)}


def verify(run: Run, split: str) -> None:
    """Compares the records of the data of a run with their fingerprints.

    Raises ValueError where they differ, or cannot be compared in a split that has a part in the figures of `split`.
    """
    needed = None
    if not any(config.data.extra_labels for config in lineage.stands_on(run.config)):  # they are of any split
        needed = {each for each in run.source.splits if methods.reads(run.config, each)}
        needed |= {run.packed(each) for each in (split, run.config.decision.known) if each}
    distributed.first(lambda: run.source.verify(needed))


def runs_beside(run: Run, split: str) -> int:
    """How many other runs in the folder of a run have figures of this split of the same data."""
    base = split.partition(":")[0]
    packed = run.target if base in PARTS else base
    count = 0
    for path in run.workdir.parent.glob("*/results.json"):
        try:
            other = figures(path.parent)
            of = scored_on(other, split)["fingerprints"] or other["fingerprints"]  # of an older version the split does not say it
            same = of[packed] == run.fingerprints[packed]
            same = same and "metrics" in other["splits"][split]
        except (OSError, ValueError, KeyError, TypeError):  # no results of ours, or of other data
            continue
        count += same and not path.parent.samefile(run.workdir)
    return count


def score_rows(
    run: Run, rows: Rows, predictions: Predictions, refits: int = 0, permutations: int = permutation.PERMUTATIONS
) -> dict:
    """Figures of the scores of rows with known labels: `scores` and `permutation`, as in results.json; empty where there are none.

    Raises ValueError where a p is asked of scores that are all equal.
    """
    scores = predictions.scores
    if not run.task.membership:
        return {"scores": {"calibration": score_metrics.calibration(rows.labels, scores)}} if predictions.probabilities else {}
    groups = rows.groups if len(np.unique(rows.groups)) < len(rows) else None
    out = {"scores": score_metrics.score_report(rows.labels, scores[:, 0], predictions.probabilities, groups)}
    reason = lineage.unavailable(run, rows)
    out["permutation"] = {"p": None, "reason": reason}
    if not methods.reads_synthetic(run.config):
        out["permutation"]["note"] = permutation.NOTHING_SYNTHETIC
    if not reason:
        found = permutation.permutation_p(permutation.auc_of(scores[:, 0]), rows.labels, groups, permutations)
    elif refits and not (unfit := lineage.unavailable(run, rows, refitted=True)):
        found = refitted_p(run, refits)
    else:
        if not refits and not lineage.unavailable(run, rows, refitted=True):
            reason += "; or have it fitted anew to permuted labels, with --refits=199"
        out["permutation"]["reason"] = unfit if refits else reason
        return out
    p, null = found["p"][0], found["null"][:, 0]
    out["permutation"] |= {"p": p, "permutations": found["permutations"], "split_groups": found["split_groups"]}
    out["permutation"] |= {"null_mean": float(null.mean()), "null_interval": np.percentile(null, [2.5, 97.5]).tolist()}
    if reason:  # the others can be had from the scores again
        out["permutation"] |= {"reason": None, "null": null.tolist()}
    return out


def score_files(task: str, predictions: str, truth: str, output: str) -> dict:
    """Scores a prediction file against a truth file, writes `output`/results.json and returns its content."""
    classes = len(tasks.of(task).classes)
    ids, labels = tables.read_labels(predictions, classes, task)
    true_ids, true_labels = tables.read_labels(truth, classes, task)
    try:
        order = tables.align(true_ids, ids, either=True)
    except ValueError as error:
        raise ValueError(f"{predictions} does not fit {truth}: {error}") from None
    if (true_labels == true_labels[0]).all():
        raise ValueError(f"{truth}: all {len(true_labels)} labels are {true_labels[0]}, a score needs at least two classes")
    path, remedy = Path(output) / "results.json", "it is not replaced, give another --output"
    if path.exists():
        if "splits" in files.read_json(path, {}, remedy):
            raise ValueError(f"{path} has the figures of a run: {remedy}")
        files.read_json(path, {"schema": int, "task": str, "environment": dict, "metrics": dict}, remedy)  # else somebody else's
    results = {"schema": SCHEMA, "task": task, "environment": environment.code()}
    results["metrics"] = metrics.report(true_labels, labels[order], classes)
    if tasks.of(task).membership:
        results["metrics"]["labels_p"] = metrics.labels_p(true_labels, labels[order])
    files.write_text(path, json.dumps(results, indent=1))
    return results


def validate(submission: str, task: str, data_dir: str, split: str) -> np.ndarray:
    """Checks that a submission has each id of a packed split once and labels of the task only; the rows a label [K].

    Raises ValueError with the first ids or the line that are wrong.
    """
    rows, classes = open_source(data_dir, task).rows(split), len(tasks.of(task).classes)
    ids, labels = tables.read_labels(submission, classes, task)
    try:
        tables.align(rows.ids, ids)
    except ValueError as error:
        raise ValueError(f"{submission} does not fit the split {split} of {data_dir}: {error}") from None
    return np.bincount(labels, minlength=classes)


def refitted_p(run: Run, permutations: int) -> dict:
    """`permutation_p` of the AUC of a cross-fitted run, whose estimators are fitted anew to every permutation of the labels.

    The folds, which are stratified, are drawn anew as well; M is 1, the AUC that of column 0.

    Raises ValueError where `unavailable` gives a reason, of refits.
    """
    rows = run.rows("heldout")
    if reason := unavailable(run, rows, refitted=True):
        raise ValueError(f"{run.workdir}: {reason}")

    def statistic(labels: np.ndarray) -> np.ndarray:
        scores = methods.predict(Run(run.config, run.workdir, run.step, labels=labels), "heldout").scores[:, 0]
        return auc_of(scores)(labels) if np.ptp(scores) else np.array([0.5])

    return permutation_p(statistic, rows.labels, rows.groups, permutations)
