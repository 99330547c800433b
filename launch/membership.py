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


def line(c: Comparison, data: str, row: Row, baseline: str = "") -> dict:
    """What is finished of a row on a data set: COLUMNS; what is not there is None.

    Figures are means over the seeds, their intervals over the images, which the seeds share; `values` are the AUCs of the seeds
    and `seeds_low`, `seeds_high` Student's t for their mean. `p` is None where labels of the scored images were read.
    """
    scored = c.scored(data, row)
    found, notes = lines.common(c, data, row, list(scored))
    out = dict.fromkeys(COLUMNS) | found | {"values": []}
    if scored:
        figures = _figures(scored)
        for name in ("auc", "tpr", "cohen_kappa"):
            if figures[name]:
                out |= _columns(name if name != "auc" else "", figures[name])
        out["auc"] = figures["auc"]["mean"]
        over = metrics.over_seeds([metrics.auc(one.labels, one.scores[:, 0]) for one in scored.values()])
        out["values"], (out["seeds_low"], out["seeds_high"]) = over["values"], over["interval"] or (None, None)
        known = family(c, data)
        if row.name in known["p"]:
            out |= {"p": known["p"][row.name], "family_wise_p": known["family_wise"]}
        else:
            reasons = [_no_p(c, data, row, seed) for seed in scored]
            notes.append(f"no p: {next(filter(None, reasons), 'other images than the rows before')}")
        if baseline and row.name != baseline:
            other = c.scored(data, c.row(baseline))
            shared = [seed for seed in scored if seed in other]
            if not all(scored[seed].same_images(other[seed]) for seed in shared):
                notes.append("other images than the baseline")
            elif shared:
                sides = [np.stack([side[seed].scores[:, 0] for seed in shared]) for side in (scored, other)]
                one = scored[shared[0]]
                difference = metrics.paired_auc(one.labels, sides[0], sides[1], one.groups)
                out |= _columns("difference", {"mean": difference["difference"], "interval": difference["interval"]})
    if data == c.first:
        for name in c.kinds:
            if one := c.scored(name, row):
                out |= _columns(name, _figures(one)["auc"])
    return out | {"note": "; ".join(notes)}


def _figures(scored: dict[int, Scored]) -> dict:
    runs = list(scored.values())
    scores, predicted = np.stack([one.scores[:, 0] for one in runs]), np.stack([one.predicted for one in runs])
    return metrics.over_runs(runs[0].labels, scores, predicted, FPR, runs[0].groups)


def _columns(name: str, found: dict) -> dict:
    low, high = (f"{name}_{bound}" if name else bound for bound in ("low", "high"))
    return {name or "auc": found["mean"], low: found["interval"][0], high: found["interval"][1]}


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


def footer(c: Comparison, data: str, found: list[dict]) -> str:
    """The family-wise p of a data set."""
    known = [line for line in found if line["p"] is not None]
    if not known:
        return ""
    return f"Family-wise p of the best of the {len(known)} rows with a p: {known[0]['family_wise_p']:.3f}."
