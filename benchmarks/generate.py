"""Memory of `fingerprint_jax.generate` by the number of images that it writes: the largest resident set of its process.

    python -m benchmarks.generate

The network is the tiny one of the tests, trained for a step, and an image takes one step of Euler's method: the images are noise.
What is looked at is whether memory grows with their number.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from configs.generators import flow
from fingerprint_jax import methods
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli


def begun(folder: Path, size: int) -> Path:
    """The run of a generator of phantoms, one step long."""
    phantom.write(folder / "images", "subtask1", phantom.subtask1(0, size, 0.5, real=40, generated=4, unknown=4, reference=4), 0)
    config = flow.get_config("members")
    config.data_dir, config.backbone.name = str(folder / "data"), "unet_tiny"
    config.num_steps = config.eval_every = config.checkpoint_every = 1
    with contextlib.redirect_stdout(sys.stderr):  # its counts are no row of the table
        packing.pack("subtask1", folder / "data", folder / "images" / "train")
        run = Run(config, str(folder / "run"))
        methods.fit(run)
    return run.workdir


def written(workdir: Path, count: int, batch: int, output: Path) -> tuple[float, float]:
    """Seconds and largest resident set, MiB, of a process that writes so many images."""
    command = [sys.executable, "-m", "fingerprint_jax.generate", f"--workdir={workdir}", f"--output_dir={output}"]
    command += [f"--count={count}", f"--batch={batch}", "--steps=1", "--solver=euler"]
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=sys.stderr)
    # Not `ru_maxrss`, which begins with the pages of the process that starts another.
    while process.poll() is None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        time.sleep(0.2)
    if process.returncode:
        raise ValueError(f"{command}: exit status {process.returncode}")
    return time.perf_counter() - begin, peak / 1024


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("counts", ["2000", "20000"], "Numbers of images.", flag_values=values)
    flags.DEFINE_integer("size", 64, "Side of the images in pixels.", lower_bound=8, flag_values=values)
    flags.DEFINE_integer("batch", 64, "Images at a time.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each number of images."""
    print("| images | pixels | seconds | largest resident set, MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        workdir = begun(Path(folder), values.size)
        for count in map(int, values.counts):
            seconds, mib = written(workdir, count, values.batch, Path(folder) / f"made_{count}")
            print(f"| {count:,} | {values.size} | {seconds:.0f} | {mib:,.0f} |", flush=True)


if __name__ == "__main__":
    cli.run("generate", define_flags, main, devices=True)
