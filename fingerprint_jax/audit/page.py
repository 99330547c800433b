"""The audit -> one HTML page that stands alone, and what its figures say in words that claim no more than they show."""

import json
from pathlib import Path

import numpy as np

from fingerprint_jax import report
from fingerprint_jax.audit import network, panel, verdict
from fingerprint_jax.audit.imprint import POWER
from fingerprint_jax.report import charts, neighbours, places, words
from fingerprint_jax.report.charts import number
from fingerprint_jax.runtime import files
from fingerprint_jax.runtime.names import duration

Pair = tuple[str, np.ndarray, np.ndarray, str]  # title, left and right image uint8 [H,W], and what they show

NOTICED = (
    "Noticed means a family-wise p of at most {}, not that the verdict would have been evidence of use: neither the controls nor"
    " the search for copies has a say in it."
)
PLANTED = (
    "These imprints were planted. What a generator keeps of an image is often fainter, and of a fainter leak this limit promises"
    " nothing, even where every used image left one."
)
WITHOUT = "These are repeats of the panel without the networks."
FIXED = "This audit cannot show the absence of leakage."
LOUD = (verdict.COPIES, verdict.EVIDENCE, verdict.WRONG_DIRECTION)
ROWS = 100  # of a list of copies, which bounds the size of the page
COUNTS = {
    "used": "real images given as used",
    "not_used": "real images given as not used",
    "unknown": "real images of unknown use",
    "generated": "synthetic images",
    "reference": "reference images, known not to be used",
    "groups": "groups (patients) of the real images",
    "duplicates": "images with the same pixels as one of another kind",
    "blank": "images that show nothing, as at the ends of a volume, which are left out",
    "without_patient": "real images whose patient is not known: each is a group of its own",
    "unmatched_ids": "ids of the table of patients that match no image",
}
CONTENT = {
    "files": "size, palette and metadata of the files; no part of the excess, since no method sees them",
    "order": "order by the numbers in the names; no part of the excess, since no method sees them",
    "intensity": "moments of the intensity, area of the body",
    "texture": "texture, traces of compression",
    "layout": "where in the frame is what, by principal components",
    "reference": "distance to the nearest reference image; no synthetic image is read",
    "reference_local": "the same of local anatomy",
    "coarse": "distance to a fifth of the synthetic images less that to a fifth of the reference: where they lie, not what is near",
    "kernel": "intensity, grain and layout together, by a classifier with a Gaussian kernel",
    "likeness": "the same, by a classifier of synthetic against reference images that reads no label",
}
KINDS = {
    "verbatim": "verbatim",
    "shifted": "shifted by up to 2 px",
    "blend": "at strength {}, blended with the nearest synthetic image",
    "patch": "one patch, pasted into the nearest synthetic image",
}


def write(
    folder: str | Path, document: dict, pictures: list[Pair], redact: bool = False, where: places.Found | None = None
) -> Path:
    """Writes `<folder>/index.html`, whole or not at all, and returns its path.

    Args:
        folder: is made where it is missing.
        document: the results of the audit, JSON types. Its sentence, reasons and list of what was not tested name no image
            and no group: a redacted page keeps them.
        pictures: two by two a flagged real image with its match, and the reference image of the same rank with its match.
        redact: no picture, and no name of an image or of a group; counts, distances and p-values stay.
        where: the images of highest and lowest score, and where they are found.
    """
    counts, alpha, limit = document["counts"], document["plan"]["alpha"], document["limit"]
    shown = [] if redact else [(title, neighbours.uri(a), neighbours.uri(b), text) for title, a, b, text in pictures]
    page = report.template("audit/template.html.jinja").render(
        document=document,
        made_on=words.made_on(document),
        redact=redact,
        fixed=FIXED,
        loud=document["verdict"]["name"] in LOUD or bool(document["copies"].get("flagged")),
        duration=duration(document["seconds"]),
        counted=[(text, counts[name]) for name, text in COUNTS.items()],
        refused=refused_words(document["rejected"]),
        reference=_reference(document["reference_from"]),
        panel=panel_words(document["panel"], alpha),
        described=panel.WORDS | network.WORDS,
        beside=beside(document["panel"], document["controls"]),
        content=CONTENT,
        excess=excess_words(document["excess"]),
        power=None if "reason" in limit else power(limit),
        null=None if "reason" in limit else null_words(limit, alpha),
        limit=[] if "reason" in limit else limit_words(limit),
        limit_in_short=[] if "reason" in limit else limit_in_short(limit),
        nearness=None if "reason" in limit else nearness_words(limit),
        one_in=None if "reason" in limit else one_in(limit),
        label=label,
        noticed=NOTICED.format(alpha),
        copies=copies_words(document["copies"], counts["used"] + counts["not_used"] + counts["unknown"]),
        rows=ROWS,
        pictures=[shown[k : k + 2] for k in range(0, len(shown), 2)],
        where=None if redact else where,
        p_value=p_value,
        plan=json.dumps(document["plan"], indent=1),
    )
    path = Path(folder) / "index.html"
    files.write_text(path, page)
    return path


def patients_words(counts: dict) -> str:
    """What it does to the p that patients are not known; nothing where all are."""
    real, without, within = counts["real"], counts["without_patient"], counts["within"]
    if not without:
        return ""
    who = "every real image was" if without == real else f"each of {without:,} of the {real:,} real images was"
    given = "No table of patients was given (--groups)" if without == real else "The patient of some images is not known (--groups)"
    return (
        f"{given}: {who} taken for a patient of its own. Images of one patient are alike: where some patients have several, the p"
        " is too small, the intervals are too narrow and the detection limit is too good."
        + (f" {within:,} of them have a near duplicate in their own folder." if within else "")
    )


def refused_words(rejected: dict[str, list[int]]) -> list[str]:
    """Files that were refused, a folder a line; a folder that lost more than a twentieth is to be looked at."""
    lines = []
    for name, (lost, of) in rejected.items():
        line = f"Of {_count(of, 'file')} in the folder of {COUNTS[name]} {lost:,} could not be used; rejected.csv has the reasons."
        lines.append(line + (" Whether the rest stands for the folder is to be looked at first." if lost > of / 20 else ""))
    return lines


def p_value(p: float) -> str:
    """A p-value to three digits, however small."""
    return f"{p:.3g}"


def one_in(limit: dict) -> dict[float, str]:
    """Of each rate of the detection limit the share that was imprinted in fact, whole images, as `1 in N`."""
    points = [point for kind in limit["kinds"] for point in kind["points"]]
    return {point["rate"]: f"1 in {round(limit['used'] / point['images']):,}" for point in points}


def label(kind: dict) -> str:
    """The name of a kind of imprint, with its strength."""
    return kind["kind"] if kind["strength"] is None else f"{kind['kind']} {kind['strength']}"


def kind_words(kind: dict) -> str:
    """How a kind of imprint copies."""
    return KINDS[kind["kind"]].format(kind["strength"])


def verdict_words(document: dict) -> str:
    """The verdict in a few sentences, without the name of any image; `document` is read but for its own sentence."""
    text, flagged = _verdict_words(document), document["copies"].get("flagged")
    if not flagged or document["verdict"]["name"] == verdict.COPIES:
        return text
    return f"{text} All the same, {_count(len(flagged), 'real image')} may be copied: see Copies."


def _verdict_words(document: dict) -> str:
    name = document["verdict"]["name"]
    panel, excess, copies, limit = (document[part] for part in ("panel", "excess", "copies", "limit"))
    if name == verdict.CANNOT_TELL and copies.get("flagged") and not verdict.missing(document):
        return (
            f"Used and not used images were not told apart (family-wise p = {p_value(panel['p'])}), and the reference images look"
            " too different from the real ones to say whether any was copied."
        )
    if name == verdict.CANNOT_TELL:
        return "These images support no answer, neither that there is a leak nor how large one could be."
    if name == verdict.COPIES and (exact := document["exact"]):
        verb = "stands" if len(exact) == 1 else "stand"
        text = f"{_count(len(exact), 'real image')} ({_of_classes(exact)}) {verb} pixel for pixel among the synthetic images."
        if {line["class"] for line in exact} == {"reference"}:
            text += " The reference is said not to have been used: look where it comes from, and at each pair."
        more = [line for line in copies.get("flagged", ()) if line["id"] not in {each["id"] for each in exact}]
        return text + (f" Further {_count(len(more), 'real image')} may be copied: see Copies." if more else "")
    if name == verdict.COPIES:
        known = not document["counts"]["without_patient"]
        patients = f" of {_count(len(document['groups']), 'patient')}" if known else ""
        return (
            f"Copies among the synthetic images were found of {_count(len(copies['flagged']), 'real image')}{patients}"
            f" ({_of_classes(copies['flagged'])}), at a false discovery rate of {copies['fdr']:.0%}. What was copied can be another"
            " image of the same patient."
        )
    if name == verdict.WRONG_DIRECTION:
        return (
            "The images given as not used have the higher scores (family-wise p ="
            f" {p_value(panel['p_wrong_direction'])}). Check labels and split."
        )
    told = f"told apart (family-wise p = {p_value(panel['p'])})"
    if name == verdict.EVIDENCE:
        return (
            f"Used and not used images were {told}, and better than any control tells them apart: excess of the AUC"
            f" {_figure(excess)}. A difference of content that no control here sees would look the same, as of more groups of like"
            " images than images were given; and so would labels that were chosen with the synthetic images in sight."
        )
    if name == verdict.CONTENT:
        return (
            f"Used and not used images were {told}, but their content may explain it: excess of the AUC over that of"
            f" {_name(excess['control'])} {_figure(excess)}. Whether the images were used cannot be told from this."
        )
    text = f"Used and not used images were not {told}."
    if "reason" in limit:
        return f"{text} How small a leak would have been noticed is not known: {limit['reason']}."
    if not trusted(limit, document["plan"]["alpha"]):
        alarms = f"without any leak the panel alarmed in {limit['null']['detected']} of {limit['null']['repeats']} repeats"
        return f"{text} How small a leak would have been noticed is not known: {alarms}."
    return " ".join([text, *limit_in_short(limit), *([WITHOUT] if "likelihood_ratio" in document["plan"]["methods"] else [])])


def _of_classes(lines: list[dict]) -> str:
    of = [(c.replace("_", " "), sum(line["class"] == c for line in lines)) for c in ("used", "not_used", "unknown", "reference")]
    return ", ".join(f"{count} {c}" for c, count in of if count)


def panel_words(panel: dict, alpha: float) -> list[str]:
    """The primary result, a sentence a line."""
    if "reason" in panel:
        return [f"Not done: {panel['reason']}."]
    count = panel["permutations"]
    least = f", the smallest that {count:,} permutations can give" if panel["p"] * (count + 1) < 1.5 else ""
    found = panel["p"] <= alpha
    lines = [
        f"Family-wise p = {p_value(panel['p'])}{least}. It is that of the largest AUC of the methods, over {count:,} permutations"
        " of the labels of whole groups.",
        f"At a level of {alpha} used images {'have' if found else 'do not have'} higher scores than not used ones, by more than"
        " chance gives.",
    ]
    other = panel["p_wrong_direction"]
    lines.append(f"In the wrong direction p = {p_value(other)}{': check labels and split.' if other <= alpha else '.'}")
    if panel["split_groups"]:
        lines.append(f"{_count(panel['split_groups'], 'group')} with both labels: each was permuted as two units.")
    return lines


def excess_words(excess: dict | None) -> str:
    """What the attack tells beyond the largest control."""
    if excess is None:
        return "No excess over the controls could be formed."
    low, high = excess["interval"]
    if low > 0:
        told = "The interval lies above 0: the controls do not explain the difference"
    elif high < 0:
        told = "The interval lies below 0: the control tells more than the attack"
    else:
        told = "The interval holds 0: content may explain what difference there is"
    return (
        f"Excess = AUC of {_name(excess['attack'])} less that of the largest control, {_name(excess['control'])}:"
        f" {_figure(excess)}. {told}."
    )


def limit_words(limit: dict) -> list[str]:
    """What would have been noticed, a kind of imprint a line."""
    share, lines = one_in(limit), []
    for kind in limit["kinds"]:
        noticed = _noticed(kind, limit)
        noticed = noticed[0].upper() + noticed[1:]
        if not kind["smallest"]:
            lines.append(f"{noticed}. Even at this largest share the power stayed below {POWER:.0%}.")
            continue
        low, high = kind["smallest"]["interval"]
        span = f"between {share[low]} and {share[high]}" if high else f"from {share[low]} on; no share tried is surely enough"
        lines.append(f"{noticed}. A power of {POWER:.0%} is reached {span} (95% interval).")
    return lines


def limit_in_short(limit: dict) -> list[str]:
    """The easiest kind of imprint that was noticed, the hardest, those that were not, and what none of them can promise."""
    found = [kind for kind in limit["kinds"] if kind["smallest"]]
    found.sort(key=lambda kind: kind["smallest"]["rate"])
    lines = [f"Detection limit: none of the imprints that were tried was noticed with a power of {POWER:.0%}."]
    if found:
        lines = [f"Detection limit: {_noticed(found[0], limit)}, the easiest kind."]
    if found[1:]:
        hardest = _noticed(found[-1], limit)
        lines.append(f"{hardest[0].upper()}{hardest[1:]}, the hardest that was noticed.")
    if found and (missed := [label(kind) for kind in limit["kinds"] if not kind["smallest"]]):
        lines.append(f"Not noticed with a power of {POWER:.0%}, even at the largest share that was tried: {', '.join(missed)}.")
    return [*lines, PLANTED]


def nearness_words(limit: dict) -> str:
    """How easy each kind of imprint is."""
    told = ", ".join(f"{label(kind)} {kind['points'][0]['distance']:.2f}" for kind in limit["kinds"])
    return (
        "How far an imprint lies from its image, as a share of how far the nearest synthetic image does (pixels, median):"
        f" {told}. The smaller the share, the easier the kind; a generator's own images have 1."
    )


def trusted(limit: dict, alpha: float) -> bool:
    """Whether the panel alarms without an imprint as often as it should."""
    low, high = limit["null"]["interval"]
    return low <= alpha <= high


def null_words(limit: dict, alpha: float) -> str:
    """How often the panel alarms without an imprint, and whether that is as often as it should."""
    null = limit["null"]
    text = (
        f"Without imprints the panel alarmed in {null['detected']} of {null['repeats']} repeats: {_figure(null, 'power')}."
        f" It should be about {alpha}"
    )
    if trusted(limit, alpha):
        return f"{text}, which the interval holds."
    return f"{text}, which the interval does not hold: the curves below are not to be trusted."


def copies_words(copies: dict, images: int) -> list[str]:
    """What was found of copies and what could have been, a sentence a line; `images` real images were asked about."""
    if "reason" in copies:
        return [f"Not done: {copies['reason']}."]
    count, fdr, reference, fewest = len(copies["flagged"]), copies["fdr"], copies["reference"], copies["fewest"]
    lines = [f"Flagged as copies at a false discovery rate of {fdr:.0%}: {count or 'none'} of {_count(images, 'real image')}."]
    patients = copies["reference_groups"]
    of = "" if patients == reference else f" of {_count(patients, 'group')} (patients), each of which counts once,"
    least = f"With {_count(reference, 'reference image')}{of} the smallest p-value is {p_value(copies['smallest_p'])}"
    if fewest > images:
        lines.append(f"{least}: too large for any finding among {images:,} images. Only more reference images can support one.")
    elif fewest > 1:
        lines.append(f"{least}: it takes at least {fewest:,} such images together for a finding; fewer copies cannot be flagged.")
    else:
        lines.append(f"{least}: one such image is enough for a finding.")
    if classes := copies.get("against_reference"):
        told = ", ".join(f"{_name(line['name'])} {_figure(line, 'auc')}" for line in classes)
        lines.append(
            "The p-values hold where real images look like the reference. AUC of a classifier that tells them from it by layout and"
            f" grain, 0.5 where it cannot: {told}."
        )
    if copies["flagged"] and verdict.apart(copies):
        lines.append("The reference looks different from images that are flagged: look-alikes are then flagged as well.")
    near = copies["closest_reference_pair"]
    lines.append(
        f"Nearer to a synthetic image than any two reference images of different groups are to each other ({number(near)}):"
        f" {_count(len(copies['closer']), 'real image')}. This is a list to look at; it has no p-value."
    )
    return lines


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
    rows = [(text, [(_name(row["name"]), row["auc"], row["interval"]) for row in part]) for text, part in parts]
    return charts.forest("Attacks beside controls", "AUC, 95% interval; dashed: chance", 0.5, rows)


def power(limit: dict) -> charts.Chart:
    """Power against the imprinted share of the used images, a line a kind; all start at the rate of false alarms."""
    share = one_in(limit)
    rates, curves, lines = sorted(share), [], []
    for kind in limit["kinds"]:
        powers = [limit["null"]["power"], *(point["power"] for point in kind["points"])]
        places = [0, *(1 + rates.index(point["rate"]) for point in kind["points"])]
        curves.append((label(kind), places, powers))
        told = [f"{number(point['power'], 2)} at {share[point['rate']]}" for point in kind["points"]]
        lines.append(f"{label(kind)}: {', '.join(told)}.")
    lines.append(f"Dashed: {POWER:.0%}. Without imprints: {number(limit['null']['power'], 2)}.")
    steps = ["none", *(share[rate].replace(" in ", "/") for rate in rates)]
    title, x_label = "Power by imprinted share", "share of the used images imprinted"
    return charts.over_steps(title, lines, x_label, "power", steps, curves, POWER)


def _noticed(kind: dict, limit: dict) -> str:
    """At the smallest share that is noticed, else at the largest that was tried."""
    rate = (kind["smallest"] or kind["points"][-1])["rate"]
    point = next(point for point in kind["points"] if point["rate"] == rate)
    low, high = point["interval"]
    patients = f"{point['patients']:.0f} of {limit['used_patients']} used patients"
    return (
        f"imprints of {patients} ({one_in(limit)[rate]} used images, {kind_words(kind)}) were noticed in {point['detected']} of"
        f" {point['repeats']} repeats (95% interval of the power {low:.2f} to {high:.2f})"
    )


def _figure(of: dict, key: str = "value") -> str:
    low, high = of["interval"]
    return f"{number(of[key])} (95% interval {number(low)} to {number(high)})"


def _name(name: str) -> str:
    return name.replace("_", " ")


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _reference(given: str) -> str:
    if given == "given":
        return "The reference images were given by whoever asked."
    return "No reference images were given: half of the images not used, whole groups, stand in for them and are not asked about."
