"""Why a run cannot be fitted, before anything is written: by its config, its data, and the run that was begun in its folder."""

from typing import TYPE_CHECKING

import numpy as np

from fingerprint_jax import decisions, methods

if TYPE_CHECKING:
    from pathlib import Path

    from fingerprint_jax.data.source import Rows
    from fingerprint_jax.run import Run

LISTED = 3  # fields named where a config is another one altogether
LONGEST = 60  # characters of a value


def check(run: "Run") -> None:
    """Raises ValueError where a run, or a child of it, cannot be fitted or decided; nothing is written.

    The decision is that of the outermost run: nobody asks a child for its labels.
    """
    method = methods.get(run.config.method)
    _check_parts(run)
    method.check(run)
    if run.outermost == run.workdir:
        _check_decision(run)


def _check_parts(run: "Run") -> None:
    """The held-out fold, `valid` and `sequestered` can be drawn, are not empty and, of membership, hold both classes."""
    data = run.config.data
    if data.folds:
        classes = run.source.summary["classes"]
        check_folds(run.source.rows(run.target), data.folds, f"data.folds={data.folds}", classes)
    asked = {"heldout": data.folds and (data.fold >= 0 or run.config.method == "ensemble")}
    if not (asked["heldout"] and data.fold < 0):  # of folds, each child has its own
        asked |= {"valid": data.valid, "sequestered": data.sequester}
    fields = {"heldout": "folds", "valid": "valid", "sequestered": "sequester"}
    for split in (split for split, wanted in asked.items() if wanted):
        rows, field = run.rows(split), f"data.{fields[split]}={data[fields[split]]}"
        if run.config.task == "subtask1" and len(found := np.unique(rows.labels)) < 2:
            label = run.source.summary["classes"][found[0]]
            raise ValueError(f"{field}: all {len(rows)} images of {split} are {label!r}, both classes are needed; use larger parts")


def _check_decision(run: "Run") -> None:
    decision = run.config.decision
    decisions.check(decision)
    if not decision.known:
        return
    try:
        labels = run.rows(decision.known).labels
    except ValueError as error:
        raise ValueError(f"decision.known={decision.known!r}: {error}") from None
    if decisions.needs_known(decision.name, decision.params.to_dict()) and set(labels.tolist()) != {0, 1}:
        found = sorted(set(labels.tolist()))
        raise ValueError(f"decision.known={decision.known!r}: a threshold is learned from the labels 0 and 1, these are {found}")


def check_folds(rows: "Rows", folds: int, field: str, classes: list[str]) -> None:
    """Raises ValueError where some labelled rows cannot be cut into so many folds; `field` is what asks for them."""
    if folds < 2:
        raise ValueError(f"{field}: at least 2 folds are needed")
    groups, labels = len(np.unique(rows.groups)), np.unique(rows.labels).tolist()
    if groups >= folds and max((rows.labels == label).sum() for label in labels) >= folds:
        return
    count, least = min((len(np.unique(rows.groups[rows.labels == label])), label) for label in labels)
    what = "patients" if groups < len(rows) else "images"
    raise ValueError(f"{field}: class {classes[least]!r} has {count} {what}, at most {count} folds")


def another(workdir: "Path", before: dict, after: dict, refused: list[str]) -> str:
    """Why a run that was begun cannot go on with a config: the fields that differ, in one line.

    Args:
        workdir: of the run.
        before: the flat config that it was started with; `data` has the fingerprints of its data.
        after: the same, of this start.
        refused: names of what differs and may not.
    """
    if before["method"] != after["method"] or before["task"] != after["task"] or len(refused) > 2 * LISTED:
        kinds = [f"{each['task']}, method {each['method']}" for each in (before, after)]
        of = "is a run of another config" + (f" ({kinds[0]}), not of this one ({kinds[1]})" if kinds[0] != kinds[1] else "")
        first = [name for name in ("task", "method") if name in refused]
        listed = (first + [name for name in refused if name not in first])[:LISTED]
        more = f" and {len(refused) - len(listed)} more" if len(refused) > len(listed) else ""
        return f"{workdir} {of}: {len(refused)} fields differ: {', '.join(listed)}{more}; use another --workdir"
    return f"{workdir}: {'; '.join(_difference(name, before, after) for name in refused)}"


def _difference(name: str, before: dict, after: dict) -> str:
    if name == "data":
        splits = sorted(s for s in before[name].keys() | after[name].keys() if before[name].get(s) != after[name].get(s))
        values = [", ".join(f"{s} {known.get(s, 'missing')[:12]}" for s in splits) for known in (after[name], before[name])]
        what = "the content of the data"
    else:
        what = f"config.{name}"
        values = [_shortened(repr(known[name])) if name in known else "not there" for known in (after, before)]
    return f"{what} is {values[0]}, the run was started with {values[1]} (--allow_change={name} goes on with the new)"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... {text[-15:]}"
