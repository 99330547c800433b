"""audit.json -> one HTML page that stands alone, for an entrant, a privacy officer and a statistician."""

import copy
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fingerprint_jax import report, tables
from fingerprint_jax.audit import verdict
from fingerprint_jax.report import charts
from fingerprint_jax.report.charts import Chart, number
from fingerprint_jax.report.neighbours import picture_uri

FIXED = "This audit cannot show the absence of leakage."
REDACTED = "Pictures and names of images and patients are left out."
POWER = 0.8  # at which an imprint counts as one that would have been noticed
AXIS = 0.3, 1.0  # of the chart of AUCs; what is below is drawn at its end
ROW = 22  # height of a line of that chart


def sentence(name: str, document: dict) -> str:
    """A verdict in a sentence or two."""
    panel, copies = document["panel"], document["copies"]
    if name == verdict.CANNOT_TELL:
        return "The data do not allow an answer."
    if name == verdict.COPIES:
        return (
            f"{_images(len(copies['flagged']))} among the real ones have a synthetic image that is closer than chance allows"
            f" (false discovery rate {copies['fdr']:g})."
        )
    if name == verdict.WRONG_DIRECTION:
        return (
            "The images called used are further from the synthetic images than those called not used"
            f" (family-wise p {number(panel['p_wrong_direction'])}): check labels and split."
        )
    if name == verdict.EVIDENCE:
        return (
            f"Used images can be told from others by the synthetic images (family-wise p {number(panel['p'])}), and by more than"
            " any control explains."
        )
    if name == verdict.CONTENT:
        return (
            f"Used images can be told from others (family-wise p {number(panel['p'])}), but not by more than a control that no"
            " generator has touched."
        )
    return (
        f"Nothing tells used images from others by the synthetic images (family-wise p {number(panel['p'])}). {limit(document)[0]}"
    )


def limit(document: dict) -> list[str]:
    """What leak would have been noticed, a sentence a kind of imprint, the smallest first."""
    found = document["limit"]
    if "reason" in found:
        return [f"How small a leak would have been noticed is not known: {found['reason']}."]
    noticed = sorted((kind for kind in found["kinds"] if kind["smallest"]), key=lambda kind: kind["smallest"]["rate"])
    lines = []
    for kind in noticed:
        smallest = kind["smallest"]
        low, high = smallest["interval"]
        ends = f"{_share(low)} to {_share(high) if high is not None else 'more than was tried'}"
        lines.append(
            f"A generator that copied at least 1 in {smallest['one_in']} used images as {_kind(kind)} would have been noticed"
            f" with a power of {POWER:.0%} (95% interval of that share: {ends})."
        )
    for kind in found["kinds"]:
        if not kind["smallest"]:
            most = max(point["rate"] for point in kind["points"])
            lines.append(f"Even 1 in {round(1 / most)} used images as {_kind(kind)} would not have been noticed reliably.")
    return lines


def write(folder: Path, document: dict, pictures: list[tuple[str, np.ndarray, np.ndarray, str]], redact: bool = False) -> Path:
    """Writes `folder`/index.html, whole or not at all.

    Args:
        folder: of the audit.
        document: what stands in audit.json, docs/audit.md.
        pictures: (title, real image, synthetic image, what they are), uint8 [H,W].
        redact: no picture, and no name of an image or a patient.

    Returns:
        The path of the page.
    """
    if redact:
        document, pictures = _redacted(document), []
    shown = [(title, [picture_uri(Image.fromarray(image)) for image in pair], text) for title, *pair, text in pictures]
    page = report.template("audit/template.html.jinja").render(
        document=document,
        fixed=FIXED,
        redacted=REDACTED if redact else "",
        reasons=document["verdict"]["reasons"],
        dots=_dots(document),
        power=_power_chart(document["limit"]),
        limits=limit(document),
        kinds=[(_kind(kind), kind) for kind in document["limit"].get("kinds", [])],
        pictures=shown,
        plan=json.dumps(document["plan"], indent=1),
        share=_share,
    )
    path = folder / "index.html"
    tables.write_text(path, page)
    return path


def _redacted(document: dict) -> dict:
    document = copy.deepcopy(document)
    for name in ("flagged", "closer", "reference_pairs"):
        for line in document["copies"].get(name, []):
            line.update({key: "left out" for key in ("id", "match", "group") if key in line})
    document["groups"] = [line | {"group": "left out"} for line in document["groups"]]
    document["command"] = "left out"
    return document


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _share(rate: float) -> str:
    return f"{100 * rate:g}%"


def _kind(kind: dict) -> str:
    names = {
        "verbatim": "a verbatim copy",
        "shifted": "a copy that is shifted by up to 2 pixels",
        "blend": f"a blend with its nearest synthetic image, {kind['strength']:.0%} of it the real one" if kind["strength"] else "",
        "patch": "one pasted patch",
    }
    return names[kind["kind"]]


def _dots(document: dict) -> dict | None:
    """A line an AUC with its interval, attacks first: geometry of the chart, and the same in words."""
    if "reason" in document["panel"] or "reason" in document["controls"]:
        return None
    controls = document["controls"]
    rows = [(f"{line['name']}", line, 0) for line in document["panel"]["methods"]]
    rows += [(f"{line['name']}, {controls['replaced_by']} in place of the synthetic", line, 1) for line in controls["replaced"]]
    rows += [(f"{line['name']} of the real images alone", line, 2) for line in controls["content"]]
    place = lambda x: charts.place(min(max(x, AXIS[0]), AXIS[1]), *AXIS)  # noqa: E731
    lines = [
        {"name": name, "look": look, "y": ROW * (i + 1), "x": place(line["auc"]), "ends": [place(x) for x in line["interval"]]}
        for i, (name, line, look) in enumerate(rows)
    ]
    words = [
        f"{name}: {number(line['auc'])} ({number(line['interval'][0])} to {number(line['interval'][1])})" for name, line, _ in rows
    ]
    ticks = [(place(t), f"{t:g}") for t in (0.3, 0.5, 0.7, 0.9)]
    return {
        "lines": lines,
        "rows": [(name, line) for name, line, _ in rows],
        "words": words,
        "ticks": ticks,
        "height": ROW * (len(rows) + 2),
    }


def _power_chart(found: dict) -> Chart | None:
    """Power against the share of used images that was imprinted, a line a kind."""
    if "reason" in found:
        return None
    curves, words = [], []
    highest = max(point["rate"] for kind in found["kinds"] for point in kind["points"])
    for look, kind in enumerate(found["kinds"]):
        points = [(0.0, found["null"]["power"]), *((point["rate"], point["power"]) for point in kind["points"])]
        name = kind["kind"] + (f" {kind['strength']:g}" if kind["strength"] else "")
        curves.append((name, tuple(np.array(points).T), "line", look))
        words.append(f"{name}: " + ", ".join(f"{number(power, 2)} at {_share(rate)}" for rate, power in points[1:]) + ".")
    words.append(f"Without an imprint: {number(found['null']['power'])}.")
    x, y = ("share of the used images imprinted", 0, highest), ("power", 0, 1)
    return charts.chart("Power of the panel", words, x, y, curves)
