"""results.json, as it is read: the figures of a run, and of which data and which config those of each split are."""

from pathlib import Path

from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files

# Of a split: lists of reasons that a reader has to know before its figures.
NOTES = ("transductive", "in_sample", "unfinished")
SCHEMA = 3  # docs/results.md
BEFORE = 2  # in which no split says itself what it was scored on


def figures(workdir: Path) -> dict:
    """The content of results.json; empty where there is none, or that of an older version, whose splits would be read wrongly.

    Raises ValueError where it is somebody else's, or of a newer version.
    """
    path, remedy = workdir / "results.json", "move it away, and evaluate writes it anew"
    try:
        document = files.read_json(path, {}, remedy)
    except FileNotFoundError:
        return {}
    schema = document.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(f"{path} is of schema {schema}, which a newer version wrote: use that, or {remedy}")
    splits = document.get("splits")
    if not isinstance(schema, int) or splits is None:
        raise ValueError(f"{path} has not the figures of a run: {remedy}")
    if schema not in (BEFORE, SCHEMA):
        return {}
    if not isinstance(splits, dict) or any(not isinstance(found, dict) for found in splits.values()):
        raise ValueError(f"{path} cannot be used (a split is no object): {remedy}")
    return document


def scored_on(document: dict, split: str) -> dict:
    """{data_dir, fingerprints, config_hash, state, checkpoints, code} that the figures of a split are of, None for what is unsaid.

    Of a file of the schema BEFORE that is what its last evaluation had, whichever split that was of.

    Raises KeyError where the split has none.
    """
    found = document["splits"][split]
    if document["schema"] == BEFORE:
        config = document.get("config")
        found = document | {"data_dir": config.get("data_dir") if isinstance(config, dict) else None, "state": found.get("state")}
    names = ("data_dir", "fingerprints", "config_hash", "state", "checkpoints")
    return {name: found.get(name) for name in names} | {"code": found.get("code", {})}


def tracked(run: Run, results: dict) -> dict[str, float]:
    """What a tracker shows of the results of a split: accuracy, kappa and AUC, as far as it has them, with their intervals.

    What a reader has to know before a figure is in its name, `SPLIT[_DATA][_NOTE]_FIGURE`. DATA are 8 digits of the fingerprint of
    the split, and of the one that its decision learned from, where the run was started with another; NOTE is each of NOTES that has
    reasons.
    """
    metrics = results.get("metrics", {})
    scores = metrics.get("scores", {})
    found = {name: (metrics.get(name), metrics.get("intervals", {}).get(name)) for name in ("accuracy", "cohen_kappa")}
    found["auc"] = scores.get("auc"), scores.get("auc_interval")
    read = dict.fromkeys(run.packed(split) for split in (results["split"], run.config.decision.known) if split)
    before, now = run.own_fingerprints, results["fingerprints"]
    others = (now[split][:8] for split in read if now[split] != before.get(split))
    notes = (note for note in NOTES if results[note])
    prefix, values = "_".join([results["split"].replace(":", "-"), *others, *notes]), {}
    for name, (value, interval) in found.items():
        low, high = interval or (None, None)
        values |= {f"{prefix}_{name}": value, f"{prefix}_{name}_low": low, f"{prefix}_{name}_high": high}
    return {name: value for name, value in values.items() if value is not None}
