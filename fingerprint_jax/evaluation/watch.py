"""Follows a training from another process: scores each new checkpoint and keeps a copy of its own best."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from fingerprint_jax import methods
from fingerprint_jax.runs import start
from fingerprint_jax.runs.checkpoint import Checkpoints
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import distributed, files
from fingerprint_jax.runtime.preemption import Preempted
from fingerprint_jax.training.writer import keep_lines, line

log = logging.getLogger(__name__)


def watch(workdir: Path, split: str, patience: float, evaluate: Callable[[Run, str], dict], data_dir: str = "") -> Run:
    """Scores the checkpoints of a training as they come, until it is done; called again it goes on where it was.

    Each is copied to `<workdir>/watch-<split>` and scored there, out of reach of the training's retention; the copy stays where
    it is the best so far. That folder is a run: `evaluate --workdir` reads it. `metrics.jsonl` in it has a line a checkpoint.

    Args:
        workdir: of a gradient run.
        split: with known labels, not `heldout`. The best of many checkpoints flatters the split it was chosen on.
        patience: seconds without a new checkpoint after which the training is taken for dead.
        evaluate: run, split -> results, as in results.json.
        data_dir: replaces the data that the run was made with.

    Returns:
        The run of the best checkpoint.

    Raises Preempted where the training is not done and no checkpoint came for `patience` seconds, ValueError where another process
    watches the same.
    """
    if split.partition(":")[0] == "heldout":
        raise ValueError("--watch chooses a checkpoint by the labels of --split, and `heldout` has a say in nothing: use valid")
    if not 0 < patience < math.inf:
        raise ValueError(f"--watch={patience:g}: expected seconds")
    if distributed.count() > 1:
        raise ValueError(f"--watch looks at each checkpoint by one process, these are {distributed.count()}")
    run = methods.load(workdir, data_dir=data_dir)
    if run.config.method != "gradient":
        raise ValueError(f"--watch follows the checkpoints of a gradient run, {workdir} is a run of the method {run.config.method}")
    if (run.rows(split).labels < 0).any():
        raise ValueError(f"--watch: the labels of {split} are unknown, nothing says which checkpoint is the best")
    best = run.config.best or f"max:{run.task.watched}"
    home = workdir / f"watch-{split.replace(':', '-')}"
    copy = Run(run.config, home)
    run.refuse_links()
    copy.refuse_links()
    start.refuse_foreign(home)
    begun = (home / "config.json").exists()
    if begun and copy.followed != split:
        raise ValueError(f"{home} is a run that was trained there, no copy of {workdir}: move it away")
    if begun and not copy.chosen_here:
        raise ValueError(f"{home} was chosen on other data than {run.config.data_dir}: give those as --data_dir, or move it away")
    home.mkdir(exist_ok=True)
    with files.locked(home / "lock", f"{home}: %s watches this run on the same split; wait for it"):
        return _follow(run, copy, split, best, patience, evaluate, data_dir)


def _follow(
    run: Run, copy: Run, split: str, best: str, patience: float, evaluate: Callable[[Run, str], dict], data_dir: str
) -> Run:
    """`watch`, by the one process that does."""
    workdir, home = run.workdir, copy.workdir

    def identify() -> None:
        """Says what the run is now: a training that goes on can have another config since the last checkpoint."""
        copy.write_provenance(run.provenance | {"watched": split, "watched_on": run.source.fingerprints})
        files.write_text(home / "config.json", (workdir / "config.json").read_text(encoding="utf-8"))

    identify()
    theirs, mine = Checkpoints(workdir), Checkpoints(home, best)
    lines = home / "metrics.jsonl"
    seen = keep_lines(lines)
    since = time.monotonic()
    while True:
        done = (workdir / "done").exists()  # asked before the list, so that the last checkpoint is on it
        if new := [step for step in theirs.manifests() if step > seen]:
            identify()  # after the list: of when they were made, or later
        for seen in new:
            if mine.adopt(theirs, seen):
                report = evaluate(methods.load(home, str(seen), data_dir), split)["metrics"]
                figures = report | report.get("scores", {})
                values = {name: value for name, value in figures.items() if isinstance(value, float) and math.isfinite(value)}
                first = mine.keep_best(seen, values)
                with files.appending(lines) as file:
                    file.write(line(seen, values))
                figure = f"{mine.metric} {values.get(mine.metric, math.nan):.4f}"
                log.info("%s step %d  %s%s", workdir, seen, figure, ", the best so far" if first else "")
            since = time.monotonic()
        if done and not new:
            return methods.load(home, "best", data_dir)
        if time.monotonic() - since > patience:
            raise Preempted(f"{workdir}: no new checkpoint for {patience:.0f} s, and it is not done; the same command goes on")
        time.sleep(min(1.0, patience))
