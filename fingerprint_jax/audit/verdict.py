"""One verdict of six, by rules that were fixed before the data were seen."""

import collections

from fingerprint_jax.audit.patients import counted

CANNOT_TELL = "cannot tell"
COPIES = "copies found"
WRONG_DIRECTION = "significant in the wrong direction"
EVIDENCE = "evidence of use"
CONTENT = "a difference that content explains"
NONE = "no evidence"

# Of `audit --fail_on`: all but the last.
SHORT = {"copies": COPIES, "evidence": EVIDENCE, "content": CONTENT, "wrong_direction": WRONG_DIRECTION, "cannot_tell": CANNOT_TELL}

# Of `audit --json` where gate.py has no other. In order of precedence; 1 and 2 are mistakes of the command line, 75 asks to be run
# again.
EXIT_STATUS = {CANNOT_TELL: 15, COPIES: 14, WRONG_DIRECTION: 13, EVIDENCE: 12, CONTENT: 11, NONE: 0}

# Of the lower end of the interval of the AUC of a class of real images against the reference. Many images make a difference
# significant that is too small to matter: of two normal distributions that are told apart with an AUC of 0.6, all of it in the
# direction of nearness, one has 3.4 times the mass of the other beyond its 1 in 2,000. A false discovery rate of 5% is then at
# most 17%, and beyond that it means little.
APART = 0.6

# Of the used or the not used images, that have a near duplicate in the other folder or in the reference: more of them say nothing.
NEAR = 0.05

# The first that applies; in the plan, and what `decide` does.
RULES = {
    CANNOT_TELL: (
        "the panel, a control or the search for copies could not be had; or there are no copies, and more than"
        f" {NEAR:.0%} of the used or the not used images have a near duplicate in the other folder or in the reference; or there is"
        " no evidence, and the synthetic images lie nearer to the real ones mirrored, turned or inverted; or no rule below applies,"
        " and images are flagged as copies by a reference that is no measure of it"
    ),
    COPIES: (
        "a real image that stands pixel for pixel among the synthetic ones, whatever else could be had; or images that the"
        " conformal p-values flag at the false discovery rate, of classes none of which is told from the reference"
        f" with an AUC whose interval is above {APART}: else the reference is no measure of how near an image comes by chance"
    ),
    WRONG_DIRECTION: "the family-wise p of the smallest AUC is at most alpha",
    EVIDENCE: "the family-wise p of the largest AUC is at most alpha, and the interval of the excess is above 0",
    CONTENT: "that p is at most alpha, and the interval of the excess is not above 0",
    NONE: "none of these",
}


def decide(document: dict) -> tuple[str, list[str]]:
    """The verdict of an audit's parts, as stages.py makes them, by RULES, and the reasons for it."""
    alpha, panel = document["plan"]["alpha"], document["panel"]
    if exact := document["exact"]:
        kinds = collections.Counter(line["class"].replace("_", " ") for line in exact)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        many = counted(len(exact), concerned(exact), document["counts"], "real image")
        return COPIES, [f"pixel for pixel among the synthetic images: {many} ({listed})", *missing(document)]
    if reasons := missing(document):
        return CANNOT_TELL, reasons
    found, doubt = document["copies"], []
    if flagged := found["flagged"]:
        many = counted(len(flagged), concerned(flagged), document["counts"], "real image") + (" are" if flagged[1:] else " is")
        if not (other := apart(found)):
            return COPIES, [f"{many} closer to a synthetic image than the false discovery rate of {found['fdr']:g} allows"]
        told = ", ".join(f"{line['name'].replace('_', ' ')} (AUC {line['auc']:.3f})" for line in other)
        doubt = [
            f"{many} flagged as copied, but the reference images look different from those given as {told}: look-alikes are then"
            " flagged as well, look at each pair"
        ]
    if reasons := shared(document):
        return CANNOT_TELL, [*reasons, *doubt]
    if (turned := document["turned"]) and not _evidence(document):
        told = f"{turned['share']:.0%} of {turned['images']} synthetic images lie nearer to a real one {turned['change']}"
        return CANNOT_TELL, [f"{told}: give them as the real ones are, else nothing can be found in them", *doubt]
    if panel["p_wrong_direction"] <= alpha:
        told = f"used images are further from the synthetic ones than the others, family-wise p {panel['p_wrong_direction']:.3f}"
        both = f"by another method they are nearer, family-wise p {panel['p']:.3f}"
        return WRONG_DIRECTION, [f"{told}: check labels and split", *([both] if panel["p"] <= alpha else []), *doubt]
    p = f"family-wise p {panel['p']:.3f}"
    if panel["p"] > alpha:
        return (CANNOT_TELL if doubt else NONE), [p, *doubt]  # not an exit status that a pipeline takes for no finding
    excess = document["excess"]
    low, high = excess["interval"]
    attack, control = (excess[name].replace("_", " ") for name in ("attack", "control"))
    told = f"the AUC of {attack} less that of the largest control, {control}, is {excess['value']:.3f}"
    return (EVIDENCE if low > 0 else CONTENT), [p, f"{told} ({low:.3f} to {high:.3f})", *doubt]


def _evidence(document: dict) -> bool:
    alpha, panel = document["plan"]["alpha"], document["panel"]
    return panel["p_wrong_direction"] > alpha >= panel["p"] and document["excess"]["interval"][0] > 0


def shared(document: dict) -> list[str]:
    """What of the labelled images stands on the other side as well, but for a change that nobody sees; empty where it is little."""
    near, counts, lines = document["near"], document["counts"], []
    for name in ("used", "not_used"):
        if near[name] > NEAR * counts[name]:
            lines.append(
                f"{near[name]} of {counts[name]} images given as {name.replace('_', ' ')} have a near duplicate in the other folder"
                " or in the reference, as has the same image saved anew, or a neighbour in the same patient: leave one of them out"
            )
    return lines


def missing(document: dict) -> list[str]:
    """Why parts without which there is no verdict could not be had."""
    parts = (document[name] for name in ("panel", "controls", "copies"))
    return list(dict.fromkeys(part["reason"] for part in parts if "reason" in part))


def concerned(lines: list[dict]) -> int:
    """How many patients the listed images are of."""
    return len({line["group"] for line in lines})


def apart(copies: dict) -> list[dict]:
    """The classes with flagged images that are too different from the reference for its p-values to mean anything."""
    classes = {line["class"] for line in copies["flagged"]}
    return [line for line in copies["against_reference"] if line["name"] in classes and line["interval"][0] > APART]
