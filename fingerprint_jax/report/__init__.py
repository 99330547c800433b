"""A scored run -> one HTML page that stands alone: no script, no network, pictures inside."""

import dataclasses
import datetime
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from fingerprint_jax import estimators
from fingerprint_jax.data.source import Rows
from fingerprint_jax.data.tasks import TASKS, Task
from fingerprint_jax.report import charts, neighbours, places, words
from fingerprint_jax.runs.config import flat_config
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runtime import files
from fingerprint_jax.stats import metrics, score_metrics

REDACTED = "Pictures and file names are left out; a synthetic image can be a copy of a real one, so it is left out too."


@dataclasses.dataclass(frozen=True)
class Scored:
    """A run and what it said of a split: `decided` labels int [N], rows and predictions in the same order.

    `in_sample` says why its figures are too good, where they are.
    """

    run: Run
    rows: Rows
    predictions: Predictions
    decided: np.ndarray
    in_sample: Sequence[str] = ()

    def take(self, selection: np.ndarray) -> "Scored":
        """The same of some of its rows."""
        p = self.predictions
        part = dataclasses.replace(p, ids=p.ids[selection], scores=p.scores[selection])
        return Scored(self.run, self.rows.take(selection), part, self.decided[selection])


def write(scored: Scored, split: str, results: dict, others: list[Scored], redact: bool = False, published: bool = False) -> Path:
    """Writes `<workdir>/report/index.html`, whole or not at all, and returns its path.

    Args:
        scored: the run; its results.json has the split.
        split: that was scored.
        results: of it, as `evaluate` has written them.
        others: runs of the same task, scored on the same data, that it is compared with.
        redact: no picture and no file name of any image. A synthetic image can be a copy of a real one, so it goes too.
        published: adds the place among the published runs of the task.

    Raises ValueError for a run to compare that has no image in common, where nothing was published for the task, and where another
    evaluation has written other results meanwhile.
    """
    run, rows, predictions = scored.run, scored.rows, scored.predictions
    document = json.loads((run.workdir / "results.json").read_text(encoding="utf-8"))
    if document["splits"].get(split) != json.loads(json.dumps(results)):
        raise ValueError(f"{run.workdir}: another evaluation has written results.json meanwhile, run this one again")
    task, found = run.task, results.get("metrics")
    classes = run.source.summary["classes"]
    names = [name.replace("_", " ") for name in classes]
    pictures, where = neighbours.unasked(run, split), None
    if not pictures and (member := places.member(run)):
        where = REDACTED if redact else places.of_run(run, member, rows, predictions, scored.decided)
    elif not pictures:
        pictures = neighbours.look_alikes(run, split, rows, predictions, scored.decided, classes)
        if redact and not isinstance(pictures, str):
            pictures = dataclasses.replace(pictures, cases=[], shown=REDACTED)
    # Of membership the first column is the score.
    scores = predictions.scores[:, :1] if task.membership else predictions.scores
    drawn = charts.histograms(rows.labels, scores, names)
    if found:
        calibration = found.get("scores", {}).get("calibration")
        first = [charts.roc(rows.labels, scores, names), charts.calibration(calibration) if calibration else None]
        drawn = [chart for chart in first if chart] + drawn
    page = template("report/template.html.jinja").render(
        task=task.name,
        asked=task.question,
        verdict=words.verdict(task.name, found, results["n"]),
        care=words.care(results, document, run.target, run.provenance["fingerprints"])
        + [f"{other.run.workdir}: {note}" for other in others for note in other.in_sample],
        workdir=str(run.workdir),
        split=split,
        n=results["n"],
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        metrics=found,
        headline=_headline(task, found, names) if found else [],
        classes=names,
        decided=np.bincount(scored.decided, minlength=len(names)).tolist(),
        charts=drawn,
        pictures=pictures,
        where=where,
        compared=[_compare(scored, other) for other in others],
        published=_published(task, found, split) if published else None,
        results=results,
        config=settings(flat_config(run.config), run.source.num_classes),
        document=document,
        made_on=words.made_on(document),
    )
    path = run.workdir / "report" / "index.html"
    files.write_text(path, page)
    return path


def settings(flat: dict, num_classes: int) -> dict[str, str]:
    """A flat config as it is read: where None stands for a default, that, and nothing of the options that an estimator has not."""
    shown = {}
    for field, value in flat.items():
        section, _, option = field.rpartition(".")
        chosen = flat.get(f"{section}.name")
        if section.rpartition(".")[2] == "estimator" and chosen and option != "name":
            given = {name.rpartition(".")[2]: other for name, other in flat.items() if name.rpartition(".")[0] == section}
            found = estimators.in_use(num_classes, **given)
            if option in found:
                shown[field] = f"{found[option][0]}" + " (default)" * found[option][1]
        else:
            learned = "learned" if section.endswith("decision.params") else "default"
            shown[field] = learned if value is None else str(value)
    return shown


def template(name: str) -> jinja2.Template:
    """A template of the package, by its path in it; it knows how to write a `number`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fingerprint_jax", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["number"] = charts.number  # pyright: ignore[reportArgumentType]
    return environment.get_template(name)


def _headline(task: Task, found: dict, names: list[str]) -> list[tuple[str, float | None, list | None, str]]:
    """(figure, value, interval, what chance gives), the task's own figure first."""
    intervals = found["intervals"]
    rows = [
        ("Cohen's kappa", found["cohen_kappa"], intervals["cohen_kappa"], "0"),
        ("accuracy", found["accuracy"], intervals["accuracy"], charts.number(words.chance_agreement(found["confusion_matrix"]))),
    ]
    if task.headline == "accuracy":
        rows.reverse()
    average, of = ("positive", names[1]) if "positive" in found else ("macro", "mean of the classes")
    for name in metrics.FIGURES:
        rows.append((f"{name} ({of})", found[average][name], intervals[f"{average}.{name}"], ""))
    scores = found.get("scores", {})
    if scores.get("auc") is not None:
        rows.insert(2, ("AUC", scores["auc"], scores["auc_interval"], "0.5"))
    for point in scores.get("tpr_at_fpr", []):
        name = f"true positive rate at a false positive rate of {point['fpr']}"
        rows.append((name, point["tpr"], point["interval"], str(point["fpr"])))
    if (p := found.get("permutation", {}).get("p")) is not None:
        note = found["permutation"].get("note")
        rows.append((f"p of the AUC, by permutation of the labels{f': {note}' if note else ''}", p, None, "evenly between 0 and 1"))
    return rows


def _compare(scored: Scored, other: Scored) -> dict:
    """Two runs on the images that both have: the figures of each, and the paired difference, this run less the other."""
    run, second = scored.run, other.run
    _, mine, theirs = np.intersect1d(scored.rows.index, other.rows.index, return_indices=True)
    if not len(mine):
        raise ValueError(f"--compare={second.workdir}: the two runs have no image of the split in common")
    a, b = scored.take(mine), other.take(theirs)
    out = {
        "workdir": str(second.workdir),
        "n": len(mine),
        "agree": float((a.decided == b.decided).mean()),
        "same_training": _trained_on(run) == _trained_on(second),
        "figures": [],
    }
    labels, groups, classes = a.rows.labels, a.rows.groups, run.source.num_classes
    if (labels < 0).any():
        return out
    reports = [metrics.report(labels, side.decided, classes, groups) for side in (a, b)]
    difference = metrics.paired_difference(labels, a.decided, b.decided, classes, groups=groups)
    for name, key in (("Cohen's kappa", "cohen_kappa"), ("accuracy", "accuracy")):
        out["figures"].append((name, reports[0][key], reports[1][key], difference[key]["difference"], difference[key]["interval"]))
    if run.task.membership and len(np.unique(labels)) == 2:
        columns = [side.predictions.scores[:, 0] for side in (a, b)]
        area = score_metrics.paired_auc(labels, *columns, groups=groups)
        out["figures"].append(("AUC", *[score_metrics.auc(labels, c) for c in columns], area["difference"], area["interval"]))
    return out


def _trained_on(run: Run) -> dict[str, str]:
    """Fingerprints of what a run may train on: test splits and references may differ."""
    known = run.provenance["fingerprints"].items()
    return {name: value for name, value in known if name.startswith("train") or name == "extra_labels"}


def _published(task: Task, found: dict | None, split: str) -> dict:
    """The strip and the table of the published runs, and the place of this one."""
    text = importlib.resources.files("fingerprint_jax").joinpath("published_runs.json").read_text(encoding="utf-8")
    known = json.loads(text)
    if task.name not in known:
        there = " and ".join(name for name in TASKS if name in known)
        raise ValueError(f"--published: nothing was published for the task {task.name}, only for {there}")
    figure = task.headline
    key = "kappa" if figure == "cohen_kappa" else figure
    values = [row[key] for row in known[task.name]]
    value = found[figure] if found else None
    interval = found["intervals"][figure] if found else [None, None]
    own = [v for v in (value, *interval) if v is not None]
    low, high = min([*values, *own]), max([*values, *own])
    return {
        "source": known["source"],
        "figure": "Cohen's kappa" if key == "kappa" else "accuracy",
        "key": key,
        "rows": known[task.name],
        "words": "" if value is None else words.placed(value, own[1:], values),
        "value": value,
        "split": split,
        "dots": [charts.place(v, low, high) for v in values],
        "place": None if value is None else charts.place(value, low, high),
        "ends": [charts.place(v, low, high) for v in own[1:]],
        "ticks": [(charts.place(t, low, high), charts.number(t, 2)) for t in charts.ticks(low, high)],
    }
