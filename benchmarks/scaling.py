"""Weak scaling on paper: a config compiled for more and more devices, each with the same share of a batch.

    python -m benchmarks.scaling --config=configs/subtask1/aimm_siamese.py --config.data_dir=DATA --target=h100

The images of a step are the config's on the first number of devices, and grow with their number; so does a queue, where they are
more. A row is a dry run of `fingerprint_jax.main`, whose figures it takes (docs/performance.md): XLA compiles for so many devices,
and nothing is extrapolated.
"""

import re
import subprocess
import sys

from absl import flags

from benchmarks.targets import printed
from fingerprint_jax import Config
from fingerprint_jax.runs import config_file
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runtime import cli


def overrides(config: Config, times: float) -> dict[str, int]:
    """The fields of a config whose network has a step of `times` as many images, {`member.data.streams.real`: ..}."""
    network, depth = network_config(config), 0
    while config is not network:
        config, depth = config.member, depth + 1
    found = {f"data.streams.{name}": round(times * count) for name, count in network.data.streams.items()}
    images = sum(found.values())
    if "queue" in network.objective:
        found["objective.queue"] = -(-network.objective.queue // images) * images  # it takes whole batches
    found["eval_batch"] = round(times * network.eval_batch)
    return {"member." * depth + name: value for name, value in found.items()}


def row(figures: dict[str, str]) -> str:
    """Images, memory of a device, floor, exchanges, what they add and its share, of what a dry run prints."""
    images, memory = figures["images a step"].partition(" of ")[0], figures["step: memory"].partition(" a device")[0]
    found = re.search(r"^(\S+ ms), by (\w+).*exchanges add (\S+ ms) \((\S+)\)", figures.get("step: floor", ""))
    floor, by, adds, part = found.groups() if found else ("", "", "", "")
    floor = f"{floor}, by {by}" if found else ""
    return f"{images} | {memory} | {floor} | {figures.get('step: exchanges', '')} | {adds} | {part}"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    config_file.define_flag("config", "FILE of the config; --config.<field>=value overrides.", values)
    flags.DEFINE_string("target", "h100", "The kind of device, as `main --target` names it.", flag_values=values)
    flags.DEFINE_list("counts", ["8", "64", "256", "1024"], "How many of them.", flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each number of devices."""
    given, counts = [word for word in sys.argv[1:] if word.startswith("--config")], [int(count) for count in values.counts]
    print("| devices | images a step | memory of a device | floor | exchanges | they add | their share |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for count in counts:
        more = [f"--config.{name}={value}" for name, value in overrides(values.config, count / counts[0]).items()]
        command = [sys.executable, "-m", "fingerprint_jax.main", *given, *more, "--workdir=scaling", "--dry_run"]
        done = subprocess.run([*command, f"--target={values.target}:{count}"], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{values.target}:{count}: {done.stderr.splitlines()[-1]}")
        print(f"| {count:,} | {row(printed(done.stdout))} |", flush=True)


if __name__ == "__main__":
    cli.run("scaling", define_flags, main)
