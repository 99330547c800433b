"""Scores a run's checkpoint, or any prediction file.

python -m fingerprint_jax.evaluate --workdir=runs/a --split=test_real --submission=run.csv
python -m fingerprint_jax.evaluate --workdir=runs/a --split=valid --watch=600
python -m fingerprint_jax.evaluate --task=subtask1 --predictions=p.csv --truth=t.csv --output=DIR
python -m fingerprint_jax.evaluate --task=subtask1 --validate=run.csv --data_dir=DATA --split=test_real
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from fingerprint_jax import (
    Config,
    cli,
    decisions,
    distributed,
    environment,
    files,
    methods,
    metrics,
    paths,
    preemption,
    report,
    score_metrics,
    significance,
    tables,
    watch,
)
from fingerprint_jax.checkpoint import Checkpoints
from fingerprint_jax.data import folders
from fingerprint_jax.data.source import Rows, open_source
from fingerprint_jax.report import words
from fingerprint_jax.run import PARTS, TARGET, Predictions, Run, config_hash
from fingerprint_jax.writer import show_log

SCHEMA = 2  # of results.json, docs/results.md
CLASSES = {task: len(names) for task, names in folders.CLASSES.items()}


def decide(run: Run, split: str, predictions: Predictions) -> np.ndarray:
    """Labels [N] by the run's decision. What a decision learns from is never what it decides about.

    Raises ValueError where the decision would learn from the rows that it decides, or the known split has none.
    """
    decision = run.config.decision
    function = decisions.get(decision.name)
    params = decision.params.to_dict()
    decisions.check(decision)
    if not decision.known:
        return function(predictions.scores, None, None, **params)
    own = run.own  # scored on other data, a run still decides by what it learned on its own
    if own.packed(decision.known) == own.target and not own.same_target:
        raise ValueError(
            f"decision.known={decision.known!r}: the images that the decision learns from are gone: {own.config.data_dir} was"
            f" packed anew after {run.workdir} was started. Train it anew, or write a fixed decision into its config.json"
            " (decision.name 'threshold', its params and an empty known)"
        )
    known, rows, asked = own.predict(decision.known), own.rows(decision.known), run.rows(split)
    packed = run.packed(split)
    same_split = own.source.fingerprints.get(packed) == run.source.fingerprints[packed]
    if packed != own.packed(decision.known):
        again = 0
    elif same_split:  # by their ids: other splits may have moved the record numbers
        again = np.isin(asked.ids, rows.ids).sum()
    else:
        again = np.isin(run.source.digests(asked.index), own.source.digests(rows.index)).sum()
    if not again:
        return function(predictions.scores, known.scores, rows.labels, **params)
    by_folds = run.config.method == "ensemble" and run.config.data.folds and run.config.data.fold < 0
    if split != decision.known or not by_folds or not same_split:
        images = f"{split} itself" if same_split else f"{again} of its images, which {own.config.data_dir} has too"
        raise ValueError(f"decision.known={decision.known!r}: a decision on {split} cannot learn from {images}")
    fold = own.folds(rows)
    labels = np.empty(len(rows), np.int64)
    for k in np.unique(fold):
        inside, outside = fold == k, fold != k
        labels[inside] = function(predictions.scores[inside], known.scores[outside], rows.labels[outside], **params)
    return labels


def figures(workdir: Path) -> dict:
    """The content of results.json; empty where there is none, or that of another version, whose splits would be read wrongly."""
    path, remedy = workdir / "results.json", "move it away, and evaluate writes it anew"
    try:
        document = files.read_json(path, {}, remedy)
    except FileNotFoundError:
        return {}
    if document.get("schema") != SCHEMA:
        return {}
    splits = document.get("splits")
    if not isinstance(splits, dict) or any(not isinstance(found, dict) for found in splits.values()):
        raise ValueError(f"{path} cannot be used (a split is no object): {remedy}")
    return document


@distributed.by_first
def _record(run: Run, split: str, results: dict) -> None:
    """Puts the results of a split into results.json, beside those of others; another evaluation of the run waits meanwhile."""
    with files.locked(run.workdir / "results.lock"):
        document = figures(run.workdir) or {"schema": SCHEMA, "splits": {}}
        document |= {
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
    run: Run, split: str, submission: dict | None = None, refits: int = 0, permutations: int = significance.PERMUTATIONS
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
    if submission:
        tables.check_style(run.config.task, submission["style"])
    rows = run.rows(split)
    if not len(rows):
        raise ValueError(f"split {split} has no rows that this run may use: they are held out or validation")
    if distributed.first(lambda: "metrics" not in figures(run.workdir).get("splits", {}).get(split, {})):
        # The first figure of a split: whatever lies there was not made by what is about to be said of it.
        distributed.first(run.source.verify)
        run.forget(split)
    predictions = run.predict(split)
    labels = decide(run, split, predictions)
    results = {
        "split": split,
        "n": len(rows),
        "decision": run.config.decision.to_dict() | {"uses_class_balance": decisions.uses_class_balance(run.config.decision.name)},
        "state": methods.get(run.config.method).state(run),
        "transductive": transductive(run.config),
        "in_sample": in_sample(run, split),
        "predictions": str(run.workdir / "predictions" / f"{split.replace(':', '-')}.csv"),
    }
    if (rows.labels >= 0).all():
        results["metrics"] = metrics.report(rows.labels, labels, run.source.num_classes, groups=rows.groups)
        try:
            results["metrics"] |= score(run, rows, predictions, refits if split == "heldout" else 0, permutations)
            results["metrics"]["cross_fitted"] = significance.cross_fitted(run, split)
            results["runs_beside"] = distributed.first(lambda: runs_beside(run, split))
        except ValueError as error:
            raise ValueError(f"split {split}: {error}") from None
    _record(run, split, results)
    if submission:
        order = np.argsort(predictions.ids, kind="stable")  # records are in the order of their pixels
        tables.write_submission(ids=predictions.ids[order], labels=labels[order], **submission)
    return results


def runs_beside(run: Run, split: str) -> int:
    """How many other runs in the folder of a run have figures of this split of the same data."""
    base = split.partition(":")[0]
    packed = run.target if base in PARTS else base
    count = 0
    for path in run.workdir.parent.glob("*/results.json"):
        try:
            other = figures(path.parent)
            same = other["fingerprints"][packed] == run.fingerprints[packed] and "metrics" in other["splits"][split]
        except (OSError, ValueError, KeyError, TypeError):  # no results of ours, or of other data
            continue
        count += same and not path.parent.samefile(run.workdir)
    return count


def transductive(config: Config) -> list[str]:
    """Why labels or scores of a run of this config may depend on images that it was asked about; empty where they do not."""
    reasons, decision, asked = [], config.decision, TARGET[config.task].replace("train", "test")
    if decision.name == "top_fraction" or (decision.name == "mean_plus_std" and not decision.known):
        reasons.append(f"the decision {decision.name} sees all images of the split at once")
    for each in _stands_on(config):
        if each.method == "pseudo_label":
            reasons.append(f"pseudo-labels of {each.pseudo.source} were trained on")
        if each.data.extra_labels:
            reasons.append("images of data.extra_labels were trained on")
        if any(split.partition(":")[0] == asked for splits in each.get("gallery", {}).values() for split in splits):
            reasons.append(f"images of {asked} are in the gallery")
        if each.method == "ensemble" and each.ensemble.combine == "rank":
            reasons.append("ensemble.combine='rank' ranks the images of the split among each other")
    return list(dict.fromkeys(reasons))


def in_sample(run: Run, split: str) -> list[str]:
    """Why the figures of a split are too good, or may be: its images were trained on, or have chosen; empty where they were not."""
    base = split.partition(":")[0]
    if base not in (run.target, *PARTS):
        return []
    here, elsewhere, out = [], [], []
    for reader in significance.readers(run):
        same = reader.same_target and reader.source.fingerprints[run.target] == run.source.fingerprints[run.target]
        (here if same else elsewhere).append(reader)
    reasons = {
        run.target: "holds images that the run was trained on: its figures are too good.",
        "valid": "may have chosen the checkpoint: its figures are too good. Quote heldout.",
        "sequestered": "may have chosen the round of pseudo-labels: its figures are too good. Quote heldout.",
    }
    if here and base in reasons:
        out.append(f"The split {base} {reasons[base]}")
    elif elsewhere and base == run.target:  # the parts were compared when the run was started
        total, read = len(run.rows(split)), [r.started_with(run.source.image_shape) for r in elsewhere]
        known = [digests for digests in read if digests is not None]
        found = int(np.isin(run.source.digests(run.rows(split).index), np.concatenate(known)).sum()) if known else 0
        if found:
            some = f"{found} of these {total} images are in the {base} that the run was trained on"
            out.append(f"{some}: its figures are too good.")
        if len(known) < len(read):
            why = "those are gone, or of another size"
            others = "others of these" if found else f"any of these {total}"
            out.append(
                f"Whether {others} images {'are' if found else 'is'} among those that the run was trained on is not known: {why}."
            )
    moved = list(dict.fromkeys(field for reader in here for field in reader.moved))
    if base in PARTS and moved:
        out.append(f"{', '.join(moved)} changed in mid-training: the split {base} may hold images that were trained on before.")
    return out


def _stands_on(config: Config) -> Iterator[Config]:
    """A config, and those of its children or of the finished runs that it uses."""
    yield config
    runs = config.ensemble.runs if config.method == "ensemble" else ()
    if config.method == "classical" and config.features.get("run"):
        runs = (config.features.run,)
    if not runs and "member" in config:
        yield from _stands_on(config.member)
    for path in runs:
        yield from _stands_on(Run.load(path).config)


def score(run: Run, rows: Rows, predictions: Predictions, refits: int = 0, permutations: int = significance.PERMUTATIONS) -> dict:
    """Figures of the scores of rows with known labels: `scores` and `permutation`, as in results.json; empty where there are none.

    Raises ValueError where a p is asked of scores that are all equal.
    """
    scores = predictions.scores
    if run.config.task != "subtask1":
        return {"scores": {"calibration": score_metrics.calibration(rows.labels, scores)}} if predictions.probabilities else {}
    groups = rows.groups if len(np.unique(rows.groups)) < len(rows) else None
    out = {"scores": score_metrics.score_report(rows.labels, scores[:, 0], predictions.probabilities, groups)}
    reason = significance.unavailable(run, rows)
    out["permutation"] = {"p": None, "reason": reason}
    if not methods.reads_synthetic(run.config):
        out["permutation"]["note"] = significance.NOTHING_SYNTHETIC
    if not reason:
        found = significance.permutation_p(significance.auc_of(scores[:, 0]), rows.labels, groups, permutations)
    elif refits and not (unfit := significance.unavailable(run, rows, refitted=True)):
        found = significance.refitted_p(run, refits)
    else:
        if not refits and not significance.unavailable(run, rows, refitted=True):
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
    ids, labels = tables.read_labels(predictions, CLASSES[task], task)
    true_ids, true_labels = tables.read_labels(truth, CLASSES[task], task)
    try:
        order = tables.align(true_ids, ids, either=True)
    except ValueError as error:
        raise ValueError(f"{predictions} does not fit {truth}: {error}") from None
    if (true_labels == true_labels[0]).all():
        raise ValueError(f"{truth}: all {len(true_labels)} labels are {true_labels[0]}, a score needs at least two classes")
    path, remedy = Path(output) / "results.json", "it is not replaced, give another --output"
    if path.exists():
        files.read_json(path, {"schema": int}, remedy)  # else it is somebody else's
    results = {"schema": SCHEMA, "task": task, "environment": environment.code()}
    results["metrics"] = metrics.report(true_labels, labels[order], CLASSES[task])
    if task == "subtask1":
        results["metrics"]["labels_p"] = metrics.labels_p(true_labels, labels[order])
    files.write_text(path, json.dumps(results, indent=1))
    return results


def validate(submission: str, task: str, data_dir: str, split: str) -> np.ndarray:
    """Checks that a submission has each id of a packed split once and labels of the task only; the rows a label [K].

    Raises ValueError with the first ids or the line that are wrong.
    """
    rows = open_source(data_dir, task).rows(split)
    ids, labels = tables.read_labels(submission, CLASSES[task], task)
    try:
        tables.align(rows.ids, ids)
    except ValueError as error:
        raise ValueError(f"{submission} does not fit the split {split} of {data_dir}: {error}") from None
    return np.bincount(labels, minlength=CLASSES[task])


def table(title: str, report: dict, decision: dict | None = None, reasons: Sequence[str] = (), notes: Sequence[str] = ()) -> Table:
    """The figures of a report for the terminal, intervals beside them; `reasons` and `notes`: of `transductive`, `in_sample`."""
    out = Table(title=title, title_justify="left")
    for column in ("figure", "value", "95% interval"):
        out.add_column(column, justify="left" if column == "figure" else "right")

    def row(name, value, interval):
        text = "" if interval is None or None in interval else f"{interval[0]:.4f} to {interval[1]:.4f}"
        out.add_row(name, "not defined" if value is None else f"{value:.2g}" if 0 < value < 1e-4 else f"{value:.4f}", text)

    intervals = report["intervals"]
    row("Cohen's kappa", report["cohen_kappa"], intervals["cohen_kappa"])
    row("accuracy", report["accuracy"], intervals["accuracy"])
    row("accuracy (Wilson)", report["accuracy"], report["accuracy_wilson"])
    averages = ["positive"] if "positive" in report else ["macro", "weighted"]
    for average in averages:
        for figure in ("precision", "recall", "f1", "specificity"):
            row(f"{figure} ({average})", report[average][figure], intervals[f"{average}.{figure}"])
    scores = report.get("scores", {})
    if "auc" in scores:
        row("AUC", scores["auc"], scores["auc_interval"])
        for at in scores["tpr_at_fpr"]:
            row(f"TPR at FPR {at['fpr']:g}", at["tpr"], at["interval"])
    if "calibration" in scores:
        row("Brier score", scores["calibration"]["brier"], None)
        row("calibration error", scores["calibration"]["ece"], None)
    lines = ["confusion matrix (rows: truth)", *(" ".join(f"{v:6d}" for v in r) for r in report["confusion_matrix"])]
    for name, p in report.get("labels_p", {}).items():
        row(f"{name.replace('_', ' ')} of the labels (hypergeometric)", p, None)
    if "permutation" in report:
        found = report["permutation"]
        if found["p"] is None:
            lines.append(f"p not available: {found['reason']}")
        else:
            row(f"p of the AUC ({'refits' if 'null' in found else 'permutation'})", found["p"], None)
            if found["split_groups"]:
                lines.append(f"p: {found['split_groups']} groups hold both labels and were permuted as two")
        if "note" in found:
            lines.append(f"AUC and p: {found['note']}")
    if report.get("cross_fitted"):
        lines.append(f"cross-fitted: {significance.CONDITIONAL}")
    if None in intervals["accuracy"]:
        lines.append(f"intervals: {report['interval_method']}")
    if decision:
        lines.append(f"decision: {decision['name']}" + (", uses the class balance" if decision["uses_class_balance"] else ""))
    lines += [f"transductive: {reason}" for reason in reasons]
    lines += [f"in-sample: {note}" for note in notes]
    out.caption = "\n".join(lines)
    out.caption_justify = "left"
    return out


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("workdir", None, "The run to score.", flag_values=values)
    flags.DEFINE_string("split", "heldout", "heldout, valid, sequestered or a packed split.", flag_values=values)
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.", flag_values=values)
    flags.DEFINE_float(
        "watch", 0, "Follow a training that runs; give up after this many seconds without a new checkpoint.", flag_values=values
    )
    paths.define("data_dir", "", "Score the images of another packed data set.", flag_values=values)
    paths.define("submission", None, "Write the decided labels as `id,label` to this file.", flag_values=values)
    flags.DEFINE_bool("header", False, "Submission: a first line `id,label`.", flag_values=values)
    flags.DEFINE_string("extension", "", "Submission: appended to every id: .png, .jpg or .jpeg.", flag_values=values)
    flags.DEFINE_enum(
        "style", "int", ["int", "t", "gen_t"], "Submission: 0..4; in subtask 2 also t1..t5 or gen_t1..gen_t5.", flag_values=values
    )
    flags.DEFINE_integer(
        "refits", 0, "Subtask 1: permutations to fit a cross-fitted run of estimators anew for its p.", 0, flag_values=values
    )
    flags.DEFINE_integer(
        "permutations",
        significance.PERMUTATIONS,
        "Subtask 1: permutations of the labels; the smallest p is 1 / (1 + this).",
        19,
        flag_values=values,
    )
    flags.DEFINE_bool("verify", False, "Compare the content of the packed data with its fingerprints first.", flag_values=values)
    text = "Compute predictions anew, and all that the run keeps of networks and images on the way."
    flags.DEFINE_bool("recompute", False, text, flag_values=values)
    flags.DEFINE_bool("report", False, "Write the page <workdir>/report/index.html.", flag_values=values)
    flags.DEFINE_bool("redact", False, "Page: no picture and no file name of any image.", flag_values=values)
    paths.define_list("compare", [], "Page: work directories of other runs, paired image by image.", flag_values=values)
    flags.DEFINE_bool("published", False, "Page: the place among the published runs.", flag_values=values)
    flags.DEFINE_enum("task", None, sorted(CLASSES), "Without a run: the task of the files.", flag_values=values)
    paths.define("predictions", None, "Without a run: a file of `id,label`.", flag_values=values)
    paths.define("truth", None, "Without a run: a file of `id,label`.", flag_values=values)
    paths.define("validate", None, "A submission to check against --data_dir and --split.", flag_values=values)
    paths.define("output", None, "Without a run: the folder for results.json.", flag_values=values)
    distributed.define_flags(values)


def write_report(run: Run, values: flags.FlagValues) -> Path:
    """The page of a split that was evaluated, beside the runs of --compare on the same data."""
    scored = []
    for each in [run, *(Run.load(path, data_dir=run.config.data_dir) for path in values.compare)]:
        if each.config.task != run.config.task:
            raise ValueError(f"--compare={each.workdir}: a run of {each.config.task}, {run.workdir} is one of {run.config.task}")
        predictions = each.predict(values.split)
        decided, notes = decide(each, values.split, predictions), in_sample(each, values.split)
        scored.append(report.Scored(each, each.rows(values.split), predictions, decided, notes))
    return report.write(scored[0], values.split, scored[1:], values.redact, values.published)


def main(values: flags.FlagValues) -> None:
    """One evaluation; what the user can mend is one line and exit status 1."""
    show_log()
    distributed.initialize("evaluate", values)
    preemption.stop_at_once()
    console = Console(quiet=distributed.index() > 0, markup=False, highlight=False)  # brackets in paths are no markup
    needs_report = [name for name in ("redact", "compare", "published") if values[name].value]
    if needs_report and not values.report:
        raise ValueError(f"--{needs_report[0]} is about the page: add --report")
    if values.report and not values.workdir:
        raise ValueError("--report shows a run: give --workdir")
    if values.validate:
        if not (values.task and values.data_dir):
            raise ValueError("--validate checks a submission against a packed split: give --task, --data_dir and --split")
        counts = validate(values.validate, values.task, values.data_dir, values.split)
        text = ", ".join(f"{count:,} of label {label}" for label, count in enumerate(counts))
        console.print(f"{values.validate}: valid, each of {counts.sum():,} ids once; {text}", soft_wrap=True)
        return
    if values.workdir:
        environment.self_test()
        if values.watch:
            run = watch.watch(Path(values.workdir), values.split, values.watch, evaluate, values.data_dir)
        else:
            run = Run.load(values.workdir, values.step, values.data_dir)
        if values.verify:
            distributed.first(run.source.verify)
        if values.recompute:
            distributed.first(run.refuse_links)
            run.forget()
        if not run.done and (run.config.method != "gradient" or not Checkpoints(run.workdir).begun()):
            raise ValueError(f"{run.workdir} is not finished, there is nothing to score yet: the command that trains it goes on")
        submission = None
        if values.submission:
            submission = {
                "path": values.submission,
                "header": values.header,
                "extension": values.extension,
                "style": values.style,
            }
        results = evaluate(run, values.split, submission, values.refits, values.permutations)
        title, place = f"{run.workdir}: {values.split}, {results['n']} images", run.workdir / "results.json"
    elif values.predictions and values.truth and values.task and values.output:
        results = score_files(values.task, values.predictions, values.truth, values.output)
        title, place = f"{values.predictions} against {values.truth}", Path(values.output) / "results.json"
    else:
        raise ValueError("give --workdir, or --validate, or all of --task, --predictions, --truth and --output")
    if "metrics" in results:
        reasons = results.get("transductive", ()), results.get("in_sample", ())
        console.print(table(title, results["metrics"], results.get("decision"), *reasons))
        if results.get("runs_beside"):
            console.print(words.several(results["runs_beside"], values.split), soft_wrap=True)
        if not values.workdir:
            console.print(words.verdict(results["task"], results["metrics"], results["metrics"]["n"]), soft_wrap=True)
    else:
        console.print(f"{title}: labels unknown, nothing to score")
        for reason in results["transductive"]:
            console.print(f"transductive: {reason}", soft_wrap=True)
    console.print(f"results: {place}", soft_wrap=True)
    if values.report:
        console.print(f"report: {write_report(run, values)}", soft_wrap=True)
    if values.submission:
        console.print(f"submission: {values.submission}", soft_wrap=True)


if __name__ == "__main__":
    cli.run("evaluate", define_flags, main)
