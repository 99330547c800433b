"""Makes images by a trained generator, a run of the objective flow_matching or gan.

python -m fingerprint_jax.generate --workdir=runs/flow --count=5000 --output_dir=generated

The same command goes on where it was stopped.
"""

import functools
from pathlib import Path

from absl import flags

from fingerprint_jax import methods
from fingerprint_jax.runs import unchanged
from fingerprint_jax.runs.checkpoint import Checkpoints
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli, environment, files, names, paths, preemption, sharding
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.training.model import model_of
from fingerprint_jax.training.sampling import Sampler, check_folder, generative, make

MOST = 1_000_000  # images: their names have six digits


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    paths.define("workdir", None, "The run of the generator, finished or not.", flag_values=values)
    paths.define("output_dir", None, "Where the images go: a new folder, or that of the same command.", flag_values=values)
    number("count", None, "Images, numbered from 0 on.", lower_bound=1, upper_bound=MOST)
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.", flag_values=values)
    number("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=4_000_000_000)
    number("steps", None, "Steps from noise to image: of flow_matching 25 unless given; of gan always 1.", lower_bound=1)
    text = "Solver of flow_matching: heun (unless given), which asks the network twice a step, or euler. A gan has none."
    flags.DEFINE_string("solver", "", text, flag_values=values)
    number("batch", 64, "Images at a time, a multiple of the devices.", lower_bound=1)
    text = "With objective.conditional: make this class alone; without it classes take turns, in a folder each."
    flags.DEFINE_string("label", None, text, flag_values=values)
    flags.mark_flags_as_required(["workdir", "output_dir", "count"], flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Makes what is missing of the images that the flags name."""
    show_log()
    preemption.stop_at_once()
    environment.self_test()
    run = _generator(values.workdir, values.step)
    sharding.check_batch("--batch", values.batch, model_of(run).mesh)
    wanted = _wanted(run, values.count, values.label)
    folder = Path(values.output_dir)
    check_folder(folder, "output_dir")
    sampler = Sampler(run, values.seed, values.steps or 0, values.solver)
    made = make(sampler, folder, wanted, values.batch, values.label or "")
    print(names.printable(f"generated: {folder}, {made:,} images made, {values.count - made:,} were there"))


def _generator(workdir: str, step: str) -> Run:
    """The run of a generator; raises ValueError where it is none, or has no checkpoint yet."""
    run = methods.load(workdir, step)
    generative(run)
    if not run.done and not Checkpoints(run.workdir).begun():
        raise ValueError(f"--workdir={workdir} has no checkpoint yet: the command that trains it goes on")
    return run


def _wanted(run: Run, count: int, label: str | None) -> list[tuple[str, int]]:
    """The path and the label, -1 for none, of each image by its number."""
    classes: list[str] = run.source.summary["classes"]
    if not run.config.objective.conditional:
        if label is not None:
            raise ValueError(f"--label={label}: {run.workdir} was trained without labels (objective.conditional)")
        return [(f"{i:06d}.png", -1) for i in range(count)]
    unchanged.require_classes(run)
    if outside := [name for name in classes if not files.inside(f"{name}/")]:  # a data set may be somebody else's
        raise ValueError(f"{run.config.data_dir}: the class {outside[0]!r} can be no folder below --output_dir")
    if label is not None:
        names.check("--label", label, classes)
    turns = classes if label is None else [label]
    labels = [classes.index(turns[i % len(turns)]) for i in range(count)]
    return [(f"{classes[label]}/{i:06d}.png", label) for i, label in enumerate(labels)]


def command() -> None:
    """The console script."""
    cli.run("generate", define_flags, main, devices=True)


if __name__ == "__main__":
    command()
