"""Before a release: how much a recipe leaks, and from which checkpoint on the audit notices.

    python -m fingerprint_jax.audit --recipe=CONFIG --real=DIR --groups=CSV --output=DIR

A generator is trained by the recipe on half of the patients, so that both sides are known for certain. At each step of --steps its
own loss says how large the leak is, and a whole audit of what it makes says whether an auditor would notice.

OUTPUT/pool, used       all images, and those of the generator, packed
OUTPUT/run              its training
OUTPUT/step-N           what it made at that step, official folders, a grid, and the audit in `audit`
OUTPUT/recipe.json      what is asked, and what was found so far
OUTPUT/recipe.md        the same as a table
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.audit import copies, verdict
from fingerprint_jax.data import controls, images, tables
from fingerprint_jax.data.phantom import Split
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.leaks import generators, pool
from fingerprint_jax.runs import checkpoint, config_file
from fingerprint_jax.runs.config import code_hash
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files, paths

RECORD = "recipe.json"
_AUDIT = re.compile(  # what the audit of a checkpoint leaves, and kills of it
    r"stages/\w+\.jsonl?|(audit|audit_plan|folders|seconds)\.json|audit\.yaml|scores\.csv|index\.html|lock|(stages/)?\.[\w.]+\.tmp"
    r"|data/fingerprint/subtask1/(1\.0\.0|\.pack-\w{8})/[\w./-]+|data/fingerprint/subtask1/\.[\w.]+"
)
SHARES = 2, 1, 1  # of the patients: used, not used, reference
LEAST = 20  # images, and patients, of each that an audit needs
NOTICED = verdict.EVIDENCE, verdict.COPIES

Audit = Callable[[list[str]], dict[str, Any]]  # the arguments of an audit -> its audit.json


def define_flags(values: flags.FlagValues) -> None:
    """The flags that go with --recipe."""
    text = "Before a release: a config that trains a generator on half of --real, which is then audited, such as generators/flow."
    config_file.define_flag("recipe", text, values)
    paths.define("real", "", "--recipe: folder of the real images, all of one kind.", flag_values=values)
    text = "--recipe: its checkpoints that are audited; empty: an eighth, a quarter, a half and all of its num_steps."
    flags.DEFINE_list("steps", [], text, flag_values=values)
    flags.DEFINE_integer("count", 500, "--recipe: images that are made at each checkpoint.", LEAST, 1_000_000, flag_values=values)


def steps_of(config: Config, texts: list[str]) -> tuple[int, ...]:
    """The checkpoints that are asked for, ascending; raises ValueError for what is none of the recipe."""
    if not texts:
        return tuple(sorted({max(config.num_steps // part, 1) for part in (8, 4, 2, 1)}))
    if not all(text.isdecimal() and 1 <= int(text) <= config.num_steps for text in texts):
        raise ValueError(f"--steps={','.join(texts)}: use whole numbers from 1 to the recipe's num_steps={config.num_steps}")
    return tuple(sorted({int(text) for text in texts}))


def draw(rows: Rows, seed: int) -> dict[str, Rows]:
    """Whole patients: half of them `used`, a quarter `not_used`, a quarter `reference`.

    Raises ValueError where there are too few.
    """
    part = controls.cut(rows.groups, SHARES, np.random.default_rng([seed, 0]))
    found = {name: rows.take(part == k) for k, name in enumerate(("used", "not_used", "reference"))}
    for name, side in found.items():
        patients = len(np.unique(side.groups))
        if patients < LEAST:
            many = f"{len(np.unique(rows.groups))} patients in --real are too few: {patients} would be {name.replace('_', ' ')}"
            raise ValueError(f"{many}, an audit needs {LEAST} of each, 80 in all")
    return found


def run(values: flags.FlagValues, config: Config, audit: Audit) -> dict[str, Any]:
    """Trains the recipe, audits it at each checkpoint, and returns what is in recipe.json.

    Args:
        values: the flags.
        config: of the recipe.
        audit: makes one.

    Raises ValueError for what the user can mend.
    """
    generators.check(config, "--recipe")
    wanted, output = steps_of(config, values.steps), Path(values.output)
    checkpoint.check_place(output)
    files.refuse_foreign(output, "audit of a recipe", pool.RECORD, pool.FIELDS, pool.OTHER)
    now = pool.given(Path(values.real), values.groups, values.image_size, output, flag="real")
    output.mkdir(parents=True, exist_ok=True)
    with files.locked(output / "lock", f"{output}: %s is auditing there; wait for it, or use another --output"):
        real = pool.pack(Path(values.real), values.groups, output, now, flag="real")
        if min(real.image_shape[:2]) < copies.LEAST_SIDE:
            raise ValueError(f"--real={values.real}: an audit needs images of at least {copies.LEAST_SIDE} pixels a side")
        drawn = draw(real.rows("train"), values.seed)
        config = ConfigDict(config.to_dict())  # not locked: one of somebody's own may lack the field
        config.keep = wanted
        plan = {"config": code_hash(config), "pool": real.fingerprints["train"], "seed": values.seed, "count": values.count}
        plan["repeats"] = 0 if values["repeats"].using_default_value else values.repeats  # the leak is known: no detection limit
        plan["steps"], plan["groups"] = list(wanted), bool(values.groups)
        document: dict[str, Any] = _known(output / RECORD, plan) | {"counts": {name: _count(rows) for name, rows in drawn.items()}}
        files.write_text(output / RECORD, json.dumps(document, indent=1))
        if len(document["checkpoints"]) < len(wanted):
            pool.verified(real, output / "pool")
            with tables.anew():  # whoever had the folder can have put anything there
                trained = generators.train(config, output / "run", output / "used", real, drawn["used"])
                for step in wanted[len(document["checkpoints"]) :]:
                    document["checkpoints"].append(_checkpoint(trained, step, real, drawn, plan, values, audit))
                    files.write_text(output / RECORD, json.dumps(document, indent=1))
    lines = document["checkpoints"]
    for line in lines:
        if line.get("redacted", False) is not values.redact:  # the page is written anew, the audit itself is done
            audit(_arguments(output / f"step-{line['step']}", plan, values.redact))
            line["redacted"] = values.redact
    document["sentence"] = sentence(lines, document["counts"]["used"])
    files.write_text(output / RECORD, json.dumps(document, indent=1))
    files.write_text(output / "recipe.md", table(lines) + f"\n\n{document['sentence']}\n")
    return document


def _known(path: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What stands there of the same plan; raises ValueError where it is of another."""
    if not path.exists():
        return {"schema": 1, "plan": plan, "checkpoints": []}
    known = files.read_json(path, {"plan": dict, "checkpoints": list}, pool.OTHER)
    if not all(isinstance(line, dict) for line in known["checkpoints"]):
        raise ValueError(f"{path} cannot be used (a line of checkpoints is no object): {pool.OTHER}")
    if changed := [name for name in plan if known["plan"].get(name) != plan[name]]:
        what = {"config": "recipe", "pool": "--real"}.get(changed[0], f"--{changed[0]}")
        raise ValueError(f"{path.parent} is of another {what}: give that, or another --output")
    return known


def _checkpoint(
    trained: Run, step: int, real: Source, drawn: dict[str, Rows], plan: dict[str, Any], values: flags.FlagValues, audit: Audit
) -> dict[str, Any]:
    """The line of a checkpoint; an audit of it that a kill has left is made anew, as its folders are."""
    trained.step, folder = str(step), Path(values.output) / f"step-{step}"
    source = _made(trained, folder, real, drawn, values.count, values.seed)
    files.remove(folder / "audit", _AUDIT)
    document = audit(_arguments(folder, plan, values.redact))
    line = {"step": step, "oracle": generators.oracle(trained, source), "redacted": values.redact}
    return line | _found(document, folder)


def _count(rows: Rows) -> dict[str, int]:
    return {"images": len(rows), "patients": len(np.unique(rows.groups))}


def _made(run: Run, folder: Path, real: Source, drawn: dict[str, Rows], count: int, seed: int) -> Source:
    """The official folders of one checkpoint, and the same packed."""
    made = generators.made(run, folder / "generated", count, 0)
    none = np.full(len(made), "")
    found = {
        "train_generated": Split(made, np.ones(len(made), np.int64), none, none),
        "train_real": generators.real(real, drawn, {"used": 1, "not_used": 0}, prefix=True),
        "reference": generators.real(real, drawn, {"reference": 0}),
    }
    source = generators.write("subtask1", folder, found, seed)
    sides = (found["train_real"].images[found["train_real"].labels == label] for label in (1, 0))
    images.save(folder / "grid.png", generators.grid(made, *sides))
    return source


def _arguments(folder: Path, plan: dict[str, Any], redact: bool) -> list[str]:
    """Of the audit of one checkpoint."""
    given = {"generated": "train/generated", "used": "train/real_used", "not_used": "train/real_not_used", "reference": "reference"}
    found = [f"--{name}={folder / 'images' / place}" for name, place in given.items()]
    groups = folder / "images" / "groups.csv"
    found += [f"--groups={groups}"] * plan["groups"]  # without any the file has no ids
    found.append(f"--output={folder / 'audit'}")
    return [*found, f"--seed={plan['seed']}", f"--repeats={plan['repeats']}", *["--redact"] * redact]


def _found(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    panel = document["panel"]
    return {
        "verdict": document["verdict"]["name"],
        "p": panel.get("p"),
        "auc": {line["name"]: line["auc"] for line in panel.get("methods", [])},
        "page": str(folder / "audit" / "index.html"),
    }


def sentence(lines: list[dict[str, Any]], used: dict[str, int]) -> str:
    """What an owner wants to know of the checkpoints, ascending, of a recipe."""
    text = f"Trained on {used['images']} images of {used['patients']} patients, the generator knows its images, by its own loss, at"
    text += f" {_steps(lines, lambda line: (line['oracle']['interval'][0] or 0) > 0.5)}."
    text += f" The audit notices a leak at {_steps(lines, lambda line: line['verdict'] in NOTICED)}."
    if unsure := [line for line in lines if line["verdict"] not in (*NOTICED, verdict.NONE)]:
        why = ", ".join(dict.fromkeys(line["verdict"] for line in unsure))
        text += f" It leaves open what it sees at {_listed(unsure)}: {why}."
    if quiet := [line for line in lines if line["verdict"] == verdict.NONE]:
        last = quiet[-1]
        text += f" The last checkpoint that the audit does not notice is step {last['step']}: AUC {_figure(last['oracle'])}."
    return f"{text} What the audit does not notice may still leak: the generator's own loss says how much."


def _steps(lines: list[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> str:
    """At which checkpoints something holds: none, from one on, or those that are listed."""
    found = [line for line in lines if holds(line)]
    if not found:
        return "none of the checkpoints"
    if found == lines:
        return "all checkpoints"
    if found == lines[-len(found) :]:
        return f"step {found[0]['step']}" + (" and later" if len(found) > 1 else "")
    return _listed(found)


def _listed(lines: list[dict[str, Any]]) -> str:
    return f"step{'s' * (len(lines) > 1)} {', '.join(str(line['step']) for line in lines)}"


def _figure(of: dict[str, Any]) -> str:
    low, high = of["interval"]
    return f"{of['value']:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def table(lines: list[dict[str, Any]]) -> str:
    """The checkpoints as Markdown."""
    methods = list(lines[0]["auc"])
    head = ["step", "oracle", *methods, "family-wise p", "verdict"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        p = "" if line["p"] is None else f"{line['p']:.3f}"
        of = [f"{line['auc'][name]:.3f}" if name in line["auc"] else "" for name in methods]
        rows.append([f"{line['step']:,}", _figure(line["oracle"]), *of, p, line["verdict"]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
