"""Measured time of a training step beside its floor, on a device whose data sheet `runtime/targets.py` has.

    python -m benchmarks.floor

The floor is that of `main --dry_run --target`: the larger of FLOPs by the peak and bytes by the bandwidth, here of the program that
the device has itself, autotuned. Networks, batch and Adam are those of the training rows of `python -m benchmarks`.
"""

import statistics

import jax
from absl import flags

from benchmarks.objectives import Step
from benchmarks.rows import NETS, classifier
from benchmarks.timing import rounds
from fingerprint_jax.runtime import cli, targets
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.training import hlo


def row(name: str, batch: int, size: int, dtype: str, repeats: int) -> str:
    """A network as a row of Markdown. Raises ValueError for a device that is not in the table."""
    kind = jax.devices()[0].device_kind
    if (device := targets.of_kind(kind)) is None:
        raise ValueError(f"the device is {kind!r}, of which runtime/targets.py has no figures")
    step = Step(classifier(name, batch, dtype), size, 0)
    count = rounds(lambda n: n * step.seconds(n), 1.0)
    measured = statistics.median(step.seconds(count) for _ in range(repeats))
    program = hlo.read(step.step.as_text())
    top = device.bfloat16 if dtype == "bfloat16" else device.float32
    computing, moving = step.flops / top, program.bytes / device.bandwidth
    floor = max(computing, moving)
    text = f"{1e3 * floor:.3g} ms, by {'bytes' if moving > computing else 'FLOPs'} | {1e3 * computing:.3g} ms"
    return f"| `{name}` | {batch} of {size} px, {dtype} | {1e3 * measured:.3g} ms | {text} | {measured / floor:.2f} |"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("names", [*NETS, "resnet50", "vit_base_patch16"], "Backbones.", flag_values=values)
    flags.DEFINE_integer("batch", 128, "Images a step.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("size", 256, "Side of the images in pixels.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("dtype", "bfloat16", "Of the arithmetic.", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Turns of a second each; the median is shown.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a table."""
    show_log()
    print("| network | images a step | measured | floor | FLOPs alone | measured to floor |\n|---|---|---|---|---|---|", flush=True)
    for name in values.names:
        print(row(name, values.batch, values.size, values.dtype, values.repeats), flush=True)


if __name__ == "__main__":
    cli.run("floor", define_flags, main, devices=True)
