"""Folders of images in, one verdict and one page out.

    python -m fingerprint_jax.audit --generated=DIR --used=DIR --not_used=DIR --reference=DIR --output=DIR

The same command goes on where it was stopped. With --json the results are printed, and the exit status is that of the verdict
(verdict.py).
"""

import contextlib
import datetime
import json
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from absl import flags

from fingerprint_jax import cli, pack, preemption, tables
from fingerprint_jax.audit import page, stages, verdict
from fingerprint_jax.data import builder
from fingerprint_jax.data.images import printable
from fingerprint_jax.data.source import open_source
from fingerprint_jax.run import VERSIONS
from fingerprint_jax.writer import show_log

FOLDERS = ("generated", "used", "not_used", "unknown", "reference", "groups", "image_size")
NOT_TESTED = (
    "attacks with access to the generator itself: its weights, its training log, answers to chosen prompts or inputs",
    "leaks of other kinds than the imprints of the detection limit, for example of a diagnosis, a device or text in an image",
    "synthetic images that were not given: a leak that shows in one image of a million is not in a thousand",
    "whether the unknown images were used; they are only looked for among the synthetic ones, together with the others",
)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""

    def folder(name, text, required=False):
        flags.DEFINE_string(name, None if required else "", text, required=required, flag_values=values)

    folder("generated", "Folder of the synthetic images.", True)
    folder("used", "Folder of real images that trained the generator.", True)
    folder("not_used", "Folder of real images from the same source that did not.", True)
    folder("unknown", "Folder of real images of which it is not known; they are only looked for among the synthetic ones.")
    folder("reference", "Folder of further real images that did not; without it half of --not_used takes their place.")
    folder("groups", "CSV with header id,group or split,id,group: the patient of each image.")
    folder("output", "The folder of the audit.", True)
    flags.DEFINE_integer("image_size", 0, "Resize to this square; 0 keeps the size.", 0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of everything that is drawn.", 0, flag_values=values)
    flags.DEFINE_integer("repeats", 20, "Of each kind and rate of the detection limit; 0 leaves it out.", 0, flag_values=values)
    flags.DEFINE_bool("redact", False, "Page: no picture and no file name of any image.", flag_values=values)
    flags.DEFINE_bool("json", False, "Print audit.json, nothing else; the exit status says the verdict.", flag_values=values)


def audit(values: flags.FlagValues) -> dict:
    """Packs, runs all parts, writes audit.json and the page; returns what stands in audit.json."""
    start, output = time.monotonic(), Path(values.output)
    data, given = output / "data", {name: values[name].value for name in FOLDERS}
    known = output / "folders.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) != given:
        raise ValueError(f"{known}: that audit is of other folders; give those, or another --output")
    tables.write_text(known, json.dumps(given))  # before there is anything that it could be wrong about
    if not (builder.dataset_dir(data, "subtask1") / "summary.json").exists():
        mapped = {"generated": values.generated, "real_used": values.used, "real_not_used": values.not_used}
        mapped |= {"real_unknown": values.unknown} if values.unknown else {}
        size = values.image_size
        pack.pack("subtask1", data, output, "", values.reference, values.groups, mapped=mapped, image_size=size)
    parts = stages.Audit(output, open_source(str(data), "subtask1"), values.seed, values.repeats)
    document = {"schema": 1, "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "command": _command(values)}
    document |= {"versions": {name: version(name) for name in VERSIONS}, "not_tested": list(NOT_TESTED)}
    document |= parts.run()
    document["groups"] = document["copies"].get("groups", [])
    name, reasons = verdict.decide(document)
    document["verdict"] = {"name": name, "reasons": reasons, "sentence": ""}
    document["verdict"]["sentence"] = page.verdict_words(document)
    document["seconds"] = time.monotonic() - start
    tables.write_text(output / "audit.json", json.dumps(document, indent=1))
    page.write(output, document, parts.pictures(document["copies"]) if "reason" not in document["copies"] else [], values.redact)
    return document


def _command(values: flags.FlagValues) -> str:
    given = {name: values[name].value for name in (*FOLDERS, "output")}
    given |= {name: values[name].value for name in ("seed", "repeats") if not values[name].using_default_value}
    return shlex.join(["python", "-m", "fingerprint_jax.audit", *(f"--{name}={value}" for name, value in given.items() if value)])


def main(values: flags.FlagValues) -> None:
    """One audit; what the user can mend is one line and exit status 1."""
    show_log()
    preemption.stop_at_once()
    with contextlib.redirect_stdout(sys.stderr):  # --json: nothing else on stdout
        try:
            document = audit(values)
        except (ValueError, OSError) as error:
            raise ValueError(printable(str(error))) from None
    if values.json:
        print(json.dumps(document, indent=1))
        sys.exit(verdict.EXIT_STATUS[document["verdict"]["name"]])
    print(f"verdict: {document['verdict']['name']}. {document['verdict']['sentence']}")
    print(f"page: {Path(values.output) / 'index.html'}   results: {Path(values.output) / 'audit.json'}")


if __name__ == "__main__":
    cli.run("audit", define_flags, main)
