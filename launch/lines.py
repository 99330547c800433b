"""What the lines of every table of systems have: what was trained, what it took, what went wrong."""

import statistics

from fingerprint_jax import methods
from fingerprint_jax.runtime.names import printable
from launch.compare import Scored
from launch.formats import interval, number
from launch.systems import Comparison, Row, read

BEFORE = ("data", "row", "network", "parameters", "size", "networks")
AFTER = ("processor_minutes", "steps", "learning_rate", "valid", "published", "note")


def common(c: Comparison, data: str, row: Row, seeds: list[int]) -> tuple[dict, list[str]]:
    """Columns BEFORE and AFTER of a row, of which `seeds` are finished, and its notes so far; what is not there is None.

    `steps` is the number that each network of the seeds was trained for, a list of one a network where these differ; before a seed
    is finished that which the minutes allow.
    """
    out: dict = dict.fromkeys(BEFORE + AFTER) | {"data": data, "row": row.name, "networks": row.networks, "valid": []}
    out |= {"size": row.size, "published": row.published}
    notes = [f"network of {row.uses[1]}"] if row.uses else []
    if calibration := c.kept(data, row, "calibration.json"):
        out |= {"network": calibration["network"], "parameters": calibration["parameters"]}
        out["steps"] = c.steps(data, row) if row.networks else None
    if choice := c.kept(data, row, "choice.json"):
        tried = [f"{rate:g}" for rate in c.rates] if choice["valid"] else []
        out |= {"learning_rate": choice["learning_rate"], "valid": [choice["valid"].get(rate) for rate in tried]}
        notes += [f"not finite with learning rate {rate}" for rate in tried if rate not in choice["valid"]]
        workdirs = [c.workdir(data, row, choice["learning_rate"], seed) for seed in seeds]
        if out["steps"] and (trained := [steps for workdir in workdirs for steps in methods.steps(methods.load(workdir))]):
            out["steps"] = trained if len({*trained}) > 1 else trained[0]
        costs = [read(workdir / "cost.json") for workdir in workdirs]
        if known := [cost["processor_s"] for cost in costs if cost]:
            out["processor_minutes"] = statistics.median(known) / 60
            if not all(cost.get("whole", True) for cost in costs if cost):  # older ones do not say it
                notes.append("its processor minutes are more: what was spent before a kill is not among them")
    if before := read(c.folder(data, row) / "choice.json"):
        others = {seed: c.another(data, row, before["learning_rate"], seed) for seed in c.seeds}
        anew = "give that, or move its folder away and run this row"
        other = [f"seed {seed} is of another {field}: {anew}" for seed, field in others.items() if field]
        notes += other or [f"was begun with another config or on other data: {anew}"] * (not choice)
        wanted = c.seeds[:1] if row.networks and data in c.one_seed else c.seeds
        if seeds and (missing := [seed for seed in wanted if seed not in seeds and not others[seed]]):
            which = ", ".join(map(str, missing))
            notes.append(f"without seed {which}, not finished or not scored with its checkpoint and config of now: run this row")
    if data == c.first:
        notes += [reason for reason in map(c.of_others, c.kinds) if reason]
    places = [data, *(c.kinds if data == c.first else ())]
    for place in places:
        if failed := read(c.folder(place, row) / "failed.json"):
            notes.append(f"{f'{place} ' if place != data else ''}failed: {failed['error']}")
    return out, notes


def beside(
    c: Comparison, data: str, row: Row, scored: dict[int, Scored], baseline: str, notes: list[str]
) -> tuple[list[Scored], list[Scored]] | None:
    """The runs of a row and of the baseline, seed by seed; None where there is nothing to compare, with a note why."""
    if not baseline or row.name == baseline:
        return None
    other = c.scored(data, c.row(baseline))
    shared = [seed for seed in scored if seed in other]
    if not all(scored[seed].same_images(other[seed]) for seed in shared):
        notes.append("other images than the baseline")
    elif shared:
        return [scored[seed] for seed in shared], [other[seed] for seed in shared]
    return None


def columns(name: str, found: dict, prefix: str | None = None) -> dict:
    """Columns of a figure {mean, interval}: its name, `<prefix>low` and `<prefix>high`."""
    prefix = f"{name}_" if prefix is None else prefix
    return {name: found["mean"], f"{prefix}low": found["interval"][0], f"{prefix}high": found["interval"][1]}


def value(line: dict, name: str, bounds: str | None = None) -> str:
    """A figure with its interval, `<bounds>low` and `<bounds>high`; of both what is there."""
    bounds = f"{name}_" if bounds is None else bounds
    span = interval(line[f"{bounds}low"], line[f"{bounds}high"])
    return number(line[name]) + (f" ({span})" if span else "")


def count(number: int | None) -> str:
    """With commas; nothing for None."""
    return "" if number is None else f"{number:,}"


def _steps(trained: int | list[int] | None) -> str:
    """The column `steps`: a number, or the least and the most."""
    return f"{min(trained):,} to {max(trained):,}" if isinstance(trained, list) else count(trained)


def shown(line: dict, figures: dict[str, str]) -> dict[str, str]:
    """A line as people read it, around the figures of the task."""
    size = [f"{line['network']}, {count(line['parameters'])} parameters"] if line["parameters"] else [line["network"] or ""]
    return {
        "row": line["row"],
        "size": "; ".join(text for text in [*size, line["size"]] if text),
        "networks": count(line["networks"]),
        **figures,
        "processor minutes": "" if line["processor_minutes"] is None else f"{line['processor_minutes']:.2f}",
        "steps": _steps(line["steps"]),
        "learning rate": "" if line["learning_rate"] is None else f"{line['learning_rate']:g}",
        "published": line["published"],
        "note": printable(line["note"]),
    }
