"""Scores a run's checkpoint, or any prediction file.

python -m fingerprint_jax.evaluate --workdir=runs/a --split=test_real --submission=run.csv
python -m fingerprint_jax.evaluate --workdir=runs/a --split=valid --watch=600
python -m fingerprint_jax.evaluate --task=subtask1 --predictions=p.csv --truth=t.csv --output=DIR
python -m fingerprint_jax.evaluate --task=subtask1 --validate=run.csv --data_dir=DATA --split=test_real
"""

import contextlib
from pathlib import Path

from absl import flags
from rich.console import Console

from fingerprint_jax import methods, report
from fingerprint_jax.data import tables
from fingerprint_jax.data.tasks import TASKS
from fingerprint_jax.evaluation import score, watch
from fingerprint_jax.evaluation.decide import decide
from fingerprint_jax.evaluation.lineage import in_sample
from fingerprint_jax.evaluation.results import NOTES, tracked
from fingerprint_jax.evaluation.terminal import table
from fingerprint_jax.report import words
from fingerprint_jax.runs import start
from fingerprint_jax.runs.checkpoint import Checkpoints
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli, distributed, environment, paths, plugins, preemption
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.stats import permutation
from fingerprint_jax.training import trackers

ON_PAGE, OF_SUBMISSION = ("redact", "compare", "published"), ("header", "extension", "style")
OF_RUN = ("step", "watch", "submission", "refits", "permutations", "verify", "recompute", "report", "trackers")
WITHOUT_RUN = ("task", "predictions", "truth", "validate", "output")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("workdir", None, "The run to score.", flag_values=values)
    flags.DEFINE_string("split", "heldout", "heldout, valid, sequestered or a packed split.", flag_values=values)
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.", flag_values=values)
    flags.DEFINE_float(
        "watch", 0, "Follow a training that runs; give up after this many seconds without a new checkpoint.", flag_values=values
    )
    paths.define("data_dir", "", "Score the images of another packed data set.", flag_values=values)
    paths.define("submission", None, "Write the decided labels as `id,label` to this file.", flag_values=values)
    flags.DEFINE_bool("header", False, "Submission: a first line `id,label`.", flag_values=values)
    flags.DEFINE_string("extension", "", "Submission: appended to every id: .png, .jpg or .jpeg.", flag_values=values)
    flags.DEFINE_enum(
        "style", "int", ["int", "t", "gen_t"], "Submission: 0..4; in subtask 2 also t1..t5 or gen_t1..gen_t5.", flag_values=values
    )
    text = "Subtask 1: fit the estimators of a cross-fitted run anew to this many permutations of the labels, for its p."
    flags.DEFINE_integer("refits", 0, text, 0, flag_values=values)
    flags.DEFINE_integer(
        "permutations",
        permutation.PERMUTATIONS,
        "Subtask 1: permutations of the labels; the smallest p is 1 / (1 + this).",
        19,
        flag_values=values,
    )
    flags.DEFINE_bool("verify", False, "Compare the content of the packed data with its fingerprints first.", flag_values=values)
    text = "Compute predictions anew, with the features and outputs that the run keeps."
    flags.DEFINE_bool("recompute", False, text, flag_values=values)
    flags.DEFINE_bool("report", False, "Write the page <workdir>/report/index.html.", flag_values=values)
    flags.DEFINE_bool("redact", False, "Page: no picture and no file name of any image.", flag_values=values)
    paths.define_list("compare", [], "Page: work directories of other runs, paired image by image.", flag_values=values)
    flags.DEFINE_bool("published", False, "Page: the place among the published runs.", flag_values=values)
    named = sorted(name for name, task in TASKS.items() if task.classes)
    flags.DEFINE_enum("task", None, named, "Without a run: the task of the files.", flag_values=values)
    paths.define("predictions", None, "Without a run: a file of `id,label`.", flag_values=values)
    paths.define("truth", None, "Without a run: a file of `id,label`.", flag_values=values)
    paths.define("validate", None, "A submission to check against --data_dir and --split.", flag_values=values)
    paths.define("output", None, "Without a run: the folder for results.json.", flag_values=values)
    trackers.define_flag(values)
    plugins.define_flag(values)
    distributed.define_flags(values)


def _ready(run: Run) -> Run:
    """A run that can be scored, all of whose figures are of one checkpoint; raises ValueError where it is not finished."""
    if not run.done and not Checkpoints(run.workdir).begun():
        raise ValueError(f"{run.workdir} is not finished, there is nothing to score yet: the command that trains it goes on")
    return methods.pinned(run)


def write_report(run: Run, results: dict, values: flags.FlagValues) -> Path:
    """The page of a split with these results, beside the runs of --compare on the same data."""
    scored = []
    for each in [run, *(_ready(methods.load(path, data_dir=run.config.data_dir)) for path in values.compare)]:
        if each.config.task != run.config.task:
            raise ValueError(f"--compare={each.workdir}: a run of {each.config.task}, {run.workdir} is one of {run.config.task}")
        with score.renewed(each, values.split):
            predictions = methods.predict(each, values.split)
            decided = decide(each, values.split, predictions)
            notes = methods.unfinished(each, methods.state(each)) + in_sample(each, values.split)
        scored.append(report.Scored(each, each.rows(values.split), predictions, decided, notes))
    return report.write(scored[0], values.split, results, scored[1:], values.redact, values.published)


def main(values: flags.FlagValues) -> None:
    """One evaluation; what the user can mend is one line and exit status 1."""
    show_log()
    plugins.trust(values.plugins)
    distributed.initialize("evaluate", values)
    preemption.stop_at_once()
    console = Console(quiet=distributed.index() > 0, markup=False, highlight=False)  # brackets in paths are no markup
    with tables.anew() if values.recompute else contextlib.nullcontext():
        _evaluate(values, console)


def _check_flags(values: flags.FlagValues) -> None:
    """Raises ValueError for a flag that would have no effect beside the others."""
    given = [name for name in values if values[name].present]
    for names, needed, about in ((ON_PAGE, "report", "the page"), (OF_SUBMISSION, "submission", "the submission")):
        for name in given:
            if name in names and not values[needed].value:
                raise ValueError(f"--{name} is about {about}: add --{needed}")
    for name in given:
        if values.workdir and name in WITHOUT_RUN:
            raise ValueError(f"--{name} is for files, without a run: leave out --workdir, or --{name}")
        if not values.workdir and name in (*OF_RUN, *ON_PAGE, *OF_SUBMISSION):
            raise ValueError(f"--{name} is about a run: give --workdir")
    if values.validate and (values.predictions or values.truth or values.output):
        raise ValueError("--validate checks a submission against a packed split: leave out --predictions, --truth and --output")
    if values.watch and values.step != "best":
        raise ValueError(f"--step={values.step}: --watch scores each checkpoint that comes, leave out one of them")


def _evaluate(values: flags.FlagValues, console: Console) -> None:
    def say(text: str) -> None:
        console.print(printable(text), soft_wrap=True)

    _check_flags(values)
    shown = trackers.check(values.trackers)
    if values.validate:
        if not (values.task and values.data_dir):
            raise ValueError("--validate checks a submission against a packed split: give --task, --data_dir and --split")
        counts = score.validate(values.validate, values.task, values.data_dir, values.split)
        text = ", ".join(f"{count:,} of label {label}" for label, count in enumerate(counts))
        say(f"{values.validate}: valid, each of {counts.sum():,} ids once; {text}")
        return
    if values.workdir:
        environment.self_test()
        run = methods.load(values.workdir, values.step, values.data_dir)
        if values.step != "best" and run.config.method != "gradient":
            raise ValueError(f"--step={values.step}: {run.workdir} is no single network: its members are read at their best")
        start.require_same(run)
        if values.verify or values.recompute:
            score.verify(run, values.split)
        if values.watch:
            run = watch.watch(run.workdir, values.split, values.watch, score.evaluate, values.data_dir)
        run = _ready(run)
        submission = None
        if values.submission:
            submission = {
                "path": values.submission,
                "header": values.header,
                "extension": values.extension,
                "style": values.style,
            }
        results = score.evaluate(run, values.split, submission, values.refits, values.permutations)
        if found := tracked(run, results):
            tracker = trackers.begin(methods.load(run.workdir), shown)  # on its own data, whichever were scored
            tracker.metrics(results["state"] if isinstance(results["state"], int) else 0, found)
            tracker.end(run.done)
        title, place = f"{run.workdir}: {values.split}, {results['n']} images", run.workdir / "results.json"
    elif values.predictions and values.truth and values.task and values.output:
        results = score.score_files(values.task, values.predictions, values.truth, values.output)
        title, place = f"{values.predictions} against {values.truth}", Path(values.output) / "results.json"
    else:
        raise ValueError("give --workdir, or --validate, or all of --task, --predictions, --truth and --output")
    notes = {name: results.get(name, ()) for name in NOTES}
    if "metrics" in results:
        console.print(table(title, results["metrics"], results.get("decision"), notes))
        if results.get("runs_beside"):
            say(words.several(results["runs_beside"], values.split))
        if not values.workdir:
            say(words.verdict(results["task"], results["metrics"], results["metrics"]["n"]))
    else:
        say(f"{title}: labels unknown, nothing to score")
        for name in ("transductive", "unfinished"):
            for reason in notes[name]:
                say(f"{name}: {reason}")
    say(f"results: {place}")
    if values.report:
        say(f"report: {write_report(run, results, values)}")
    if values.submission:
        say(f"submission: {values.submission}")


def command() -> None:
    """The console script."""
    cli.run("evaluate", define_flags, main)


if __name__ == "__main__":
    command()
