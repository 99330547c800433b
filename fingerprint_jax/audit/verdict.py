"""One verdict of six, by rules that were fixed before the data were seen."""

CANNOT_TELL = "cannot tell"
COPIES = "copies found"
WRONG_DIRECTION = "significant in the wrong direction"
EVIDENCE = "evidence of use"
CONTENT = "a difference that content explains"
NONE = "no evidence"

# Of `audit --json`. In order of precedence; 1 and 2 are mistakes of the command line, 75 asks to be run again.
EXIT_STATUS = {CANNOT_TELL: 15, COPIES: 14, WRONG_DIRECTION: 13, EVIDENCE: 12, CONTENT: 11, NONE: 0}


# The first that applies; in the plan, and what `decide` does.
RULES = {
    CANNOT_TELL: (
        "the panel, a control or the search for copies could not be had, or images are flagged as copies while the interval of the"
        " content control layout is above 0.5, so that reference images are no measure of how near an image comes by chance"
    ),
    COPIES: "images that the conformal p-values flag at the false discovery rate",
    WRONG_DIRECTION: "the family-wise p of the smallest AUC is at most alpha",
    EVIDENCE: "the family-wise p of the largest AUC is at most alpha, and the interval of the excess is above 0",
    CONTENT: "that p is at most alpha, and the interval of the excess is not above 0",
    NONE: "none of these",
}


def decide(document: dict) -> tuple[str, list[str]]:
    """The verdict of an audit's parts, as stages.py makes them, by RULES, and the reasons for it."""
    alpha, panel, controls = document["plan"]["alpha"], document["panel"], document["controls"]
    if missing := [part["reason"] for part in (panel, controls, document["copies"]) if "reason" in part]:
        return CANNOT_TELL, list(dict.fromkeys(missing))
    if flagged := document["copies"]["flagged"]:
        many = f"{len(flagged)} real images are" if len(flagged) > 1 else "1 real image is"
        layout = next(line for line in controls["content"] if line["name"] == "layout")
        if layout["interval"][0] > 0.5:
            told = f"{many} flagged as copied, but used and not used images lie differently in the frame (AUC {layout['auc']:.3f})"
            return CANNOT_TELL, [f"{told}: look-alikes are then flagged as well, look at each pair"]
        return COPIES, [f"{many} closer to a synthetic image than the false discovery rate of {document['copies']['fdr']:g} allows"]
    if panel["p_wrong_direction"] <= alpha:
        told = f"used images are further from the synthetic ones than the others, family-wise p {panel['p_wrong_direction']:.3f}"
        both = f"by another method they are nearer, family-wise p {panel['p']:.3f}"
        return WRONG_DIRECTION, [f"{told}: check labels and split", *([both] if panel["p"] <= alpha else [])]
    p = f"family-wise p {panel['p']:.3f}"
    if panel["p"] > alpha:
        return NONE, [p]
    excess = document["excess"]
    low, high = excess["interval"]
    told = f"{excess['attack']} is {excess['value']:.3f} ({low:.3f} to {high:.3f}) above the largest control, {excess['control']}"
    return (EVIDENCE if low > 0 else CONTENT), [p, told]
