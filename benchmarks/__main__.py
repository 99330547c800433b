"""All that docs/performance.md shows, by one command.

    python -m benchmarks --peer_python=/path/to/torch/venv/bin/python

The peer is a Python with torch, torchvision and timm, in a process of its own; without it its lines stay open. Results go to
benchmarks/results/DEVICE.json (DEVICE_x2.json of two), and from there into docs/performance.md, after every row. The same command
goes on where it was stopped, with what is open; `--rows` measures the named rows, finished or not. Both sides run on the same
cores (`--cores`), one at a time, in turns; a turn gives one ratio, and shown is the median with the least and the largest.
"""

import contextlib
import fnmatch
import json
import logging
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import jax
from absl import flags

from benchmarks import rows, table
from fingerprint_jax.runtime import cli, distributed, files, paths
from fingerprint_jax.runtime.progress import show_log

FOLDER = rows.ROOT / "benchmarks" / "results"
DOCS = rows.ROOT / "docs" / "performance.md"


def pin(cores: int) -> int:
    """Keeps this process, and those that it starts, to so many cores, 0: all that it may use; how many these are."""
    allowed = sorted(os.sched_getaffinity(0))
    if cores > len(allowed):
        raise ValueError(f"--cores={cores}: this process may use {len(allowed)}")
    os.sched_setaffinity(0, allowed[: cores or None])
    return cores or len(allowed)


def chosen(patterns: list[str], results: dict) -> list[str]:
    """The rows to measure: those named, else those with something open that this device can fill."""
    for pattern in patterns:
        if not fnmatch.filter(rows.ROWS, pattern):
            raise ValueError(f"--rows={pattern}: no such row, use {', '.join(rows.ROWS)}, or patterns such as training/*")
    names = [name for name in rows.ROWS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ["*"])]
    return [name for name in names if not table.missing(name, results) and (patterns or not table.finished(name, results))]


def load(output: Path, about: dict) -> dict:
    """The results begun in a file. Raises ValueError where they were made otherwise than `about` says."""
    if not output.exists():
        return about | {"rows": {}}
    results = json.loads(output.read_text())
    for name, value in about.items():
        # Without the peer the rows that it is in are kept, and none is measured with another.
        if results.get(name) != value and not (name == "peer" and None in (value, results.get(name))):
            raise ValueError(
                f"{output} has {name} {results.get(name)}, this run {value}: give another --output, or remove the file"
            )
    return results | {"peer": about["peer"] or results["peer"]}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("peer_python", "", "A Python that has torch, torchvision and timm.", flag_values=values)
    paths.define("output", "", "Default: benchmarks/results/DEVICE.json.", flag_values=values)
    flags.DEFINE_list("rows", [], "Measure these, patterns such as training/*; default: what is open.", flag_values=values)
    flags.DEFINE_integer("cores", 2, "Cores of each side; 0: all.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Turns of each side.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 1.0, "Of a turn, at least one round.", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("quick", False, "Tiny sizes, to see that all runs; the figures mean nothing.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Measures, writes the file after every row, prints the table."""
    if values.quick and not values.output:
        raise ValueError("--quick: its figures mean nothing and do not belong into benchmarks/results, give another --output")
    show_log()
    logging.getLogger("fingerprint_jax").setLevel(logging.WARNING)  # not of every training that is timed
    busy = os.getloadavg()[0]  # of others: nothing of this command runs yet
    cores = pin(values.cores)  # before JAX starts its threads
    if busy > table.QUIET * cores:
        print(f"benchmarks: the machine is busy, load {busy:.1f}: the ratios will be wrong", file=sys.stderr)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory on the same GPU
    if not values.quick:
        jax.config.update("jax_compilation_cache_dir", None)  # what stands beside a rate has its compilation in it
    distributed.start_devices()
    device = jax.devices()[0].device_kind
    several = f"_x{jax.device_count()}" if jax.device_count() > 1 else ""
    output = Path(values.output or FOLDER / f"{re.sub('[^a-z0-9]+', '_', device.lower())}{several}.json")
    repeats, seconds = (2, 0.0) if values.quick else (values.repeats, values.seconds)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        bench = rows.Bench(folder, cores, values.peer_python, values.quick, repeats, seconds)
        stack.callback(bench.close)
        about = {
            "device": device,
            "devices": jax.device_count(),
            "gpu": bench.gpu,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "cores": cores,
            "jax": jax.__version__,
            "peer": bench.peer.about if bench.peer else None,
            "quick": values.quick,
            "repeats": repeats,
            "seconds": seconds,
        }
        results = load(output, about)
        wanted = chosen(values.rows, results)
        print(table.HEADER, flush=True)
        for name in rows.ROWS:
            if name in wanted:
                results["rows"][name] = rows.ROWS[name].run(bench) | {"load": busy}
                files.write_text(output, json.dumps(results, indent=1))
                if output.resolve().parent == FOLDER:
                    table.render(DOCS, FOLDER)
            print("\n".join(table.row(name, results)), flush=True)


if __name__ == "__main__":
    cli.run("benchmarks", define_flags, main)
