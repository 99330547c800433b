"""A gate of a pipeline: which findings of an audit fail it, with which exit status, and the same as JUnit XML."""

import xml.etree.ElementTree as ET
from pathlib import Path

from absl import flags

from fingerprint_jax.audit import imprint, sentences, verdict
from fingerprint_jax.audit.patients import unit
from fingerprint_jax.runtime import files, names, paths
from fingerprint_jax.runtime.names import printable

FAILED = 10  # exit status; those of an audit without a gate are `verdict.EXIT_STATUS`
LIMIT = "limit"
SUITE = "fingerprint_jax.audit"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of a gate."""
    text = f"Verdicts that end with exit status {FAILED}, all others with 0: {', '.join(verdict.SHORT)}."
    flags.DEFINE_list("fail_on", None, text, flag_values=values)
    text = f"Exit status {FAILED} too where copies of this share of the used patients might not have been noticed, such as 0.2."
    flags.DEFINE_float("max_limit", None, text, 0, 1, flag_values=values)
    paths.define("junit", "", "--fail_on, --max_limit: a file for what they find, as JUnit XML.", values)


def asked(values: flags.FlagValues) -> bool:
    """Whether there is a gate."""
    return values.fail_on is not None or values.max_limit is not None


def check(values: flags.FlagValues) -> None:
    """Raises ValueError for a gate that cannot be, that nothing passes, or that an empty variable of a pipeline has opened."""
    if values.fail_on == []:
        raise ValueError(f"--fail_on is empty: name verdicts, {', '.join(verdict.SHORT)}, or leave it out")
    for name in values.fail_on or ():
        names.check("--fail_on", name, verdict.SHORT)
    if values.max_limit is not None and not values.repeats:
        raise ValueError("--max_limit needs the detection limit, which --repeats=0 leaves out")
    if values.max_limit is not None and values.max_limit < min(imprint.RATES):
        least = f"{min(imprint.RATES):g}, the smallest share that is tried"
        raise ValueError(f"--max_limit={values.max_limit:g}: nothing passes this; use at least {least}")
    if values.junit and not asked(values):
        raise ValueError("--junit goes with --fail_on or --max_limit, it says what they find")
    if values.junit and Path(values.junit).is_dir():
        raise ValueError(f"--junit={values.junit}: a folder, name a file")


def failures(document: dict, fail_on: list[str] | None, max_limit: float | None) -> dict[str, str]:
    """{what fails: why}, of the verdicts in `fail_on` by their short names, and `limit`; empty where the gate is passed.

    Args:
        document: of audit.json.
        fail_on: names of `verdict.SHORT`; None for none.
        max_limit: the share of the used patients whose copies have to be noticed; None asks for nothing.
    """
    found = document["verdict"]
    why = "; ".join([found["name"], *found["reasons"]])
    failed = {name: why for name in fail_on or () if verdict.SHORT[name] == found["name"]}
    weak = "" if max_limit is None else too_weak(document, max_limit)
    return failed | ({LIMIT: weak} if weak else {})


def too_weak(document: dict, share: float) -> str:
    """Why imprints of a share of the used patients, of the easiest kind, might not have been noticed; '' where they would be."""
    limit, alpha = document["limit"], document["plan"]["alpha"]
    if "reason" in limit:
        return f"the detection limit is not known: {limit['reason']}"
    if not sentences.trusted(limit, alpha):
        return f"the detection limit is not to be trusted: {sentences.null_words(limit, alpha)}"
    found = max((kind["smallest"]["one_in"] for kind in limit["kinds"] if kind["smallest"]), default=0)
    if not found:
        return "none of the imprints that were tried would have been noticed"
    who = f"1 in {found} used {unit(document['counts'])}s"
    return "" if 1 / found <= share else f"imprints of less than {who} are not noticed, {share:g} is asked for"


def words(document: dict, values: flags.FlagValues) -> str:
    """What the gate says, a line."""
    failed = failures(document, values.fail_on, values.max_limit)
    if not failed:
        return "gate: passed"
    return printable(f"gate: failed: {'; '.join(f'{name} ({why})' for name, why in failed.items())}")


def status(document: dict, values: flags.FlagValues) -> int:
    """The exit status of an audit: the gate's, where there is one."""
    if asked(values):
        return FAILED if failures(document, values.fail_on, values.max_limit) else 0
    return verdict.EXIT_STATUS[document["verdict"]["name"]] if values.json else 0


def write_junit(path: str | Path, document: dict, fail_on: list[str] | None, max_limit: float | None) -> None:
    """Writes a case for each verdict that can fail, and for the limit, whole or not at all; what was not asked for is skipped."""
    failed = failures(document, fail_on, max_limit)
    wanted = {*(fail_on or ()), *([] if max_limit is None else [LIMIT])}
    cases = (*verdict.SHORT, LIMIT)
    counts = {"tests": len(cases), "failures": len(failed), "errors": 0, "skipped": len(cases) - len(wanted)}
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", {"name": SUITE} | {name: str(count) for name, count in counts.items()})
    suite.set("time", f"{document['seconds']:.3f}")
    for name in cases:
        case = ET.SubElement(suite, "testcase", {"classname": SUITE, "name": name, "time": "0"})
        if name in failed:
            ET.SubElement(case, "failure", {"message": printable(failed[name])})
        elif name not in wanted:
            ET.SubElement(case, "skipped", {"message": "not asked for"})
    found = document["verdict"]
    told = f"verdict: {found['name']}. {found['short']} {found['sentence']} {sentences.FIXED} Plan {document['plan_hash']}."
    ET.SubElement(suite, "system-out").text = printable(told)
    ET.indent(root)
    files.write_text(path, '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode"))
