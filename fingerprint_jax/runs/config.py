"""A config as a run keeps it: its fields, its hash, what may be missing in one that somebody else wrote."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.runtime import plugins

# What every config has; `FIELDS` of a method has the rest.
FIELDS: dict[str, Any] = {
    **dict.fromkeys(("data", "decision", "decision.params"), dict),
    **dict.fromkeys(("method", "task", "data_dir", "data.extra_labels", "decision.name", "decision.known"), str),
    **dict.fromkeys(("seed", "data.folds", "data.fold", "data.max_damaged", "data.split_seed"), int),
    **dict.fromkeys(("data.valid", "data.sequester"), (int, float)),
}

# What `Run.child` gives a member of its ensemble, beside seed, data and fold, and what stands there where nobody has said anything.
GIVEN = ("data.folds", "data.valid", "data.sequester", "data.split_seed", "data.max_damaged", "data.extra_labels")
OF_ANY = ("data.folds", "data.valid")  # those that the configs of single networks have, so that they say nothing of a member
UNSET = ("", 0)


def wrong_field(fields: dict[str, Any], of_method: Callable[[str], dict[str, Any]], prefix: str = "") -> str:
    """What of a config as JSON, or of one in it, is missing or of another kind; nothing where all is as its method wants it.

    `of_method` gives the fields of a method, beside those of every config.
    """
    found = dict(walk(fields))
    known = FIELDS
    if isinstance(method := fields.get("method"), str):
        known = FIELDS | of_method(method)
    for name, kind in known.items():
        value = found.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return f"field {prefix + name!r} is {'missing' if name not in found else f'of another kind: {str(value)[:40]!r}'}"
    inner = [name for name in ("member", "pretrain", "pairs") if isinstance(fields.get(name), dict)]
    return next(filter(None, (wrong_field(fields[name], of_method, f"{prefix}{name}.") for name in inner)), "")


def walk(config: Config | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`data.fold`, its value) of every field of a config, or of one as JSON; a section comes before what is in it."""
    for name, value in config.items():
        yield prefix + name, value
        if isinstance(value, (ConfigDict, dict)):
            yield from walk(value, f"{prefix}{name}.")


def network_config(config: Config) -> Config:
    """The config of the networks that a config uses, however deep its members lie; where it uses none, that of the estimator."""
    imaged = "features" in config and config.features.name != "network"
    return config if imaged or "member" not in config else network_config(config.member)


def flat_config(config: Config) -> dict[str, Any]:
    """Nested fields as `{'data.fold': 0, ...}`, without the sections; tuples become lists, as in JSON."""
    fields = ((name, value) for name, value in walk(config) if not isinstance(value, ConfigDict))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields}


def local_name(name: str) -> str:
    """The name of a field in the config that has it: `member.optimizer.drop` is `optimizer.drop`."""
    inside: list[str] = []
    *sections, last = name.split(".")
    for section in sections:
        whole = section in ("member", "pairs", "pretrain") or inside == ["ensemble", "variants"]
        inside = [] if whole else [*inside, section]
    return ".".join([*inside, last])


# What changes no result: paths that may move, of data and extra labels, whose content has fingerprints, and of a cache; how steps
# are dispatched, where their state lies, and which checkpoints are kept.
MOVING = ("data_dir", "data.extra_labels", "features.cache_dir", "steps_per_dispatch", "optimizer.shard_state", "keep")
NEWER = ("patience",)  # fields that configs from before do not have; where they are 0 nothing is other than it was


def without_effect(config: Config | dict[str, Any], prefix: str = "") -> str:
    """The first field of a member that has a value of its own, and that of the run around it in its place; '' for none."""
    variants = (config.get("ensemble") or {}).get("variants") or {}
    inner = {"member": config.get("member"), **{f"ensemble.variants.{name}": fields for name, fields in variants.items()}}
    own = dict(walk(config))
    for name, member in inner.items():
        found = dict(walk(member)) if member else {}
        for field in ("seed", *(each for each in GIVEN if each not in OF_ANY)):
            if found.get(field, UNSET[0]) not in (*UNSET, own.get(field)):
                return f"{prefix}{name}.{field}={found[field]!r}: a member has the value of the run around it: set {prefix}{field}"
        if member and (deeper := without_effect(member, f"{prefix}{name}.")):
            return deeper
    return ""


def identity(config: Config) -> dict[str, Any]:
    """The flat config without what changes no result."""
    flat = ((name, local_name(name), value) for name, value in flat_config(config).items())
    return {name: value for name, local, value in flat if local not in MOVING and (value or local not in NEWER)}


def of_fit(config: Config) -> dict[str, Any]:
    """`identity` without the decision, which is made of the scores: what a fit hangs on."""
    return {name: value for name, value in identity(config).items() if not name.startswith("decision.")}


def config_hash(config: Config) -> str:
    """Digest of a config's identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def code_hash(config: Config) -> str:
    """`config_hash`, with the digests of other packages whose code a config names."""
    return "-".join([config_hash(config), *plugins.code(config).values()])


def from_json(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON as it is in a config: lists are tuples."""

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return from_json(value)
        return tuple(map(converted, value)) if isinstance(value, list) else value

    return {name: converted(value) for name, value in fields.items()}


LISTED = 3  # fields named where a config is another one altogether
LONGEST = 60  # characters of a value


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names, sorted, of what is not the same in both; what is not there is None."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def another(workdir: Path, before: dict[str, Any], after: dict[str, Any], refused: list[str]) -> str:
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


def _difference(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    if name == "data":
        splits = differing(before[name], after[name])
        values = [", ".join(f"{s} {known.get(s, 'missing')[:12]}" for s in splits) for known in (after[name], before[name])]
        what = "the content of the data"
    else:
        what = f"config.{name}"
        values = [_shortened(repr(known[name])) if name in known else "not there" for known in (after, before)]
    return f"{what} is {values[0]}, the run was started with {values[1]} (--allow_change={name} goes on with the new)"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... {text[-15:]}"
