"""What the figures of an audit say, in words that claim no more than they show; pure functions of audit.json."""

import itertools

from fingerprint_jax.audit import panel, verdict
from fingerprint_jax.audit.imprint import POWER
from fingerprint_jax.audit.patients import counted, plural, unit
from fingerprint_jax.report.charts import number

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
NEXT = {  # after each verdict
    verdict.CANNOT_TELL: (
        "Treat the generator as one that was not audited.",
        "Mend what the reasons name, and audit again in a new output.",
    ),
    verdict.COPIES: (
        "Hold back the synthetic images, and the generator too: without the copies it is the same that made them.",
        "Look at each listed pair beside its reference pair (Copies). A true copy is an image of a patient.",
        "Tell whoever answers for the data of these patients.",
        "Train again so that less of a single patient is kept (fewer steps, more patients), and audit what comes out.",
    ),
    verdict.WRONG_DIRECTION: (
        "Look whether the folders of used and not used images were exchanged, and how the two were drawn.",
        "Audit again with the right folders in a new output, and state both audits.",
    ),
    verdict.EVIDENCE: (
        "Hold back the generator and its images until somebody has weighed this.",
        "Have it confirmed who said which images were used, when, and whether the synthetic images were known then.",
        "Train again so that less of a single patient is kept (fewer steps, more patients), and audit what comes out.",
    ),
    verdict.CONTENT: (
        "Take the question as open: this is neither evidence of a leak nor of none.",
        "Draw used and not used patients at random from one source, and audit again in a new output.",
    ),
    verdict.NONE: (
        "Quote both sentences together, never the first alone.",
        "Decide whether a smaller leak, or one of those that were not tested, could be borne.",
        "To notice smaller leaks give more reference patients and more synthetic images, in a new audit.",
    ),
}
COUNTS = {  # of images; those with patients first
    "used": "real images given as used",
    "not_used": "real images given as not used",
    "unknown": "real images of unknown use",
    "reference": "reference images, known not to be used",
    "generated": "synthetic images",
    "duplicates": "images with the same pixels as one of another kind",
    "blank": "images that show nothing, as at the ends of a volume, which are left out",
    "without_patient": "real images whose patient is not known: each is taken for a patient of its own",
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
FIELD = (  # what is asked for elsewhere: (what, where it stands here, what is not covered)
    (
        "Membership disclosure: was somebody's data used? Experts agree on its importance (Pilgram et al., Patterns 2025).",
        "The primary result, with controls and the detection limit.",
        "Attackers that know more than images: weights, training, answers to chosen inputs.",
    ),
    (
        "Attribute disclosure: what can be learned about somebody? The same experts agree on its importance.",
        "Nothing on this page.",
        "Diagnosis, sex, age, device or text in an image that could be inferred of a person.",
    ),
    (
        "Not similarity alone: the same experts advise against measures of similarity, since they lack a precise meaning.",
        "Each likeness stands beside that of images known not to be used, and has a p-value; lists without one decide nothing.",
        "A threshold of likeness, which this page does not give.",
    ),
    (
        "The scorecard of synthetic medical data, seven criteria (7 Cs) and a description (Zamzmi et al. of the FDA, Communications"
        " Engineering 2025).",
        "What can be attached to it about leaks, and the description of the data asked about.",
        "How faithful, varied, plausible and complete the images are.",
    ),
    (
        "An AI model is anonymous only where it is insignificantly likely that personal data are extracted from it or given by"
        " queries, by all means reasonably likely to be used; a case at a time (EDPB, Opinion 28/2024).",
        "A documented test, planned beforehand, of the attacks that are named here.",
        "All other means. Whether a model is anonymous is a legal assessment, and this page is not one.",
    ),
)


def short(document: dict) -> str:
    """The verdict in a sentence or two for whoever has to decide; it names no image."""
    return _and_copies(_short(document), document, "look at each pair")


def _and_copies(text: str, document: dict, advice: str) -> str:
    """A verdict that is not of copies, with the images that are flagged all the same."""
    flagged = document["copies"].get("flagged")
    if not flagged or document["verdict"]["name"] == verdict.COPIES:
        return text
    return f"{text} All the same, {_concerned(flagged, document['counts'])} may be copied: {advice}."


def _short(document: dict) -> str:
    name, counts = document["verdict"]["name"], document["counts"]
    who = unit(counts)
    if name == verdict.COPIES and (exact := document["exact"]):
        stand = "stands" if len(exact) == 1 else "stand"
        return f"{_concerned(exact, counts)} {stand} pixel for pixel among the synthetic images."
    if name == verdict.COPIES:
        return f"Copies of {_concerned(document['copies']['flagged'], counts)} were found among the synthetic images."
    return {
        verdict.CANNOT_TELL: "These images support no answer, neither that there is a leak nor that there is none.",
        verdict.WRONG_DIRECTION: (
            f"{who.title()}s given as not used look more used than those given as used. Something may be mixed up."
        ),
        verdict.EVIDENCE: f"The synthetic images lie nearer to the used {who}s than to the others, and no control explains it.",
        verdict.CONTENT: (
            f"Used and not used {who}s differ, but the content of their images may explain it: whether the generator kept any of"
            " them cannot be told."
        ),
        verdict.NONE: f"No trace of the used {who}s was found. {limit_in_a_sentence(document)}",
    }[name]


def limit_in_a_sentence(document: dict) -> str:
    """How small a leak of the easiest kind would have been noticed, as a share of the used patients."""
    limit, who = document["limit"], unit(document["counts"])
    if "reason" in limit:
        return "How small a leak would have been noticed is not known."
    if not trusted(limit, document["plan"]["alpha"]):
        return "How small a leak would have been noticed is not known, since the panel does not alarm as often as it should."
    if not (found := _noticed_kinds(limit)):
        return "A leak of any size may have been missed: nothing that was planted was noticed often enough."
    kind = found[0]
    share = {rate: text.replace("1 in", f"1 {who} in") for rate, text in one_in(limit).items()}
    even = f"even one of the easiest kind ({label(kind)})"
    if missed := list(itertools.takewhile(lambda point: point["power"] < 0.5, kind["points"])):
        return f"A leak of {share[missed[-1]['rate']]} or fewer would probably have been missed, {even}."
    return f"A leak of fewer than {share[kind['smallest']['rate']]} may have been missed, {even}."


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


def asked_words(document: dict) -> str:
    """Who was asked about, in patients and images."""
    counts = document["counts"]

    def of(name: str, what: str) -> str:
        return counted(counts[name], counts[f"{name}_patients"], counts, what)

    unknown = f", {of('unknown', 'image')} of unknown use" if counts["unknown"] else ""
    return (
        f"Asked about were {of('used', 'used image')}, {of('not_used', 'not used image')}{unknown}. Beside them stand"
        f" {of('reference', 'reference image')} and {plural(counts['generated'], 'synthetic image')}."
    )


def score_words(document: dict) -> str:
    """What the figures are of, images or patients, and what the score of a patient is."""
    if unit(document["counts"]) == "image":
        joined = " Images with the same pixels count once." if "patients" in document["plan"] else ""
        return f"All figures are of images: no patient is known.{joined}"
    chosen = document["plan"].get("patients", {}).get("score")
    score = {"max": "the largest of the scores of its images", "mean": "the mean of the scores of its images"}.get(chosen)
    return "All figures are of patients: each has one score, " + (
        f"{score}, as the plan says." if score else "that of its one image."
    )


def refused_words(rejected: dict[str, list[int]]) -> list[str]:
    """Files that were refused, a folder a line; a folder that lost more than a twentieth is to be looked at."""
    lines = []
    for name, (lost, of) in rejected.items():
        line = f"Of {plural(of, 'file')} in the folder of {COUNTS[name]} {lost:,} could not be used; rejected.csv has the reasons."
        lines.append(line + (" Whether the rest stands for the folder is to be looked at first." if lost > of / 20 else ""))
    return lines


def reference_words(given: str) -> str:
    """Where the reference is from."""
    if given == "given":
        return "The reference images were given by whoever asked."
    return "No reference images were given: half of the images not used, whole patients, stand in for them and are not asked about."


def p_value(p: float) -> str:
    """A p-value to three digits, however small."""
    return f"{p:.3g}"


def one_in(limit: dict) -> dict[float, str]:
    """Of each rate of the detection limit the share that was imprinted in fact, whole patients, as `1 in N`."""
    points = [point for kind in limit["kinds"] for point in kind["points"]]
    return {point["rate"]: f"1 in {round(limit['used_patients'] / point['patients']):,}" for point in points}


def label(kind: dict) -> str:
    """The name of a kind of imprint, with its strength."""
    return kind["kind"] if kind["strength"] is None else f"{kind['kind']} {kind['strength']}"


def verdict_words(document: dict) -> str:
    """The verdict in a few sentences, without the name of any image; `document` is read but for its own sentence."""
    return _and_copies(_verdict_words(document), document, "see Copies")


def _verdict_words(document: dict) -> str:
    name, counts = document["verdict"]["name"], document["counts"]
    primary, excess, copies, limit = (document[part] for part in ("panel", "excess", "copies", "limit"))
    both = f"Used and not used {unit(counts)}s"
    told_apart = "p" in primary and primary["p"] <= document["plan"]["alpha"]
    doubted = copies.get("flagged") and not (verdict.missing(document) or verdict.shared(document) or told_apart)
    if name == verdict.CANNOT_TELL and doubted:
        return (
            f"{both} were not told apart (family-wise p = {p_value(primary['p'])}), and the reference images look too different"
            " from the real ones to say whether any was copied."
        )
    if name == verdict.CANNOT_TELL:
        return "These images support no answer, neither that there is a leak nor how large one could be."
    if name == verdict.COPIES and (exact := document["exact"]):
        verb = "stands" if len(exact) == 1 else "stand"
        text = f"{_concerned(exact, counts)} ({_of_classes(exact)}) {verb} pixel for pixel among the synthetic images."
        if {line["class"] for line in exact} == {"reference"}:
            text += " The reference is said not to have been used: look where it comes from, and at each pair."
        more = [line for line in copies.get("flagged", ()) if line["id"] not in {each["id"] for each in exact}]
        return text + (f" Further {_concerned(more, counts)} may be copied: see Copies." if more else "")
    if name == verdict.COPIES:
        flagged = copies["flagged"]
        return (
            f"Copies among the synthetic images were found of {_concerned(flagged, counts)} ({_of_classes(flagged)}), at a false"
            f" discovery rate of {copies['fdr']:.0%} of the {unit(counts)}s. What was copied can be another image of the same"
            " patient."
        )
    if name == verdict.WRONG_DIRECTION:
        return (
            f"The {unit(counts)}s given as not used have the higher scores (family-wise p ="
            f" {p_value(primary['p_wrong_direction'])}). Check labels and split."
        )
    told = f"told apart (family-wise p = {p_value(primary['p'])})"
    if name == verdict.EVIDENCE:
        return (
            f"{both} were {told}, and better than any control tells them apart: excess of the AUC {_figure(excess)}. A difference"
            " of content that no control here sees would look the same, as of more groups of like images than images were given;"
            " and so would labels that were chosen with the synthetic images in sight."
        )
    if name == verdict.CONTENT:
        return (
            f"{both} were {told}, but their content may explain it: excess of the AUC over that of {_name(excess['control'])}"
            f" {_figure(excess)}. Whether the images were used cannot be told from this."
        )
    text = f"{both} were not {told}."
    if "reason" in limit:
        return f"{text} How small a leak would have been noticed is not known: {limit['reason']}."
    if not trusted(limit, document["plan"]["alpha"]):
        alarms = f"without any leak the panel alarmed in {limit['null']['detected']} of {limit['null']['repeats']} repeats"
        return f"{text} How small a leak would have been noticed is not known: {alarms}."
    joined = {*document["plan"]["methods"]} - {*panel.METHODS}
    return " ".join([text, *limit_in_short(limit, counts), *([WITHOUT] if joined else [])])


def _concerned(lines: list[dict], counts: dict) -> str:
    return counted(len(lines), verdict.concerned(lines), counts, "real image")


def _of_classes(lines: list[dict]) -> str:
    of = [(c.replace("_", " "), sum(line["class"] == c for line in lines)) for c in ("used", "not_used", "unknown", "reference")]
    return ", ".join(f"{count} {c}" for c, count in of if count)


def panel_words(panel: dict, alpha: float, who: str) -> list[str]:
    """The primary result, a sentence a line; `who` is what the figures are of, see `patients.unit`."""
    if "reason" in panel:
        return [f"Not done: {panel['reason']}."]
    count = panel["permutations"]
    least = f", the smallest that {count:,} permutations can give" if panel["p"] * (count + 1) < 1.5 else ""
    found = panel["p"] <= alpha
    lines = [
        f"Family-wise p = {p_value(panel['p'])}{least}. It is that of the largest AUC of the methods, over {count:,} permutations"
        f" of the labels of {'whole patients' if who == 'patient' else 'images'}.",
        f"At a level of {alpha} used {who}s {'have' if found else 'do not have'} higher scores than not used ones, by more than"
        " chance gives.",
    ]
    other = panel["p_wrong_direction"]
    lines.append(f"In the wrong direction p = {p_value(other)}{': check labels and split.' if other <= alpha else '.'}")
    if panel["split_groups"]:
        lines.append(f"{plural(panel['split_groups'], 'patient')} with images of both labels: each was permuted as two.")
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


def limit_in_short(limit: dict, counts: dict) -> list[str]:
    """The easiest kind of imprint that was noticed, the hardest, those that were not, and what none of them can promise."""
    found = _noticed_kinds(limit)
    lines = [f"Detection limit: none of the imprints that were tried was noticed with a power of {POWER:.0%}."]
    if found:
        lines = [f"Detection limit: {_noticed(found[0], limit, counts)}, the easiest kind."]
    if found[1:]:
        hardest = _noticed(found[-1], limit, counts)
        lines.append(f"{hardest[0].upper()}{hardest[1:]}, the hardest that was noticed.")
    if found and (missed := [label(kind) for kind in limit["kinds"] if not kind["smallest"]]):
        lines.append(f"Not noticed with a power of {POWER:.0%}, even at the largest share that was tried: {', '.join(missed)}.")
    return [*lines, PLANTED]


def _noticed_kinds(limit: dict) -> list[dict]:
    """The kinds of imprints that were noticed, the easiest first."""
    return sorted((kind for kind in limit["kinds"] if kind["smallest"]), key=lambda kind: kind["smallest"]["rate"])


def _noticed(kind: dict, limit: dict, counts: dict) -> str:
    """At the smallest share that is noticed."""
    rate = kind["smallest"]["rate"]
    point = next(point for point in kind["points"] if point["rate"] == rate)
    low, high = point["interval"]
    who, many = unit(counts), f"{point['patients']:.0f} of {limit['used_patients']}"
    how = KINDS[kind["kind"]].format(kind["strength"])
    return (
        f"imprints of {'one image each of ' if who == 'patient' else ''}{many} used {who}s ({one_in(limit)[rate]}, {how}) were"
        f" noticed in {point['detected']} of {point['repeats']} repeats (95% interval of the power {low:.2f} to {high:.2f})"
    )


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
    return f"{text}, which the interval does not hold: the curves are not to be trusted."


def copies_words(copies: dict, counts: dict) -> list[str]:
    """What was found of copies and what could have been, a sentence a line."""
    if "reason" in copies:
        return [f"Not done: {copies['reason']}."]
    fdr, fewest, flagged, who = copies["fdr"], copies["fewest"], copies["flagged"], unit(counts)
    asked = counted(counts["used"] + counts["not_used"] + counts["unknown"], counts["asked_patients"], counts, "real image")
    many = counted(len(flagged), verdict.concerned(flagged), counts) if flagged else "none"
    lines = [f"Flagged as copies at a false discovery rate of {fdr:.0%} of the {who}s: {many}, of {asked}."]
    reference = counted(copies["reference"], copies["reference_groups"], counts, "reference image")
    least = f"With {reference} the smallest p-value is {p_value(copies['smallest_p'])}"
    if (parts := round(copies["smallest_p"] * (1 + copies["reference_groups"]))) > 1:
        least += f" (times {parts}, as each patient has many images beside the reference patient with the fewest)"
    if fewest > counts["asked_patients"]:
        remedy = f"more reference {who}s" + (", or a reference without patients of few images," if parts > 1 else "")
        lines.append(f"{least}: too large for any finding among {asked}. Only {remedy} can support one.")
    elif fewest > 1:
        lines.append(f"{least}: it takes at least {fewest:,} such {who}s together for a finding; fewer cannot be flagged.")
    else:
        lines.append(f"{least}: one such {who} is enough for a finding.")
    if classes := copies.get("against_reference"):
        told = ", ".join(f"{_name(line['name'])} {_figure(line, 'auc')}" for line in classes)
        lines.append(
            "The p-values hold where real images look like the reference. AUC of a classifier that tells them from it by layout and"
            f" grain, 0.5 where it cannot: {told}."
        )
    if flagged and verdict.apart(copies):
        lines.append("The reference looks different from images that are flagged: look-alikes are then flagged as well.")
    near, closer = copies["closest_reference_pair"], copies["closer"]
    lines.append(
        "Nearer to a synthetic image than any two reference images of different patients are to each other"
        f" ({number(near)}): {counted(len(closer), verdict.concerned(closer), counts)}. This is a list to look at; it has no"
        " p-value."
    )
    return lines


def counted_rows(counts: dict) -> list[tuple[str, str, str]]:
    """(what, patients, images) of all that was looked at; no patients of what has none, or none that is known."""
    known = unit(counts) == "patient"
    return [
        (text, f"{counts[f'{name}_patients']:,}" if known and f"{name}_patients" in counts else "", f"{counts[name]:,}")
        for name, text in COUNTS.items()
    ]


def plan_rows(plan: dict) -> list[tuple[str, str]]:
    """(entry, text) of the plan but for what stands elsewhere on the page."""
    return _rows({name: value for name, value in plan.items() if name not in ("versions", "fingerprints", "counts")})


def _rows(of: dict, above: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in of.items():
        where = f"{above}{_name(name)}"
        if isinstance(value, dict) and all(isinstance(each, (int, float)) for each in value.values()):
            rows.append((where, ", ".join(f"{_name(key)} {each}" for key, each in value.items())))
        elif isinstance(value, dict):
            rows += _rows(value, f"{where}: ")
        else:
            rows.append((where, _told(value)))
    return rows


def _told(value: object) -> str:
    """A value of the plan; those of a list after one another."""
    if isinstance(value, list):
        return (", " if not any(isinstance(each, list) for each in value) else "; ").join(map(_told, value))
    return "none" if value is None else str(value)


def _figure(of: dict, key: str = "value") -> str:
    low, high = of["interval"]
    return f"{number(of[key])} (95% interval {number(low)} to {number(high)})"


def _name(name: str) -> str:
    return name.replace("_", " ")
