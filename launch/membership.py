"""The table of subtask 1: AUC with its p, kappa, the true-positive rate at a low false-positive rate, and the controls."""

import numpy as np

from fingerprint_jax.stats import metrics, score_metrics
from launch import compare, lines
from launch.compare import Scored
from launch.formats import number
from launch.systems import Comparison, Row

FPR = 0.1
COPIES = 0.9  # an AUC below it on verbatim copies does not tell them
CONTROLS = ("unrelated", "copies")  # columns: the AUC on that data set
COLUMNS = (
    *lines.BEFORE,
    *("auc", "low", "high", "values", "seeds_low", "seeds_high", "p", "family_wise_p", "shuffled", "shuffled_low", "shuffled_high"),
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
    under = f"Family-wise p of the best of the {len(known['p'])} rows with a p: {known['family_wise']:.3f},"
    return found, f"{under} of {known['permutations']} permutations that all rows share."


def line(c: Comparison, data: str, row: Row, known: dict, baseline: str = "") -> dict:
    """What is finished of a row on a data set, of which `family` is `known`: COLUMNS; what is not there is None.

    Figures are means over the seeds, their intervals over the images, which the seeds share; `values` are the AUCs of the seeds
    and `seeds_low`, `seeds_high` Student's t for their mean. `p` is None where labels of the scored images were read and
    nothing was fitted anew to permuted ones; `shuffled` is the mean AUC over the permutations, with the middle 95% of them.
    """
    scored = c.scored(data, row)
    found, notes = lines.common(c, data, row, list(scored))
    out: dict = dict.fromkeys(COLUMNS) | found | {"values": []}
    if scored:
        figures = _figures(scored)
        for name, prefix in (("auc", ""), ("tpr", None), ("cohen_kappa", None)):
            if figures[name]:
                out |= lines.columns(name, figures[name], prefix)
        over = metrics.over_seeds([score_metrics.auc(one.labels, one.scores[:, 0]) for one in scored.values()])
        out["values"], (out["seeds_low"], out["seeds_high"]) = over["values"], over["interval"] or (None, None)
        if row.name in known["p"]:
            out |= {"p": known["p"][row.name], "family_wise_p": known["family_wise"]}
            out |= lines.columns("shuffled", known["shuffled"][row.name])
            if any("null" in _permutation(c, data, row, seed) for seed in scored):
                notes.append("p of the first seed, by refits")
        else:
            reasons = [_permutation(c, data, row, seed)["reason"] for seed in scored]
            notes.append(f"no p: {next(filter(None, reasons), 'other images than the rows before')}")
        if sides := lines.beside(c, data, row, scored, baseline, notes):
            scores = [np.stack([run.scores[:, 0] for run in side]) for side in sides]
            one = sides[0][0]
            found = score_metrics.paired_auc(one.labels, scores[0], scores[1], one.groups)
            out |= lines.columns("difference", {"mean": found["difference"], "interval": found["interval"]})
    if data == c.first:
        for name in c.kinds:
            if one := c.scored(name, row):
                out |= lines.columns(name, _figures(one)["auc"])
        if out["copies"] is not None and out["copies"] < COPIES:
            notes.append("cannot tell verbatim copies")
    return out | {"note": "; ".join(notes)}


def _figures(scored: dict[int, Scored]) -> dict:
    runs = list(scored.values())
    scores, predicted = np.stack([one.scores[:, 0] for one in runs]), np.stack([one.predicted for one in runs])
    return score_metrics.over_runs(runs[0].labels, scores, predicted, FPR, runs[0].groups)


def family(c: Comparison, data: str) -> dict:
    """`compare.family` of the rows on a data set, each with its seeds."""
    return compare.family(
        {row.name: [(run, _permutation(c, data, row, seed)) for seed, run in c.scored(data, row).items()] for row in c.rows}
    )


def _permutation(c: Comparison, data: str, row: Row, seed: int) -> dict:
    """What `evaluate` says of a run's p."""
    choice = c.kept(data, row, "choice.json")
    return compare.kept_permutation(c.workdir(data, row, choice["learning_rate"], seed), "heldout")


def shown(line: dict) -> dict[str, str]:
    """A line of the table as people read it."""
    figures = {
        "AUC": lines.value(line, "auc", ""),
        "each seed": " ".join(map(number, line["values"])),
        "p": "" if line["p"] is None else f"{line['p']:.3f}",
        "shuffled": lines.value(line, "shuffled"),
        "kappa": lines.value(line, "cohen_kappa"),
        "TPR": lines.value(line, "tpr"),
        "difference": lines.value(line, "difference"),
        **{name: lines.value(line, name) for name in CONTROLS},
    }
    return lines.shown(line, figures)
