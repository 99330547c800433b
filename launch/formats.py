"""Numbers and lines as the tables of this package print and write them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from fingerprint_jax.data.folders import quoted
from fingerprint_jax.runtime import files
from fingerprint_jax.runtime.names import printable


def number(value: float | None) -> str:
    """Four digits; nothing for None."""
    return "" if value is None else f"{value:.4f}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends; nothing where one is None."""
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def write_csv(path: Path, columns: Sequence[str], lines: list[dict]) -> None:
    """Lines of a table with numbers in full; a list is one cell, what is None an empty one."""

    def cell(value: object) -> str:
        if isinstance(value, list):
            return " ".join("not defined" if v is None else repr(v) for v in value)
        if isinstance(value, str):
            return quoted(printable(value))
        return "" if value is None else repr(value)

    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([cell(line[column]) for column in columns] for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def markdown(lines: list[dict[str, str]]) -> str:
    """A Markdown table of lines; raises ValueError where they have other columns than the first."""
    columns = list(lines[0])
    if other := [list(line) for line in lines if list(line) != columns]:
        raise ValueError(f"lines of one table have the columns {columns} and {other[0]}")
    body = [
        [escape(name) for name in columns],
        ["---"] * len(columns),
        *([escape(text) for text in line.values()] for line in lines),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in body)
