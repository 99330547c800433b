"""The table of subtask 1: AUC with its p, kappa, the true-positive rate at a low false-positive rate, and the controls."""

import numpy as np

from fingerprint_jax import metrics, significance
from launch import lines
from launch.collect import Scored, number
from launch.systems import Comparison, Row, read

FPR = 0.1
CONTROLS = ("unrelated", "copies")  # columns: the AUC on that data set
COLUMNS = (
    *lines.BEFORE,
    *("auc", "low", "high", "values", "seeds_low", "seeds_high", "p", "family_wise_p"),
    *("cohen_kappa", "cohen_kappa_low", "cohen_kappa_high", "tpr", "tpr_low", "tpr_high"),
    *("difference", "difference_low", "difference_high"),
    *(name + bound for name in CONTROLS for bound in ("", "_low", "_high")),
    *lines.AFTER,
)
FIGURE = f"AUC, permutation p, Cohen's kappa, and the true-positive rate at {FPR:.0%} false positives"


def table(c: Comparison, data: str, baseline: str = "") -> tuple[list[dict], str]:
    """The lines of all rows on a data set, and what stands under them."""
    known = family(c, data)
    found = [line(c, data, row, known, baseline) for row in c.rows]
    if not known["p"]:
        return found, ""
    return found, f"Family-wise p of the best of the {len(known['p'])} rows with a p: {known['family_wise']:.3f}."


def line(c: Comparison, data: str, row: Row, known: dict, baseline: str = "") -> dict:
    """What is finished of a row on a data set, of which `family` is `known`: COLUMNS; what is not there is None.

    Figures are means over the seeds, their intervals over the images, which the seeds share; `values` are the AUCs of the seeds
    and `seeds_low`, `seeds_high` Student's t for their mean. `p` is None where labels of the scored images were read.
    """
    scored = c.scored(data, row)
    found, notes = lines.common(c, data, row, list(scored))
    out = dict.fromkeys(COLUMNS) | found | {"values": []}
    if scored:
        figures = _figures(scored)
        for name, prefix in (("auc", ""), ("tpr", None), ("cohen_kappa", None)):
            if figures[name]:
                out |= lines.columns(name, figures[name], prefix)
        over = metrics.over_seeds([metrics.auc(one.labels, one.scores[:, 0]) for one in scored.values()])
        out["values"], (out["seeds_low"], out["seeds_high"]) = over["values"], over["interval"] or (None, None)
        if row.name in known["p"]:
            out |= {"p": known["p"][row.name], "family_wise_p": known["family_wise"]}
        else:
            reasons = [_no_p(c, data, row, seed) for seed in scored]
            notes.append(f"no p: {next(filter(None, reasons), 'other images than the rows before')}")
        if sides := lines.beside(c, data, row, scored, baseline, notes):
            scores = [np.stack([run.scores[:, 0] for run in side]) for side in sides]
            one = sides[0][0]
            found = metrics.paired_auc(one.labels, scores[0], scores[1], one.groups)
            out |= lines.columns("difference", {"mean": found["difference"], "interval": found["interval"]})
    if data == c.first:
        for name in c.kinds:
            if one := c.scored(name, row):
                out |= lines.columns(name, _figures(one)["auc"])
    return out | {"note": "; ".join(notes)}


def _figures(scored: dict[int, Scored]) -> dict:
    runs = list(scored.values())
    scores, predicted = np.stack([one.scores[:, 0] for one in runs]), np.stack([one.predicted for one in runs])
    return metrics.over_runs(runs[0].labels, scores, predicted, FPR, runs[0].groups)


def family(c: Comparison, data: str) -> dict:
    """{p: {row: p}, family_wise} of the rows on a data set that read no label of what they scored, all on the same images.

    The statistic of a row is its mean AUC over the seeds. `family_wise` is the p of the best of these rows.
    """
    found = {}
    for row in c.rows:
        scored = c.scored(data, row)
        if scored and not any(_no_p(c, data, row, seed) for seed in scored):
            found[row.name] = list(scored.values())
    if not found:
        return {"p": {}, "family_wise": None}
    first = next(iter(found.values()))[0]
    found = {name: runs for name, runs in found.items() if all(run.same_images(first) for run in runs)}
    aucs = {name: significance.auc_of(np.stack([run.scores[:, 0] for run in runs], axis=1)) for name, runs in found.items()}
    statistic = lambda labels: np.array([auc(labels).mean() for auc in aucs.values()])  # noqa: E731
    p = significance.permutation_p(statistic, first.labels, first.groups)
    return {"p": dict(zip(found, p["p"], strict=True)), "family_wise": p["family_wise"]}


def _no_p(c: Comparison, data: str, row: Row, seed: int) -> str:
    """Why `evaluate` gives a run no p; empty where it has one."""
    choice = read(c.folder(data, row) / "choice.json")
    results = read(c.workdir(data, row, choice["learning_rate"], seed) / "results.json")
    return results["splits"]["heldout"]["metrics"]["permutation"]["reason"] or ""


def shown(line: dict) -> dict[str, str]:
    """A line of the table as people read it."""
    figures = {
        "AUC": lines.value(line, "auc", ""),
        "each seed": " ".join(map(number, line["values"])),
        "p": "" if line["p"] is None else f"{line['p']:.3f}",
        "kappa": lines.value(line, "cohen_kappa"),
        "TPR": lines.value(line, "tpr"),
        "difference": lines.value(line, "difference"),
        **{name: lines.value(line, name) for name in CONTROLS},
    }
    return lines.shown(line, figures)
