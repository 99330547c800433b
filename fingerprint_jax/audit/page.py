"""The audit -> one HTML page that stands alone: the verdict for whoever decides, then what a statistician checks."""

from pathlib import Path

import numpy as np

from fingerprint_jax import report
from fingerprint_jax.audit import network, panel, sentences, verdict
from fingerprint_jax.audit.imprint import POWER
from fingerprint_jax.audit.patients import unit
from fingerprint_jax.report import charts, neighbours, places
from fingerprint_jax.report.charts import number
from fingerprint_jax.report.words import made_on
from fingerprint_jax.runtime import files
from fingerprint_jax.runtime.names import duration

Pair = tuple[str, np.ndarray, np.ndarray, str]  # title, left and right image uint8 [H,W], and what they show

ABOUT = {"generator_name": "generator", "requester": "asked for by", "institution": "institution"}  # and how the page calls it
LOUD = (verdict.COPIES, verdict.EVIDENCE, verdict.WRONG_DIRECTION)
ROWS = 100  # of a list of copies, which bounds the size of the page


def write(
    folder: str | Path, document: dict, pictures: list[Pair], redact: bool = False, where: places.Found | None = None
) -> Path:
    """Writes `<folder>/index.html`, whole or not at all, and returns its path.

    Args:
        folder: is made where it is missing.
        document: the results of the audit, JSON types. Its sentences, reasons and list of what was not tested name no image
            and no patient: a redacted page keeps them.
        pictures: two by two a flagged real image with its match, and the reference image of the same rank with its match.
        redact: no picture, and no name of an image or of a patient; counts, distances and p-values stay.
        where: the images of highest and lowest score, and where they are found.
    """
    counts, alpha, limit = document["counts"], document["plan"]["alpha"], document["limit"]
    shown = [] if redact else [(title, neighbours.uri(a), neighbours.uri(b), text) for title, a, b, text in pictures]
    measured = "reason" not in limit
    page = report.template("audit/template.html.jinja").render(
        document=document,
        about=[(ABOUT[name], text) for name, text in document["about"].items()],
        who=unit(counts),
        made_on=made_on(document),
        redact=redact,
        fixed=sentences.FIXED,
        unanswered=document["verdict"]["name"] == verdict.CANNOT_TELL,
        loud=document["verdict"]["name"] in LOUD or bool(document["copies"].get("flagged")),
        duration=duration(document["seconds"]),
        asked=sentences.asked_words(document),
        of=sentences.score_words(document),
        counted=sentences.counted_rows(counts),
        refused=sentences.refused_words(document["rejected"]),
        reference=sentences.reference_words(document["reference_from"]),
        panel=sentences.panel_words(document["panel"], alpha, unit(counts)),
        described=panel.WORDS | network.WORDS,
        joined=[name for name in document["plan"]["methods"] if name in network.WORDS],
        beside=beside(document["panel"], document["controls"]),
        content=sentences.CONTENT,
        excess=sentences.excess_words(document["excess"]),
        smallest=sentences.limit_in_a_sentence(document),
        planted=sentences.PLANTED,
        power=power(limit, unit(counts)) if measured else None,
        null=sentences.null_words(limit, alpha) if measured else None,
        nearness=sentences.nearness_words(limit) if measured else None,
        one_in=sentences.one_in(limit) if measured else None,
        label=sentences.label,
        noticed=sentences.NOTICED.format(alpha),
        copies=sentences.copies_words(document["copies"], counts),
        rows=ROWS,
        pictures=[shown[k : k + 2] for k in range(0, len(shown), 2)],
        where=None if redact else where,
        p_value=sentences.p_value,
        field=sentences.FIELD,
        plan=sentences.plan_rows(document["plan"]),
    )
    path = Path(folder) / "index.html"
    files.write_text(path, page)
    return path


def beside(panel: dict, controls: dict) -> charts.Forest | None:
    """The attacks beside the controls, as far as there are any."""
    parts = []
    if "reason" not in panel:
        parts.append(("attacks", panel["methods"]))
    if "reason" not in controls:
        parts.append((f"controls: {controls['replaced_by']}", controls["replaced"]))
        parts.append(("controls: real images alone", controls["alone"]))
        parts.append(("controls: content of the real images", controls["content"]))
    if not parts:
        return None
    rows = [(text, [(row["name"].replace("_", " "), row["auc"], row["interval"]) for row in part]) for text, part in parts]
    return charts.forest("Attacks beside controls", "AUC, 95% interval; dashed: chance", 0.5, rows)


def power(limit: dict, who: str) -> charts.Chart:
    """Power against the imprinted share of the used patients, a line a kind; all start at the rate of false alarms."""
    share = sentences.one_in(limit)
    rates, curves, lines = sorted(share), [], []
    for kind in limit["kinds"]:
        powers = [limit["null"]["power"], *(point["power"] for point in kind["points"])]
        at = [0, *(1 + rates.index(point["rate"]) for point in kind["points"])]
        curves.append((sentences.label(kind), at, powers))
        told = [f"{number(point['power'], 2)} at {share[point['rate']]}" for point in kind["points"]]
        lines.append(f"{sentences.label(kind)}: {', '.join(told)}.")
    lines.append(f"Dashed: {POWER:.0%}. Without imprints: {number(limit['null']['power'], 2)}.")
    title = f"How often a leak of so many {who}s was noticed"
    steps = ["none", *(share[rate] for rate in rates)]
    return charts.over_steps(
        title, lines, f"share of the used {who}s of whom an image was imprinted", "power", steps, curves, POWER
    )
