"""Systems side by side, on equal terms: accuracy with intervals, controls, what the training took, the published figure.

    python -m launch.table --file=launch/tables/subtask2.py --data=mixed64=DIR,mixed64_hard=DIR --controls=DIR --output=DIR \
        --minutes=2 --baseline=residual_svm

The table is made of the runs below `--output`, anew after each of them: the same command goes on where it was stopped.
"""

import itertools
import json
import statistics
from pathlib import Path

import jax
import numpy as np
from absl import flags
from sklearn.metrics import confusion_matrix

from fingerprint_jax import cli, metrics, preemption, tables
from fingerprint_jax.data import controls
from fingerprint_jax.data.images import printable
from fingerprint_jax.writer import show_log
from launch import sweep
from launch.collect import Scored, escape, interval, markdown, number, write_csv
from launch.systems import Comparison, Row, read

# Column -> (data the system was trained on, split and data it is scored on).
CONTROLS = {
    "one_generator": ("one_generator", "heldout", ""),
    "reals": ("reals", "heldout", ""),
    "phantom": ("phantom_runs", "heldout", ""),
    "phantom_other_run": ("phantom_runs", "train_generated", "other_run"),
}
COLUMNS = (
    *("data", "row", "network", "parameters", "size", "networks", "accuracy", "low", "high", "values", "seeds_low", "seeds_high"),
    *("difference", "difference_low", "difference_high"),
    *(name + bound for name in CONTROLS for bound in ("", "_low", "_high")),
    "phantom_other_run_p",
    *("processor_minutes", "steps", "learning_rate", "valid", "published", "note"),
)


def line(c: Comparison, data: str, row: Row, baseline: str = "") -> dict:
    """What is finished of a row on a data set: COLUMNS; what is not there is None.

    `values` are those of the seeds and `seeds_low`, `seeds_high` Student's t for their mean; `valid` are those of the learning
    rates; every other interval is over the images. `processor_minutes` is the median over the seeds of all that `fit` did.
    """
    out: dict = dict.fromkeys(COLUMNS) | {"data": data, "row": row.name, "networks": row.networks, "values": [], "valid": []}
    out |= {"size": row.size, "published": row.published}
    notes = [f"network of {row.uses[1]}"] if row.uses else []
    if calibration := read(c.folder(data, row) / "calibration.json"):
        out |= {"network": calibration["network"], "parameters": calibration["parameters"]}
        out["steps"] = c.steps(data, row) if row.networks else None
    if choice := read(c.folder(data, row) / "choice.json"):
        tried = [f"{rate:g}" for rate in c.rates] if choice["valid"] else []
        out |= {"learning_rate": choice["learning_rate"], "valid": [choice["valid"].get(rate) for rate in tried]}
        notes += [f"not finite with learning rate {rate}" for rate in tried if rate not in choice["valid"]]
    if scored := c.scored(data, row):
        right = _right(scored)
        out |= _mean("", scored, right)
        over = metrics.over_seeds(right.mean(axis=1))
        out["values"], (out["seeds_low"], out["seeds_high"]) = over["values"], over["interval"] or (None, None)
        costs = [read(c.workdir(data, row, choice["learning_rate"], seed) / "cost.json")["processor_s"] for seed in scored]
        out["processor_minutes"] = statistics.median(costs) / 60
        if baseline and row.name != baseline:
            other = c.scored(data, c.row(baseline))
            shared = [seed for seed in scored if seed in other]
            if not all(scored[seed].same_images(other[seed]) for seed in shared):
                notes.append("other images than the baseline")
            elif shared:
                sides = [_right({seed: side[seed] for seed in shared}) * 1.0 for side in (scored, other)]
                out |= _mean("difference", scored, sides[0] - sides[1])
    places = [data]
    if data == c.first and c.controls:
        places += controls.ATTRIBUTION
        for name, (trained, split, other) in CONTROLS.items():
            if one := c.scored(trained, row, split, other):
                out |= _mean(name, one, _right(one))
                if other:
                    out[f"{name}_p"] = class_p(next(iter(one.values())))
    for place in places:
        if failed := read(c.folder(place, row) / "failed.json"):
            notes.append(f"{f'{place} ' if place != data else ''}failed: {failed['error']}")
    return out | {"note": "; ".join(notes)}


def _right(scored: dict[int, Scored]) -> np.ndarray:
    """Whether a seed is right about an image: [S,N]."""
    return np.stack([one.predicted == one.labels for one in scored.values()])


def _mean(name: str, scored: dict[int, Scored], values: np.ndarray) -> dict:
    """Columns of a mean over seeds and images [S,N], its interval over the images."""
    one = next(iter(scored.values()))
    found = metrics.over_images(one.labels, values.mean(axis=0), one.groups)
    low, high = (f"{name}_{bound}" if name else bound for bound in ("low", "high"))
    return {name or "accuracy": found["mean"], low: found["interval"][0], high: found["interval"][1]}


def class_p(scored: Scored) -> float:
    """p of an accuracy on images that err class by class: the share of all assignments of the classes that are right as often.

    Images of a generator that a system has not seen are taken for another one together, so that an interval over images is far too
    narrow for chance. With five classes p is 1/120 at least.
    """
    table = confusion_matrix(scored.labels, scored.predicted, labels=np.arange(scored.num_classes))
    orders = list(itertools.permutations(range(scored.num_classes)))
    right = table[np.arange(scored.num_classes), orders].sum(axis=1)
    return float(np.mean(right >= np.trace(table)))


def shown(line: dict) -> dict[str, str]:
    """A line of the table as people read it."""

    def count(value: int | None) -> str:
        return "" if value is None else f"{value:,}"

    def mean(name: str, bounds: str) -> str:
        return f"{number(line[name])} ({interval(line[f'{bounds}low'], line[f'{bounds}high'])})" if line[name] is not None else ""

    size = [f"{line['network']}, {count(line['parameters'])} parameters"] if line["network"] else []
    return {
        "row": line["row"],
        "size": "; ".join([*size, *[line["size"]] * bool(line["size"])]),
        "networks": count(line["networks"]),
        "accuracy": mean("accuracy", ""),
        "each seed": " ".join(map(number, line["values"])),
        "difference": mean("difference", "difference_"),
        **{name.replace("_", " "): mean(name, f"{name}_") for name in CONTROLS},
        "its p": "" if line["phantom_other_run_p"] is None else f"{line['phantom_other_run_p']:.3f}",
        "processor minutes": "" if line["processor_minutes"] is None else f"{line['processor_minutes']:.2f}",
        "steps": count(line["steps"]),
        "learning rate": "" if line["learning_rate"] is None else f"{line['learning_rate']:g}",
        "published": line["published"],
        "note": printable(line["note"]),
    }


def write(c: Comparison, baseline: str = "") -> None:
    """table.json and table.csv (numbers in full), and table.md, a table a data set without the columns that are empty."""
    lines = [line(c, data, row, baseline) for data in c.data for row in c.rows]
    tables.write_text(c.output / "table.json", json.dumps(lines, indent=1))
    write_csv(c.output / "table.csv", COLUMNS, lines)
    rates, seeds = (", ".join(f"{value:g}" for value in values) for values in (c.rates, c.seeds))
    head = f"Accuracy on `heldout`, mean over seeds {seeds}; 95% intervals over the images. What is trained has {c.minutes:g}"
    head += f" processor minutes of steps a run, and of the learning rates {rates} the one that is best on `valid`."
    parts = [head + (f" Differences to `{baseline}`." if baseline else "")]
    for data in c.data:
        texts = [shown(line) for line in lines if line["data"] == data]
        kept = [column for column in texts[0] if any(text[column] for text in texts)]
        parts.append(f"## {escape(data)}\n\n" + markdown([{column: text[column] for column in kept} for text in texts]))
    tables.write_text(c.output / "table.md", "\n\n".join(parts))


def _among(flag: str, chosen: list[str], known: list[str]) -> list[str]:
    """What a flag restricts to, in the order of `known`; all of it where the flag is empty."""
    if wrong := sorted(set(chosen) - set(known)):
        raise ValueError(f"--{flag}={wrong[0]}: use of {', '.join(known)}")
    return [name for name in known if name in chosen or not chosen]


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_string("file", None, "A Python file whose rows() returns the systems.", required=True, flag_values=values)
    flags.DEFINE_list("data", None, "NAME=DIR of packed data sets; controls go with the first.", required=True, flag_values=values)
    flags.DEFINE_string("controls", "", "Where the control data sets lie; what is missing is made.", flag_values=values)
    flags.DEFINE_string("output", None, "The directory of the runs and the table.", required=True, flag_values=values)
    flags.DEFINE_float("minutes", 2.0, "Processor minutes of the training steps of a run.", flag_values=values)
    flags.DEFINE_string("baseline", "", "A row that the others are compared with.", flag_values=values)
    flags.DEFINE_list("rows", [], "Only these rows go on.", flag_values=values)
    flags.DEFINE_list("datasets", [], "Only these data sets go on.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """The whole table; a row that fails stops no other and makes the exit status 1."""
    show_log()
    preemption.stop_at_once()
    if wrong := [entry for entry in values.data if not all(entry.partition("="))]:
        raise ValueError(f"--data={wrong[0]}: expected NAME=DIR")
    data, output = dict(entry.split("=", 1) for entry in values.data), Path(values.output)
    c = Comparison(output, sweep.load_file(values.file, "rows"), data, values.controls, values.minutes)
    rows = [c.row(name) for name in _among("rows", values.rows, list(c.configs))]
    _among("baseline", [values.baseline] * bool(values.baseline), list(c.configs))
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(output.absolute() / "compiled"))
    failed = c.run(_among("datasets", values.datasets, list(data)), rows, lambda: write(c, values.baseline))
    print((output / "table.md").read_text(encoding="utf-8"))
    if failed:
        raise ValueError(f"{len(failed)} rows failed: {', '.join(failed)}; {output}/table.md says why, and they are tried again")


if __name__ == "__main__":
    cli.run("table", define_flags, main)
