"""One table and one picture of a sweep: mean and interval over seeds, failed rows shown, paired differences to a baseline.

    python -m launch.collect --sweep=sweeps/lr --baseline=quickstart --figure=accuracy
    python -m launch.collect --sweep=runs --figure=auc --family

A folder of runs that no sweep wrote is a sweep too, each run a group of its own.
"""

import functools
import logging
from pathlib import Path

from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fingerprint_jax.runtime import cli, files, paths, plugins
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.stats import metrics
from launch import local, sweep
from launch.compare import BOUNDS, Scored, family, finished, kept_permutation, unlike
from launch.formats import escape, interval, markdown, number, write_csv

log = logging.getLogger(__name__)

ERROR = 200  # characters shown of why a row failed; failed.json has all
MOST_SHOWN = 1000  # groups in a picture, which can have 65,536 pixels a side
TABLES = ("table.csv", "table.md", "table.png")
OURS = "group,seeds,values,mean,"  # what `table.csv` has begun with in every version
COLUMNS = (
    *("group", "seeds", "values", "mean", "low", "high", "interval_of"),
    *("difference", "difference_low", "difference_high", "difference_of", "p", "family_wise_p", "note"),
)


def grouped(output: Path, split: str) -> dict[str, list[sweep.Row]]:
    """The rows of a sweep by group; of a folder without sweep.json the runs in it, each a group of its own.

    Raises ValueError where none of those runs is evaluated on the split.
    """
    if not (output / "sweep.json").exists():
        found = sorted({path.parent for name in ("config.json", "results.json") for path in output.glob(f"*/{name}")})
        if not any(local.evaluated(path, split) for path in found):
            raise ValueError(f"{output}: neither a sweep nor a folder of runs that are evaluated on {split}")
        return {path.name: [sweep.Row(path.name, "", {})] for path in found}
    groups: dict[str, list[sweep.Row]] = {}
    for row in sweep.read(output)[1]:
        groups.setdefault(row.group, []).append(row)
    return groups


def collect(output: Path, split: str, figure: str, baseline: str = "", with_family: bool = False) -> list[dict]:
    """One dict of COLUMNS a group, in the order of the sweep; what is not there is None.

    With several seeds the interval is Student's t for the mean over them, and differences are paired seed by seed. With one, or
    where all seeds are equal, it is the bootstrap over the images of the first, which holds the trained network fixed;
    `interval_of` and `difference_of` say which. `with_family` adds the p of each group, and that of the best of all. Seeds that
    differ in more than the seed have no mean, and a run in the folder of another row is in none. What `evaluate` said of a split is
    in the note, and so is what a group differs in, from the baseline or the first one, beside what the sweep changes.
    """
    groups = grouped(output, split)
    if baseline:
        of_name = (group for group, rows in groups.items() if baseline in (group, *(row.name for row in rows)))
        baseline = next(of_name, baseline)
        if baseline not in groups:
            raise ValueError(f"--baseline={baseline}: no such row or group, the groups are {', '.join(groups)}")
    load = functools.cache(lambda name: Scored.load(output / name, split))
    own = {group: [row for row in members if not local.of_another(row, output / row.name)] for group, members in groups.items()}
    ready = {group: [row for row in members if finished(output / row.name, split)] for group, members in own.items()}
    scored = {group: {row.overrides.get("seed"): load(row.name) for row in members} for group, members in ready.items()}
    known: dict = {"p": {}}
    if with_family:
        known = family(
            {
                group: [(load(row.name), kept_permutation(output / row.name, split)) for row in members]
                for group, members in ready.items()
            }
        )
    mixed = {group: unlike(list(runs.values()), {"seed"}) for group, runs in scored.items()}
    first = next((group for group, runs in scored.items() if runs), "")
    out = []
    for group, members in groups.items():
        runs = scored[group]
        line = dict.fromkeys(COLUMNS) | {"group": group, "seeds": f"{len(runs)}/{len(members)}"}
        notes = [_state(output, row, split) for row in members if row not in ready[group]]
        if group in known["p"]:
            line |= {"p": known["p"][group], "family_wise_p": known["family_wise"]}
        elif with_family and runs:
            notes.append("no p, or other images than the groups before: no part in the family-wise p")
        line |= _summary(runs, figure, mean=not mixed[group])
        if mixed[group]:
            notes.append(f"the seeds differ in {mixed[group]} too: no mean")
        if baseline and group != baseline and (mixed[group] or mixed[baseline]):
            notes.append("no difference: the baseline's seeds have no mean" if mixed[baseline] else "")
        elif baseline and group != baseline:
            found, note = _compare(runs, scored[baseline], figure)
            line |= found
            notes.append(note)
            if found:
                notes.append(_also_unlike(members[0], runs, groups[baseline][0], scored[baseline], "the baseline"))
        elif baseline:
            notes.append("baseline")
        elif runs and group != first:
            notes.append(_also_unlike(members[0], runs, groups[first][0], scored[first], "the first group"))
        notes += dict.fromkeys(note for run in runs.values() for note in run.notes)
        line["note"] = "; ".join(note for note in notes if note)
        out.append(line)
    return out


def _state(output: Path, row: sweep.Row, split: str) -> str:
    """Why a row is not finished."""
    seed = f"seed {row.overrides['seed']} " if "seed" in row.overrides else ""
    if found := local.of_another(row, output / row.name):
        return f"{seed}is the run of another row: {found}"
    if found := local.evaluated(output / row.name, split):
        if found["fingerprints"] is None:
            return f"{seed}was scored by an older version: evaluate {split} anew"
        return f"{seed}was scored on other data, by another config, checkpoint or members than it now has: evaluate {split} anew"
    try:
        error = files.read_json(output / row.name / "failed.json", {"error": str}, "")["error"]
        return f"{seed}failed: {error[:ERROR]}"
    except (OSError, ValueError):
        done = (output / row.name / "done").exists()
        return f"{seed}not evaluated on {split}" if done else f"{seed}not finished"


def _summary(scored: dict[int | None, Scored], figure: str, mean: bool = True) -> dict:
    found = [one.figure(figure) for one in scored.values()]
    seen = [value for value, _ in found]
    out: dict = {"values": seen}
    if mean and found and None not in seen:
        over = metrics.over_seeds(seen, BOUNDS[figure])
        low, high = over["interval"] or found[0][1]
        of = "one run" if len(seen) == 1 else f"{len(seen)} equal seeds, the first"
        what = f"mean over {len(seen)} seeds (t)" if over["interval"] else f"{of}, images (bootstrap)"
        out |= {"mean": over["mean"], "low": low, "high": high, "interval_of": what}
    return out


def _compare(a: dict[int | None, Scored], b: dict[int | None, Scored], figure: str) -> tuple[dict, str]:
    """Columns of the difference a - b over the seeds that both have, and a note."""
    shared = [seed for seed in a if seed in b]
    if not shared:
        return {}, "no seed in common with the baseline"
    if not all(a[seed].same_images(b[seed]) for seed in shared):
        return {}, "other images than the baseline"
    differences = []
    for seed in shared:
        left, right = a[seed].figure(figure)[0], b[seed].figure(figure)[0]
        if left is None or right is None:
            return {}, f"{figure} is not defined for seed {seed}"
        differences.append(left - right)
    low, high = BOUNDS[figure]
    over = metrics.over_seeds(differences, (low - high, high - low))
    if over["interval"]:
        low, high = over["interval"]
        what = f"mean over {len(shared)} pairs of seeds (t)"
    else:
        low, high = a[shared[0]].difference(b[shared[0]], figure)["interval"]
        of = "one run" if len(shared) == 1 else f"{len(shared)} equal pairs of seeds, the first"
        what = f"{of}, images (paired bootstrap)"
    return {"difference": over["mean"], "difference_low": low, "difference_high": high, "difference_of": what}, ""


def _also_unlike(
    row: sweep.Row, runs: dict[int | None, Scored], other: sweep.Row, baseline: dict[int | None, Scored], name: str
) -> str:
    """A note on what a group and another one, the baseline say, differ in beside what the sweep changes."""
    swept = {"seed", *row.overrides, *other.overrides}
    data_alone = not row.config or row.config != other.config  # of other experiments configs differ in any field
    found = unlike([next(iter(runs.values())), next(iter(baseline.values()))], swept, data_alone)
    return f"differs from {name} in {found} too" if found else ""


def best_of(lines: list[dict]) -> str:
    """The family-wise p of lines of the table, in words."""
    having = [line for line in lines if line["p"] is not None]
    if not having:
        return "family-wise p: none of the groups has a p"
    return f"family-wise p of the best of {len(having)} groups: {having[0]['family_wise_p']:.3g}"


def shown(line: dict, figure: str) -> dict[str, str]:
    """A line of the table as people read it."""
    values = [number(value) or "not defined" for value in line["values"]]
    return {
        "group": printable(line["group"]),
        "seeds": line["seeds"],
        f"{figure} of each seed": " ".join(values),
        "mean": number(line["mean"]),
        "95% interval": interval(line["low"], line["high"]),
        "of": line["interval_of"] or "",
        "difference": number(line["difference"]),
        "its 95% interval": interval(line["difference_low"], line["difference_high"]),
        "from": line["difference_of"] or "",
        "p of the AUC": "" if line["p"] is None else f"{line['p']:.3g}",
        "note": printable(line["note"]),
    }


def refuse_foreign(output: Path) -> None:
    """Raises ValueError where a table lies in a folder that `write` has not written."""
    path = output / "table.csv"
    if not path.exists() and (theirs := [name for name in TABLES if (output / name).exists()]):
        raise ValueError(f"{output / theirs[0]} is no table of ours, {path.name} is missing: move it away")
    if path.exists() and not files.read_bytes(path).startswith(OURS.encode()):
        raise ValueError(f"{path} is no table of ours, it does not begin with {OURS}: move it away")


def write(output: Path, lines: list[dict], figure: str, title: str) -> list[str]:
    """Writes table.csv (numbers in full), table.md and, unless there are too many groups, table.png; returns which."""
    write_csv(output / "table.csv", COLUMNS, lines)
    texts, under = [shown(line, figure) for line in lines], f"\n\n{best_of(lines)}"
    if all(line["p"] is None for line in lines):
        texts, under = [{name: text for name, text in row.items() if name != "p of the AUC"} for row in texts], ""
    files.write_text(output / "table.md", f"{escape(title)}\n\n{markdown(texts)}{under}")
    if len(lines) > MOST_SHOWN:
        (output / "table.png").unlink(missing_ok=True)  # of fewer groups
        log.warning("%s has no table.png: %d groups are more than %d", output, len(lines), MOST_SHOWN)
        return list(TABLES[:2])
    with files.replacing(output / "table.png") as temporary:
        picture(lines, figure, title).savefig(temporary, format="png", dpi=150)
    return list(TABLES)


def picture(lines: list[dict], figure: str, title: str) -> Figure:
    """Means with intervals, the seeds as small points, and beside them the differences to the baseline where there is one."""
    panels = [(figure, "mean", "low", "high")]
    if any(line["difference"] is not None for line in lines):
        panels.append((f"difference of {figure} to the baseline", "difference", "difference_low", "difference_high"))
    out = Figure(figsize=(5 + 4 * len(panels), 1.6 + 0.4 * len(lines)), layout="constrained")
    axes = out.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (label, middle, low, high) in zip(axes, panels, strict=True):
        for y, line in enumerate(lines):
            if line[low] is not None and line[high] is not None:
                ax.plot([line[low], line[high]], [y, y], color="tab:blue", linewidth=2)
            if line[middle] is not None:
                ax.plot(line[middle], y, "o", color="tab:blue")
        ax.set_xlabel(f"{label}, 95% interval")
        ax.locator_params(axis="x", nbins=5)
        ax.grid(axis="x", alpha=0.3)
    for y, line in enumerate(lines):
        seeds = [value for value in line["values"] if value is not None]
        axes[0].plot(seeds, [y] * len(seeds), "|", color="black", alpha=0.6)
    if len(panels) > 1:
        axes[1].axvline(0, color="black", linewidth=0.8)
    labels = [f"{printable(line['group'])}  {line['seeds']}" + ("  failed" * ("failed:" in line["note"])) for line in lines]
    axes[0].set_yticks(range(len(lines)), labels, parse_math=False)
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    out.suptitle(title, parse_math=False)
    return out


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("sweep", None, "The directory that launch.sweep wrote, or a folder of runs.", required=True, flag_values=values)
    flags.DEFINE_string("split", "heldout", "heldout, valid or a packed split.", flag_values=values)
    flags.DEFINE_enum("figure", "accuracy", list(BOUNDS), "What is compared.", flag_values=values)
    flags.DEFINE_string("baseline", "", "A row or group that the others are compared with.", flag_values=values)
    text = "Subtask 1: the p of each group, and of the best of all groups that are about the same images."
    flags.DEFINE_bool("family", False, text, flag_values=values)
    plugins.define_flag(values)


def main(values: flags.FlagValues) -> None:
    """Prints the table, and writes table.csv, table.md and table.png beside sweep.json; those of somebody else are refused."""
    show_log()
    plugins.trust(values.plugins)
    output = Path(values.sweep)
    refuse_foreign(output)
    lines = collect(output, values.split, values.figure, values.baseline, values.family)
    title = f"{output.name}: {values.figure} on {values.split}" + (f", baseline {values.baseline}" if values.baseline else "")
    written = write(output, lines, values.figure, title)
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    kept = ("group", "seeds", "mean", "95% interval", "difference", "its 95% interval")
    for column in (*(kept if values.baseline else kept[:4]), *(["p of the AUC"] * values.family)):
        table.add_column(column, no_wrap=True)
    for line in lines:
        text = shown(line, values.figure)
        for column, of in (("95% interval", "of"), ("its 95% interval", "from")):
            text[column] += " *" * bool(text[column] and "bootstrap" in text[of])
        table.add_row(*(Text(text[str(column.header)]) for column in table.columns))
    if any(str(cell).endswith(" *") for column in table.columns for cell in column.cells):
        table.caption = "* one seed, or equal ones: over the images of one run, its network held fixed; without *: over seeds"
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 250)  # a narrow terminal breaks lines, nothing is cut
    console.print(table)
    if values.family:
        console.print(best_of(lines), soft_wrap=True)
    for line in lines:
        if line["note"]:
            console.print(Text(f"{printable(line['group'])}: {printable(line['note'])}"), soft_wrap=True)
    console.print(f"table: {output}/{', '.join(written)}", soft_wrap=True)


def command() -> None:
    """The console script."""
    cli.run("collect", define_flags, main, devices=True)


if __name__ == "__main__":
    command()
