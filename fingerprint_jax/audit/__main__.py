"""Folders of images in, one verdict and one page out.

    python -m fingerprint_jax.audit --generated=DIR --used=DIR --not_used=DIR --reference=DIR --output=DIR
    python -m fingerprint_jax.audit --recipe=CONFIG --real=DIR --output=DIR
    python -m fingerprint_jax.audit --config=audit.yaml

The same command goes on where it was stopped. With --json the results are printed, and the exit status is that of the verdict
(verdict.py); with --fail_on or --max_limit it is that of the gate (gate.py).
"""

import collections
import contextlib
import datetime
import hashlib
import json
import os
import sys
from pathlib import Path

from absl import flags

from fingerprint_jax.audit import gate, network, page, patients, recipe, release, sentences, settings, stages, verdict
from fingerprint_jax.data import builder, folders, medical, pack_report, packing
from fingerprint_jax.data.source import Source
from fingerprint_jax.runs import checkpoint, config_file
from fingerprint_jax.runtime import cli, environment, files, paths, preemption
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.runtime.progress import show_log

FOLDERS = {  # and the split and class of the packed data that a folder's images are
    "generated": ("train_generated", "synthetic"),
    "used": ("train_real", "used"),
    "not_used": ("train_real", "not_used"),
    "unknown": ("test_real", "unknown"),
    "reference": ("reference", "not_used"),
}
LABELS = {"synthetic": 1, "used": 1, "not_used": 0, "unknown": -1}
REQUIRED = "generated", "used", "not_used"
OF_RECIPE = "real", "steps", "count"
OF_VOLUMES = "salt", "window", "slices"  # DICOM and NIfTI
OF_PIPELINE = "fail_on", "max_limit", "junit", "release"
OF_PATIENTS = ("patient_score",)
NOT_OF_RECIPE = "plan_only", *network.ATTACKS, "bits", "max_rejected", *OF_PATIENTS, *page.ABOUT, *OF_VOLUMES, *OF_PIPELINE
KNOWN = "folders.json"  # what an audit is of; by it a folder is one
OTHER = "give another --output"
LEAST_REPEATS = 20  # 16 of 20 is surely more than half (95% interval 0.56 to 0.94), 8 of 10 is not (0.44 to 0.97)
LONGEST = 200  # characters of a line that stands on the page
NOT_TESTED = (
    "attacks with access to the generator itself: its weights, its training log, answers to chosen prompts or inputs",
    "leaks of other kinds than the imprints of the detection limit, for example of a diagnosis, a device or text in an image",
    "copies that were mirrored, turned, inverted or moved by more than 2 px after they were made",
    "synthetic images that were not given: a leak that shows in one image of a million is not in a thousand",
    "whether the unknown images were used; they are only looked for among the synthetic ones, together with the others",
)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""

    def folder(name: str, text: str) -> None:
        paths.define(name, "", text, values)

    folder("generated", "Folder of the synthetic images.")
    folder("used", "Folder of real images that trained the generator.")
    folder("not_used", "Folder of real images from the same source that did not.")
    folder("unknown", "Folder of real images of which it is not known; they are only looked for among the synthetic ones.")
    folder("reference", "Folder of further real images that did not; without it half of --not_used takes their place.")
    folder("groups", "CSV with header id,group or split,id,group: the patient of each image.")
    text = "Of a patient with several images: the mean or the largest (max) of their scores."
    flags.DEFINE_enum("patient_score", patients.DEFAULT, patients.SCORES, text, flag_values=values)
    paths.define("output", None, "The folder of the audit.", values, required=True)
    flags.DEFINE_integer("image_size", 0, "Resize to this square; 0 keeps the size.", 0, flag_values=values)
    packing.define_image_flags(values)
    flags.DEFINE_integer("seed", 0, "Of everything that is drawn.", 0, flag_values=values)
    text = f"Of each kind and rate of the detection limit, at least {LEAST_REPEATS}; 0 leaves it out."
    flags.DEFINE_integer("repeats", 20, text, 0, flag_values=values)
    for name in network.ATTACKS:
        text = f"A config whose networks are trained and join the panel, with a rank average: configs/subtask1/{name}.py"
        config_file.define_flag(name, text, values)
    text = "Write the plan, print its hash and stop: to deposit it before the same command without this flag goes on."
    flags.DEFINE_bool("plan_only", False, text, flag_values=values)
    flags.DEFINE_bool("redact", False, "Page: no picture and no file name of any image.", flag_values=values)
    for name, text in page.ABOUT.items():
        flags.DEFINE_string(
            name, "", f"Stands on the page as its {text!r}; a line of at most {LONGEST} characters.", flag_values=values
        )
    release.define_flags(values)
    gate.define_flags(values)
    recipe.define_flags(values)
    settings.define_flags(values)
    text = "Print audit.json, nothing else; the exit status says the verdict, or what --fail_on and --max_limit find."
    flags.DEFINE_bool("json", False, text, flag_values=values)


def _own_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    define_flags(values)
    return values


def audit(values: flags.FlagValues) -> dict:
    """Packs, runs all parts, writes audit.json and the page; returns what stands in audit.json; with --plan_only, the hash."""
    _check_given(values)
    output = Path(values.output)
    for name, config in (joins := _joins(values)).items():
        network.check(name, config)
    if joins:
        checkpoint.check_place(output)
    files.refuse_foreign(output, "audit", KNOWN, {"image_size": int}, OTHER)
    given = _given(values)
    output.mkdir(parents=True, exist_ok=True)
    with files.locked(output / "lock", f"{output}: %s is auditing there; wait for it, or use another --output"):
        return _audit(values, output, given)


def _joins(values: flags.FlagValues) -> network.Joins:
    return {name: values[name].value for name in network.ATTACKS if values[name].value is not None}


def _check_given(values: flags.FlagValues) -> None:
    """Raises ValueError where a flag is missing, is of no use beside or without --recipe, or cannot be."""
    given = {name for name in (*FOLDERS, *OF_RECIPE, *NOT_OF_RECIPE) if values[name].value and not values[name].using_default_value}
    with_recipe = values.recipe is not None
    if missing := sorted(({"real"} if with_recipe else {*REQUIRED}) - given):
        raise ValueError("missing: " + "; ".join(f"--{name} ({values[name].help})" for name in missing))
    if wrong := sorted(given & ({*FOLDERS, *NOT_OF_RECIPE} if with_recipe else {*OF_RECIPE})):
        raise ValueError(f"--{wrong[0]} {'does not go with' if with_recipe else 'goes with'} --recipe")
    for name in page.ABOUT:
        text = str(values[name].value)
        if not text.isprintable() or len(text) > LONGEST:
            raise ValueError(f"--{name}: use a line of at most {LONGEST} characters")
    of_volumes = packing.of_volumes(values)
    gate.check(values)
    if values.release:
        release.check(Path(values.release), Path(values.output))
    for place in ("release", "junit"):
        for name in ("config", "groups", "salt"):
            if (written := values[place].value) and (read := values[name].value):
                if Path(read).resolve().is_relative_to(Path(written).resolve()):
                    raise ValueError(f"--{place}={written} would replace what --{name}={read} names: name a place elsewhere")
    for place in filter(None, (values.output, values.release)):
        of_volumes.require_outside(Path(place))
    if 0 < values.repeats < LEAST_REPEATS:
        raise ValueError(f"--repeats={values.repeats}: use at least {LEAST_REPEATS}, or 0 to leave the detection limit out")


def of_recipe(values: flags.FlagValues) -> dict:
    """Trains a recipe and audits its checkpoints; returns what stands in recipe.json."""
    _check_given(values)
    return recipe.run(values, values.recipe, _of_arguments)


def _of_arguments(arguments: list[str]) -> dict:
    """The audit of a command line."""
    values = _own_flags()
    values(["audit", *arguments])
    return audit(values)


def _audit(values: flags.FlagValues, output: Path, given: dict) -> dict:
    data, known = output / "data", output / KNOWN
    planned = (output / "audit_plan.json").exists()
    if planned:
        _check_same(known, given)
    if not planned or not (builder.dataset_dir(data, "subtask1") / "summary.json").exists():
        # Without a plan nothing binds: what was refused may have been mended, and the images are packed anew.
        files.write_text(known, json.dumps(given))  # before there is anything that it could be wrong about
        where = {name: of[0] for name, of in given.items() if isinstance(of, list)}  # whatever the command that goes on calls them
        names = {"generated": "generated", "real_used": "used", "real_not_used": "not_used", "real_unknown": "unknown"}
        mapped = {name: where[flag] for name, flag in names.items() if flag in where}
        options = {"image_size": values.image_size, "bits": values.bits, "max_rejected": values.max_rejected}
        with stages.timed(output, "pack"):
            reference, groups = where.get("reference", ""), where.get("groups", "")
            of_volumes = packing.of_volumes(values)
            packing.pack(
                "subtask1", data, output, "", reference, groups, mapped=mapped, overwrite=True, of_volumes=of_volumes, **options
            )
    source = Source(str(data), "subtask1")  # not one that was opened before the images were packed anew
    source.verify()  # the plan carries the fingerprints
    parts = stages.Audit(output, source, values.seed, values.repeats, _joins(values), values.patient_score)
    if values.plan_only:
        return {"plan_hash": parts.plan()[1]}
    known = _own_flags()
    of_command = settings.given(values, known)
    document = {"schema": 1, "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")}
    document["command"] = settings.command(of_command)
    document["about"] = {name: values[name].value for name in page.ABOUT if values[name].value}
    document |= {"versions": environment.libraries(), "environment": environment.record(), "not_tested": list(NOT_TESTED)}
    document |= parts.run() | {"rejected": _rejected(source, given)}
    document["groups"] = document["copies"].get("groups", [])
    name, reasons = verdict.decide(document)
    document["verdict"] = {"name": name, "reasons": reasons, "patients": sentences.patients_words(document["counts"])}
    document["verdict"] |= {
        "short": sentences.short(document),
        "sentence": sentences.verdict_words(document),
        "next": list(sentences.NEXT[name]),
    }
    document["seconds"] = sum(stages.seconds(output).values())
    files.write_text(output / "audit.json", json.dumps(document, indent=1))
    pictures = parts.pictures(document["copies"]) if "reason" not in document["copies"] else []
    where = None if values.redact or "reason" in document["panel"] else parts.places()
    page.write(output, document, pictures, values.redact, where)
    settings.write(output, settings.absolute(of_command, known))
    if values.release:
        release.check(Path(values.release), output)
        release.write(Path(values.release), document, parts.sides, settings.without_paths(of_command, known))
    if values.junit:
        gate.write_junit(values.junit, document, values.fail_on, values.max_limit)
    return document


def _given(values: flags.FlagValues) -> dict:
    """What an audit is of: how it is packed, and path and a digest of names, sizes and times of the files of each flag.

    Raises ValueError that names a flag whose folder or file is not there, and two of which one's folder lies in the other's.
    """
    given: dict = {"image_size": values.image_size} | ({"bits": values.bits} if values.bits else {})
    given |= {name: values[name].value for name in OF_VOLUMES[1:] if not values[name].using_default_value}
    for name in (*FOLDERS, "groups"):
        if not (value := values[name].value):
            continue
        path = Path(value).resolve()
        if not (path.is_file() if name == "groups" else path.is_dir()):
            raise ValueError(f"--{name}={value}: there is no such {'file' if name == 'groups' else 'folder'}")
        for place in ("output", "release", "junit") if name != "groups" else ():
            if (written := values[place].value) and Path(written).resolve().is_relative_to(path):
                raise ValueError(f"--{place}={written} is in --{name}={value}: name a place elsewhere")
        for other in FOLDERS if name != "groups" else ():
            if isinstance(known := given.get(other), list) and (
                path.is_relative_to(known[0]) or Path(known[0]).is_relative_to(path)
            ):
                raise ValueError(
                    f"--{name}={value} and --{other}={values[other].value}: one lies in the other; give each its own folder"
                )
        given[name] = [str(path), _digest(path)]
    return given


def _digest(path: Path, litter: bool = False) -> str:
    """Of a file, or of the files in a folder; with or without what systems leave there, see `files.litter`."""
    inside = [path] if path.is_file() else (Path(place, file) for place, _, found in os.walk(path) for file in found)
    wanted = (file for file in inside if litter or file == path or not files.litter(file.name))
    found = sorted((str(file.relative_to(path)), *_size_and_time(file)) for file in wanted)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _size_and_time(file: Path) -> tuple[int, int]:
    found = file.lstat()  # a link may lead nowhere
    return found.st_size, found.st_mtime_ns


def _check_same(path: Path, given: dict) -> None:
    known = files.read_json(path, {"image_size": int}, OTHER)
    for name in ("image_size", "bits", *OF_VOLUMES[1:], *FOLDERS, "groups"):
        before, now = known.get(name), given.get(name)
        if before == now or (isinstance(now, list) and before == [now[0], _digest(Path(now[0]), litter=True)]):  # as it once was
            continue
        if isinstance(before, list) and isinstance(now, list) and before[:1] == now[:1]:
            raise ValueError(f"--{name}={now[0]}: files have changed since the audit in {path.parent} began; give another --output")
        shown = [value[0] if isinstance(value, list) and value else value or "nothing" for value in (before, now)]
        raise ValueError(f"--{name}: the audit in {path.parent} is of {shown[0]}, not {shown[1]}; give that, or another --output")


def _rejected(source: Source, given: dict) -> dict[str, list[int]]:
    """{flag: [images that were refused, images in all]} of the folders that lost any; other files are no loss."""
    roots = {f"{printable(given[name][0])}/": name for name in FOLDERS if name in given}
    lost: collections.Counter[str] = collections.Counter()
    for row in folders.read_table(source.path / "rejected.csv", {"file": str, "reason": str}):
        lost_image = pack_report.is_image(row["file"], row["reason"])
        inside = [root for root in roots if lost_image and row["file"].removeprefix("'").startswith(root)]
        lost.update([roots[max(inside, key=len)]] if inside else [])  # a folder that cannot be listed is no file in it
    splits = source.summary["splits"]
    kept = {name: splits[split]["classes"].get(label, 0) for name, (split, label) in FOLDERS.items() if split in splits}
    if lost and source.window:  # a volume is one file, however many slices it gave
        rows = folders.read_table(source.path / "files.csv", {"split": str, "id": str, "label": int})
        whole = collections.Counter(of[:2] for of in {(row["split"], row["label"], medical.file_of(row["id"])) for row in rows})
        kept = {name: whole[split, LABELS[label]] for name, (split, label) in FOLDERS.items()}
    return {name: [count, kept[name] + count] for name, count in lost.items()}


def main(values: flags.FlagValues) -> None:
    """One audit; what the user can mend is one line and exit status 1."""
    show_log()
    preemption.stop_at_once()
    environment.self_test()
    with contextlib.redirect_stdout(sys.stderr):  # --json: nothing else on stdout
        try:
            document = audit(values) if values.recipe is None else of_recipe(values)
        except (ValueError, OSError) as error:
            raise ValueError(printable(str(error))) from None
    if values.plan_only:
        print(document["plan_hash"])
        return
    if values.json:
        print(json.dumps(document, indent=1))
    if values.recipe is not None:
        if not values.json:
            print(f"{recipe.table(document['checkpoints'])}\n\n{document['sentence']}")
        return
    if not values.json:
        _print(document, Path(values.output))
    if gate.asked(values):
        print(gate.words(document, values), file=sys.stderr if values.json else sys.stdout)
    if status := gate.status(document, values):
        sys.exit(status)


def _print(document: dict, output: Path) -> None:
    print(f"verdict: {document['verdict']['name']}. {document['verdict']['short']}")
    print(f"in detail: {document['verdict']['sentence']}")
    for reason in document["verdict"]["reasons"]:
        print(f"reason: {reason}")
    if found := document["verdict"]["patients"]:
        print(f"patients: {found}")
    for step in document["verdict"]["next"]:
        print(f"next: {step}")
    print(f"page: {output / 'index.html'}   results: {output / 'audit.json'}")


def command() -> None:
    """The console script."""
    try:
        sys.argv = settings.expanded(sys.argv, _own_flags())
    except (ValueError, OSError, flags.Error) as error:
        sys.exit(f"audit: error: {printable(str(error))}")
    cli.run("audit", define_flags, main, devices=True)


if __name__ == "__main__":
    command()
