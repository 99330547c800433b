"""What the prefilter of `cross_attention` loses: the scores of a cross-fitted run with fewer candidates, beside those with all.

    python -m benchmarks.candidates --workdir=runs/scope --candidates=10,50,200

A table row a number of candidates: the AUC on `heldout`, its difference to that of all candidates with the paired 95% interval, the
rank correlation of the scores within a fold (mean over the folds), and processor seconds a fold.
"""

import time

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy.stats import spearmanr

from fingerprint_jax import Config, methods
from fingerprint_jax.methods import ensemble, gradient
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli, paths
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.stats import score_metrics


def heldout(run: Run, candidates: int) -> tuple[list[np.ndarray], float]:
    """Scores of each fold's held-out images by the network that did not see them, and processor seconds a fold without encoding."""
    found, seconds = [], []
    for _, member in ensemble.admitted(run):
        config: Config = ConfigDict(member.config.to_dict())
        config.objective.candidates = candidates
        varied = Run(config, member.workdir, member.step)
        gradient.predict(varied, "heldout")  # from here on what it encoded is on disk, and its programs are compiled
        begin = time.process_time()
        found.append(gradient.predict(varied, "heldout").scores[:, 0])
        seconds.append(time.process_time() - begin)
    return found, float(np.mean(seconds))


def shown(paired: dict) -> str:
    """A difference and its interval, where groups are enough for one."""
    low, high = paired["interval"]
    return f"{paired['difference']:+.3f}" + ("" if low is None else f" ({low:+.3f} to {high:+.3f})")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("workdir", None, "A finished cross-fitted run of cross_attention.", required=True, flag_values=values)
    flags.DEFINE_list("candidates", ["10", "50", "200"], "Numbers of candidates beside all of them.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints the table."""
    show_log()
    run = methods.load(values.workdir)
    rows = [member.rows("heldout") for _, member in ensemble.admitted(run)]
    labels, groups = (np.concatenate([getattr(r, name) for r in rows]) for name in ("labels", "groups"))
    whole, seconds = heldout(run, 0)
    joined = np.concatenate(whole)
    print("| candidates | AUC | difference | rank correlation | processor seconds a fold |")
    print("|---|---|---|---|---|")
    print(f"| all | {score_metrics.auc(labels, joined):.3f} | | | {seconds:.1f} |", flush=True)
    for count in map(int, values.candidates):
        found, seconds = heldout(run, count)
        scores = np.concatenate(found)
        paired = score_metrics.paired_auc(labels, scores[None], joined[None], groups)
        rank = np.mean([spearmanr(a, b).statistic for a, b in zip(found, whole, strict=True)])  # pyright: ignore
        print(f"| {count} | {score_metrics.auc(labels, scores):.3f} | {shown(paired)} | {rank:.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    cli.run("candidates", define_flags, main, devices=True)
