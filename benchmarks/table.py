"""The results of `python -m benchmarks` as a Markdown table, and in docs/performance.md."""

import json
from pathlib import Path

from benchmarks.rows import ROWS
from benchmarks.timing import shown
from fingerprint_jax.runtime import files

HEADER = "| row | side | rate, or seconds | ratio | beside |\n|---|---|---|---|---|"
QUIET = 0.5  # load a core, by others, above which a row says so
MARKS = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def missing(name: str, results: dict) -> str:
    """What a row needs that the device of the results is not; empty where it needs nothing more. A quick run leaves none out."""
    needs = ROWS[name].needs
    return "" if not needs or results["quick"] or (needs == "gpu") == results["gpu"] else f"needs a {needs.upper()}"


def finished(name: str, results: dict) -> bool:
    """Whether nothing of a row is open."""
    found = results["rows"].get(name)
    return found is not None and not any("open" in line for line in found["lines"])


def row(name: str, results: dict) -> list[str]:
    """The lines of a row; one that was not measured says what it waits for."""
    if name not in results["rows"]:
        return [f"| {name} | | open: {missing(name, results) or 'not measured yet'} | | |"]
    found = results["rows"][name]
    busy = f"; busy machine, load {found['load']:.1f}" if found["load"] > QUIET * results["cores"] else ""
    names = [f"{name}: {found['about']}{busy}", *[""] * (len(found["lines"]) - 1)]
    return [f"| {first} | {_line(line)} |" for first, line in zip(names, found["lines"], strict=True)]


def _line(line: dict) -> str:
    if "open" in line:
        return f"{line['side']} | open: {line['open'].replace('|', '/')} | | "
    figure = shown(line["figure"], ",.1f" if line["figure"]["median"] < 100 else ",.0f")
    ratio = f"{'this by the first' if line['growth'] else 'ours by this'} {shown(line['ratio'])}" if "ratio" in line else ""
    beside = []
    if "ready_seconds" in line:
        beside.append(f"first round after {line['ready_seconds']:.1f} s")
    if "flops_per_second" in line:
        beside.append(f"{line['flops_per_second'] / 1e12:.3g} TFLOP/s")
    if "share_of_peak" in line:
        beside.append(f"{line['share_of_peak']:.1%} of the peak")
    if "input_wait" in line:
        beside.append(f"waits {line['input_wait']:.1%} for input")
    return f"{line['side']} | {figure} {line['unit']} | {ratio} | {', '.join(beside)}"


def table(results: dict) -> str:
    """All rows, measured or open."""
    return "\n".join([HEADER, *(text for name in ROWS for text in row(name, results))]) + "\n"


def sections(folder: Path) -> str:
    """A table for each file of results below a folder, headed by what it was measured with."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        peer = ", ".join(f"{name} {version}" for name, version in results["peer"].items()) if results["peer"] else "none"
        parts.append(
            f"### {results['devices']} x {results['device']}\n\n{results['machine']}, {results['cores']} used by each side;"
            f" jax {results['jax']}; peer:"
            f" {peer};\n{results['repeats']} turns of {results['seconds']:g} s or one round.\n\n{table(results)}"
        )
    return "\n".join(parts) or "No results yet.\n"


def render(docs: Path, folder: Path) -> None:
    """Puts the tables of a folder of results in the place between the two marks of a page."""
    place(docs, MARKS, sections(folder))


def place(page: Path, marks: tuple[str, str], text: str) -> None:
    """Puts a text in the place between two marks of a page."""
    before, rest = page.read_text().split(marks[0])
    after = rest.split(marks[1])[1]
    files.write_text(page, f"{before}{marks[0]}\n{text}\n{marks[1]}{after}".removesuffix("\n"))
