"""Systems side by side, on equal terms: figures with intervals, controls, what the training took, the published figure.

    python -m launch.table --file=launch/tables/subtask2.py --data=mixed64=DIR,mixed64_hard=DIR --controls=DIR --output=DIR \
        --minutes=2 --baseline=residual_svm

The table is made of the runs below `--output`, anew after each of them: the same command goes on where it was stopped.
"""

import json
from pathlib import Path

from absl import flags

from fingerprint_jax.runtime import cli, environment, files, paths, preemption
from fingerprint_jax.runtime.progress import show_log
from launch import attribution, membership, sweep
from launch.formats import escape, markdown, write_csv
from launch.systems import Comparison


def write(c: Comparison, baseline: str = "") -> None:
    """table.json and table.csv (numbers in full), and table.md, a table a data set without the columns that are empty."""
    table = membership if c.task.membership else attribution
    found = {data: table.table(c, data, baseline) for data in c.data}
    lines = [line for of_data, _ in found.values() for line in of_data]
    files.write_text(c.output / "table.json", json.dumps(lines, indent=1))
    write_csv(c.output / "table.csv", table.COLUMNS, lines)
    rates, seeds = (", ".join(f"{value:g}" for value in values) for values in (c.rates, c.seeds))
    head = f"{table.FIGURE} on `heldout`, mean over seeds {seeds}; 95% intervals over the images."
    if any(row.networks for row in c.rows):
        head += f" What is trained has {c.minutes:g} processor minutes of steps a run, and of the learning rates {rates} the one"
        head += " that is best on `valid`, where its config has that split, else that of the config."
    parts = [head + (f" Differences to `{baseline}`." if baseline else "")]
    for data, (of_data, under) in found.items():
        texts = [table.shown(line) for line in of_data]
        kept = [column for column in texts[0] if any(text[column] for text in texts)]
        parts.append(f"## {escape(data)}\n\n" + markdown([{column: text[column] for column in kept} for text in texts]))
        parts += [under] * bool(under)
    files.write_text(c.output / "table.md", "\n\n".join(parts))


def _among(flag: str, chosen: list[str], known: list[str]) -> list[str]:
    """What a flag restricts to, in the order of `known`; all of it where the flag is empty."""
    if wrong := sorted(set(chosen) - set(known)):
        raise ValueError(f"--{flag}={wrong[0]}: use of {', '.join(known)}")
    return [name for name in known if name in chosen or not chosen]


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("file", None, "A Python file whose rows() returns the systems.", required=True, flag_values=values)
    text = "NAME=DIR of packed data sets; controls go with the first."
    paths.define_list("data", None, text, values, pairs=True, required=True)
    paths.define("controls", "", "Where the control data sets lie; what is missing is made.", flag_values=values)
    paths.define("output", None, "The directory of the runs and the table.", required=True, flag_values=values)
    flags.DEFINE_float("minutes", 2.0, "Processor minutes of the training steps of a run.", flag_values=values)
    flags.DEFINE_string("baseline", "", "A row that the others are compared with.", flag_values=values)
    text = "Names of --data: on these, rows that train networks have the first seed alone."
    flags.DEFINE_list("one_seed", [], text, flag_values=values)
    flags.DEFINE_list("rows", [], "Work on these rows alone; the table keeps all.", flag_values=values)
    flags.DEFINE_list("datasets", [], "Work on these data sets alone; the table keeps all.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """The whole table; a row that fails stops no other and makes the exit status 1."""
    show_log()
    preemption.stop_at_once()
    environment.self_test()
    if wrong := [entry for entry in values.data if not all(entry.partition("="))]:
        raise ValueError(f"--data={wrong[0]}: expected NAME=DIR")
    data, output = dict(entry.split("=", 1) for entry in values.data), Path(values.output)
    if len(data) < len(values.data):
        raise ValueError(f"--data={','.join(values.data)}: each NAME stands for one DIR")
    rows = sweep.load_file(values.file, "rows")
    one_seed = tuple(_among("one_seed", values.one_seed, list(data))) if values.one_seed else ()
    c = Comparison(output, rows, data, values.controls, values.minutes, one_seed=one_seed)
    rows = [c.row(name) for name in _among("rows", values.rows, list(c.configs))]
    _among("baseline", [values.baseline] * bool(values.baseline), list(c.configs))
    datasets = _among("datasets", values.datasets, list(data))
    c.check()
    output.mkdir(parents=True, exist_ok=True)
    with files.locked(output / "lock", f"--output={output}: %s makes the table there; wait for it, or use another folder"):
        failed = c.run(datasets, rows, lambda: write(c, values.baseline))
        write(c, values.baseline)
    print((output / "table.md").read_text(encoding="utf-8"))
    if failed:
        raise ValueError(f"{len(failed)} rows failed: {', '.join(failed)}; {output}/table.md says why, and they are tried again")


def command() -> None:
    """The console script."""
    cli.run("table", define_flags, main, devices=True)


if __name__ == "__main__":
    command()
