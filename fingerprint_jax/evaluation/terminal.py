"""Figures as a table for the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from fingerprint_jax.runtime.names import printable
from fingerprint_jax.stats import permutation


def table(title: str, report: dict, decision: dict | None = None, notes: Mapping[str, Sequence[str]] | None = None) -> Table:
    """The figures of a report for the terminal, intervals beside them; `notes` are lists of results.json by their names."""
    out = Table(title=printable(title), title_justify="left")
    for column in ("figure", "value", "95% interval"):
        out.add_column(column, justify="left" if column == "figure" else "right")

    def row(name: str, value: float | None, interval: Sequence[float | None] | None) -> None:
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
        lines.append(f"cross-fitted: {permutation.CONDITIONAL}")
    if None in intervals["accuracy"]:
        lines.append(f"intervals: {report['interval_method']}")
    if decision:
        lines.append(f"decision: {decision['name']}" + (", uses the class balance" if decision["uses_class_balance"] else ""))
    lines += [f"{name.replace('_', '-')}: {note}" for name, found in (notes or {}).items() for note in found]
    out.caption = "\n".join(map(printable, lines))
    out.caption_justify = "left"
    return out
